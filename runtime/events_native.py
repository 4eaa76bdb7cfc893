"""The compiled engine: weights, states and operations for the kernels in `native/events*.c`.

A `Machine` owns them; a `Tape` (events_tape.py) arranges wires for a number of steps and a set of wires to keep.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np

from spikedeploy import native
from spikedeploy.program import INPUT, Program
from spikedeploy.runtime.events_conv import STEPS
from spikedeploy.runtime.events_loop import function_of
from spikedeploy.runtime.events_op import Context
from spikedeploy.runtime.events_ops import PACK
from spikedeploy.runtime.events_pack import panels, together, up
from spikedeploy.runtime.events_plan import Need, groups, inner_wires, needs, roots, uniform_amplitude
from spikedeploy.runtime.events_quant import Quantised
from spikedeploy.runtime.events_state import Plain, Slot
from spikedeploy.runtime.events_tape import Tape
from spikedeploy.runtime.reference import State, zeros

CHUNK_BYTES, NEAR_CHUNK_BYTES = 1 << 20, 1 << 18
LIST_BYTES = 1 << 22
MOST_STEPS, MOST_TAPES = 1024, 8
NEAR_BYTES = 3 << 19
"""Weights that a second-level cache keeps beside everything else."""


class Machine:
    """Weights, states and operations of one engine."""

    def __init__(self, program: Program, batch: int, threads: int, quantised: Mapping[str, Quantised]) -> None:
        self.program, self.batch, self.threads = program, batch, threads
        self.ffi, self.lib = native.core()
        self.plan, self.roots = groups(program, PACK), roots(program)
        self.inner = inner_wires(self.plan)
        self.compiled = all(group.compiled for group in self.plan)
        context = Context(program, batch, quantised)
        self.packed = {group.head.name: PACK[type(group.head)](context, group) for group in self.plan if group.compiled}
        self.functions = {g.head.name: function_of(program, g.head, quantised) for g in self.plan if not g.compiled}
        self.stores: dict[str, State] = {
            g.head.name: zeros(program, batch, np.float32).get(g.head.name, {}) for g in self.plan if not g.compiled
        }
        self.tapes: dict[tuple[int, frozenset[str], bool], Tape] = {}
        self.chunks: dict[frozenset[str], int] = {}
        self.turned: dict[str, tuple[Any, int]] = {}
        self.amplitudes = {wire: uniform_amplitude(program, wire) for wire in program.wires}
        self.current: Tape | None = None
        self.startle()

    @property
    def slots(self) -> dict[tuple[str, str], Slot]:
        """All states by step and name."""
        found: dict[tuple[str, str], Slot] = {(step, name): Plain(store, name) for step, store in self.stores.items() for name in store}
        for packed in self.packed.values():
            found |= packed.slots
        return found

    def pointer(self, kind: str, array: Any) -> Any:
        return self.ffi.cast(f"{kind} *", self.ffi.from_buffer(array))

    def settle(self) -> None:
        """Applies the leaks that were put off."""
        if self.current is not None:
            for op in self.current.ops:
                self.lib.sd_event_settle(op, self.batch)

    def startle(self) -> None:
        """Recomputes which panels hold a membrane above its threshold: after the state was set from outside."""
        for packed in self.packed.values():
            if "loud" in packed.arrays:
                u, theta = packed.arrays["state"], packed.arrays["theta"]
                above = u > theta if packed.strict else u >= theta
                for number, (first, count) in enumerate(panels(u.shape[1], packed.widest)):
                    packed.arrays["loud"][:, number] = above[:, first : first + count].any(axis=1)

    def snapshot(self) -> list[tuple[Any, Any]]:
        """Copies of everything that running changes."""
        names = ("state", "state2", "pending", "loud")
        arrays = [packed.arrays[name] for packed in self.packed.values() for name in names if name in packed.arrays]
        return [(array, array.copy()) for array in arrays]

    def restore(self, before: list[tuple[Any, Any]]) -> None:
        """Back to the snapshot."""
        for array, copy in before:
            array[...] = copy

    def numbers(self, kept: Collection[str]) -> list[str]:
        """Of the kept wires those that must be written as numbers; the others are spikes of one size, and their bits say everything."""
        return [wire for wire in kept if self.amplitudes[wire] is None]

    def far_weights(self, name: str) -> tuple[Any, int] | None:
        """Another copy of an operation's weights, made when single steps first want it, and how many columns it holds another way (see
        `events_pack.together`); None where the cache keeps the weights."""
        packed = self.packed[name]
        weight = packed.arrays.get("weight")
        if packed.kind != "LAYER" or weight is None or weight.nbytes <= NEAR_BYTES or "integer" in packed.arrays:
            return None
        if name not in self.turned:
            self.turned[name] = together(weight, packed.sizes[0], packed.widest)
        return self.turned[name] if self.turned[name][1] else None

    def chunk(self, kept: Collection[str]) -> int:
        """Steps per block: what the operations write, numbers and bits, in about 1 MB; the longest list of events, half full, in 4 MB. A
        long block reads weights from far memory once for many steps; where the cache keeps the weights anyway, it is to keep what a block
        writes as well: 256 KB. Whole groups of the steps that a convolution takes at once."""
        key = frozenset(kept)
        if key not in self.chunks:
            self.chunks[key] = self._chunk(kept)
        return self.chunks[key]

    def _chunk(self, kept: Collection[str]) -> int:
        wanted = needs(self.program, self.plan, kept)
        bits = {root: 32 if self.holds_numbers(root, need) else 1 for root, need in wanted.items() if root != INPUT}
        step = sum(self.batch * up(prod(self.program.wires[root])) * each // 8 for root, each in bits.items())
        listed = max((2 * self.batch * prod(self.program.wires[root]) for root, need in wanted.items() if need.events), default=1)
        arrays = [packed.arrays[name] for packed in self.packed.values() for name in ("weight", "integer") if name in packed.arrays]
        weights = sum(array.nbytes for array in arrays)
        written = NEAR_CHUNK_BYTES if weights <= NEAR_BYTES else CHUNK_BYTES
        found = max(1, min(MOST_STEPS, written // max(step, 1), LIST_BYTES // listed))
        return found // STEPS * STEPS or found

    def holds_numbers(self, root: str, need: Need) -> bool:
        """Whether the wire is written as numbers: somebody reads them, or bits cannot say them."""
        return need.dense or (self.amplitudes[root] is None and (need.events or root not in self.inner))

    def tape(self, steps: int, kept: Collection[str], stream: bool = False) -> Tape:
        """The tape for these wires, of those used last or made; the one before it is settled first. A stream has its own, whose input
        stays where it is."""
        key = (steps, frozenset(kept), stream)
        tape = self.tapes.pop(key, None) or Tape(self, steps, kept)
        self.tapes[key] = tape
        if len(self.tapes) > MOST_TAPES:
            del self.tapes[next(iter(self.tapes))]
        if tape is not self.current:
            self.settle()
            self.startle()
            self.current = tape
        return tape
