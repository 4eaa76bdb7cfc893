"""Wires, operations and pointers of the compiled engine for a number of steps: filled in once, so that running a chunk is one call per
compiled segment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import INPUT
from spikedeploy.runtime.events_input import Rows
from spikedeploy.runtime.events_op import KINDS, Packed
from spikedeploy.runtime.events_pack import aligned, up, width_of
from spikedeploy.runtime.events_plan import LISTENERS, Group, Need, needs
from spikedeploy.runtime.reference import Real

if TYPE_CHECKING:
    from spikedeploy.runtime.events_native import Machine

TOGETHER_COLUMNS = 4
"""Place of that size in a layer's operation."""
SLACK = 16
"""Entries that the kernels may write beyond the end of a list."""
C_TYPE = {"pending": "int32_t", "loud": "uint8_t", "integer": "void", "taps": "int32_t"}


@dataclass(slots=True, eq=False)
class Wire:
    """A wire's memory and the C struct that points to it."""

    struct: Any
    size: int
    dense: Any = None
    memory: list[Any] = field(default_factory=list)


class Bound(partial[Any]):
    """A C function with its arguments, and the owner of what its pointers point to, which must live as long as the call can be made."""

    owner: object

    def __new__(cls, owner: object, function: Callable[..., Any], *arguments: Any) -> Bound:
        self = super().__new__(cls, function, *arguments)
        self.owner = owner
        return self


class Tape:
    """Wires for up to `steps` steps and the operations on them: compiled segments, and NumPy steps between them."""

    def __init__(self, machine: Machine, steps: int, kept: Collection[str]) -> None:
        self.machine, self.steps = machine, steps
        self.needs = needs(machine.program, machine.plan, kept)
        self.listed: set[str] = set()
        self.ops: list[Any] = []
        self.tables: list[Any] = []
        self.sources: list[Any] = []
        self.wires = {root: self._wire(root, need) for root, need in self.needs.items()}
        self.own = [getattr(self.wires[INPUT].struct, name) for name in ("start", "index", "value", "ones")]
        self.segments = self._segments()

    def _array(self, wire: Wire, name: str, kind: str, shape: tuple[int, ...], dtype: Any) -> Any:
        array = aligned(shape, dtype)
        wire.memory.append(array)
        setattr(wire.struct, name, self.machine.pointer(kind, array))
        return array

    def _wire(self, root: str, need: Need) -> Wire:
        rows, size = self.steps * self.machine.batch, prod(self.machine.program.wires[root])
        wire = Wire(self.machine.ffi.new("sd_wire *"), size)
        wire.struct.size, wire.struct.stride, wire.struct.words = size, width_of(size), up(size, 64) // 64
        amplitude = self.machine.amplitudes[root]
        if amplitude is not None:
            wire.struct.amplitude = float(amplitude)
            self._array(wire, "bits", "uint64_t", (rows, wire.struct.words), np.uint64)
        if self.machine.holds_numbers(root, need):
            wire.dense = self._array(wire, "dense", "float", (rows, width_of(size)), np.float32)
        if need.events:
            self._array(wire, "start", "int64_t", (rows + 1,), np.int64)
            self._array(wire, "index", "uint32_t", (rows * size + SLACK,), np.uint32)
            if amplitude is None:
                self._array(wire, "value", "float", (rows * size + SLACK,), np.float32)
                self._array(wire, "ones", "uint8_t", (rows,), np.uint8)
        return wire

    def of(self, wire: str) -> Wire:
        """The memory of a wire."""
        return self.wires[self.machine.roots[wire]]

    def _wanted(self, wire: str | None) -> bool:
        """Whether somebody reads the wire's numbers, or lists events from them."""
        if wire is None:
            return False
        need = self.needs[self.machine.roots[wire]]
        return need.dense or (need.events and self.of(wire).dense is not None)

    def _operation(self, packed: Packed, inputs: Collection[str]) -> Any:
        op, null = self.machine.ffi.new("sd_event_op *"), self.machine.ffi.NULL
        op.kind, op.mode, op.flags, op.count = KINDS.index(packed.kind), packed.mode, int(packed.strict), len(inputs)
        self.sources.append(self.machine.ffi.new("sd_wire *[]", [self.of(wire).struct for wire in inputs]))
        op.source = self.sources[-1]
        op.widest = packed.widest
        for place, size in enumerate(packed.sizes):
            op.n[place] = size
        for name, array in packed.arrays.items():
            setattr(op, name, self.machine.pointer(C_TYPE.get(name, "float"), array))
        memory = packed.kind in ("MEMORY", "DELTA")
        op.out = self.of(packed.out).struct if packed.out and (not memory or self._wanted(packed.out)) else null
        op.mem = self.of(packed.mem).struct if packed.mem and (memory or self._wanted(packed.mem)) else null
        op.current = self.of(packed.current).struct if self._wanted(packed.current) and packed.current else null
        open_wires = any(self._wanted(wire) for wire in (packed.out, packed.mem, packed.current))
        if packed.silent is not None and not open_wires and op.out.bits != null:
            op.silent = self.machine.pointer("uint8_t", packed.silent)
        self.ops.append(op)
        return op

    def _operations(self, group: Group) -> list[Any]:
        """The group's operation, after the list of events that it is the first to read."""
        found, first = [], self.machine.roots[group.head.inputs[0]]
        if isinstance(group.head, LISTENERS) and first not in self.listed:
            self.listed.add(first)
            found.append(self._operation(Packed("EVENTS", None), [first]))
        op = self._operation(self.machine.packed[group.head.name], group.head.inputs)
        far = self.machine.far_weights(group.head.name) if self.steps * self.machine.batch == 1 else None
        if far is not None:
            op.weight, op.n[TOGETHER_COLUMNS] = self.machine.pointer("float", far[0]), far[1]
        return [*found, op]

    def _segments(self) -> list[Callable[[int], None]]:
        made: list[Callable[[int], None]] = []
        for compiled, run in groupby(self.machine.plan, key=lambda group: group.compiled):
            if compiled:
                made.append(self._compiled([op for group in run for op in self._operations(group)]))
            else:
                made += [self._interpreted(group.head) for group in run]
        return made

    def _compiled(self, ops: list[Any]) -> Callable[[int], None]:
        table = self.machine.ffi.new("sd_event_op *[]", ops)
        self.tables.append(table)
        run, count, batch, threads = self.machine.lib.sd_event_run, len(ops), self.machine.batch, self.machine.threads
        return lambda steps: run(table, count, steps, batch, threads)

    def _interpreted(self, step: S.Step) -> Callable[[int], None]:
        function: Any = self.machine.functions[step.name]
        store = self.machine.stores[step.name]

        def run(steps: int) -> None:
            inputs = [self.view(wire, steps) for wire in step.inputs]
            found, batch = self.of(step.name), self.machine.batch
            with np.errstate(all="ignore"):
                for t in range(steps):
                    result = function(*(x[t] for x in inputs), store)
                    found.dense[t * batch : (t + 1) * batch, : found.size] = result.reshape(batch, -1)

        return run

    def view(self, wire: str, steps: int) -> Real:
        """The numbers of a wire, `(steps, B, *shape)`; a copy where the wire's rows are padded."""
        found, rows = self.of(wire), steps * self.machine.batch
        return found.dense[:rows, : found.size].reshape(steps, self.machine.batch, *self.machine.program.wires[wire])

    def feed(self, x: Real) -> None:
        """Points the input wire at `x (steps, B, *shape)`, or copies it where other steps than event lists read it."""
        wire = self.wires[INPUT]
        self.given: Any = x
        wire.struct.outside = 0
        self._listing(*self.own)
        if self.copies:
            wire.dense[: x.shape[0] * x.shape[1], : wire.size] = x.reshape(-1, wire.size)
        else:
            wire.struct.dense, wire.struct.stride = self.machine.pointer("float", x), wire.size

    @property
    def copies(self) -> bool:
        """Whether a chunk of input must be copied to the wire's own memory."""
        return self.needs[INPUT].dense

    def _listing(self, start: Any, index: Any, value: Any, ones: Any) -> None:
        struct = self.wires[INPUT].struct
        struct.start, struct.index, struct.value, struct.ones = start, index, value, ones

    def feed_events(self, rows: Rows, first: int) -> None:
        """Points the input wire at sorted events, from row `first` on; only where `takes_events`."""
        pointer, struct, self.given = self.machine.pointer, self.wires[INPUT].struct, rows
        struct.outside, struct.amplitude = 1, 1.0
        value = self.machine.ffi.NULL if rows.value is None else pointer("float", rows.value)
        self._listing(pointer("int64_t", rows.start[first:]), pointer("uint32_t", rows.index), value, pointer("uint8_t", rows.ones[first:]))

    @property
    def takes_events(self) -> bool:
        """Whether the input is read as a list of events only."""
        return self.needs[INPUT].events and not self.needs[INPUT].dense

    def run(self, steps: int) -> None:
        """One chunk."""
        for segment in self.segments:
            segment(steps)

    def finite(self, x: Real) -> Callable[[], int]:
        """A check of `x`, as a call without arguments."""
        return Bound(x, self.machine.lib.sd_event_finite, self.machine.pointer("float", x), x.size)

    def single(self) -> Callable[[], object]:
        """One step as a call without arguments."""
        if len(self.segments) != 1 or not self.tables:
            return lambda: self.run(1)
        run, table, count = self.machine.lib.sd_event_run, self.tables[0], len(self.tables[0])
        return Bound(self, run, table, count, 1, self.machine.batch, self.machine.threads)

    def sequence(self, steps: int, kept: Sequence[tuple[str, int, Real]]) -> bool:
        """All steps in one call: block after block of `self.steps`, every kept wire `(wire, reduce, into)` written as it comes. False where
        the input holds NaN or infinity; the states are then as before."""
        ffi, machine = self.machine.ffi, self.machine
        table = ffi.new("sd_kept[]", max(len(kept), 1))
        for entry, (wire, reduce, into) in zip(table, kept, strict=False):
            entry.wire, entry.reduce, entry.into = self.of(wire).struct, reduce, machine.pointer("float", into)
        ops, count = self.tables[0], len(self.tables[0])
        before = [] if self.wires[INPUT].struct.outside else machine.snapshot()  # events were checked before
        fine = machine.lib.sd_event_sequence(
            ops, count, steps, self.steps, machine.batch, machine.threads, self.wires[INPUT].struct, table, len(kept)
        )
        if not fine:
            machine.restore(before)
        return bool(fine)

    def forget(self) -> None:
        """No spikes are counted so far: single steps and a sequence that was refused leave counts that nobody asked for."""
        for wire in self.wires.values():
            wire.struct.spikes = 0

    def spikes(self, wire: str) -> int:
        """Spikes on a neuron's wire since `forget`."""
        return int(self.of(wire).struct.spikes)
