"""The event-driven engine: only spikes cost anything.

    engine = EventEngine(program)
    engine.run(x)                      x (T, B, *input_shape), or Events(index, time, steps)
    engine.step(x_t)                   x_t (B, *input_shape): outputs of this step

float32 sums run over the nonzero inputs in ascending index order, bias first, multiply then add. The compiled kernels, the NumPy form
(`native=False`), every thread count, whole or chunked, layer by layer or step by step, dense input or events: the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from math import prod
from threading import RLock
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from spikedeploy import native as native_core
from spikedeploy import steps as S
from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT, Output, Program
from spikedeploy.runtime.events_checks import engine_options, enough_memory, given_states, plain_array, run_options
from spikedeploy.runtime.events_collect import Collect
from spikedeploy.runtime.events_input import Events, Rows, dense_input, densify, sort_events
from spikedeploy.runtime.events_loop import Loop
from spikedeploy.runtime.events_quant import Weights, quantise_program
from spikedeploy.runtime.events_state import Slot
from spikedeploy.runtime.events_stream import Stream
from spikedeploy.runtime.reference import Real, Run, cast

Order = Literal["layer", "step"]
P = ParamSpec("P")
R = TypeVar("R")
States = Mapping[str, Mapping[str, npt.ArrayLike]]


def in_turn(method: Callable[Concatenate[EventEngine, P], R]) -> Callable[Concatenate[EventEngine, P], R]:
    """`method`, one call at a time per engine."""

    @wraps(method)
    def call(engine: EventEngine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with engine._turn:
            return method(engine, *args, **kwargs)

    return call


def _plus_zero(step: S.Step) -> S.Step:
    """Parameters in float32; a bias of -0 becomes +0, so that skipping a step and computing it agree in the sign of zero too."""
    step = cast(step, np.float32)
    if isinstance(step, S.Affine | S.Conv2d) and step.bias is not None:
        return replace(step, bias=step.bias + np.float32(0))
    return step


class EventEngine:
    """Runs a program on events, in float32 or with integer weights.

    batch    samples that run side by side, each with its own state
    threads  of the compiled kernels
    weights  "float32", or "int8" / "int16" with one scale per output channel (see `events_quant`)
    native   True: compiled kernels or an error; False: NumPy; None: compiled where the native core is available

    Threads may share an engine: its calls take turns, each as a whole. They do not run side by side; engines of their own do. A copy and a
    pickle hold the program and the state; what is read from a pickle runs compiled where there is a core, to the same bytes.

    Raises `BadInput` for options out of range, `ModelRefused` where an integer sum could overflow.
    """

    def __init__(
        self, program: Program, batch: int = 1, threads: int = 1, weights: Weights = "float32", native: bool | None = None
    ) -> None:
        batch, threads = engine_options(program, batch, threads, weights, native)
        if native and not native_core.available():
            raise BadInput(message("EventEngine", f"the native core is {native_core.why_not()}", "", "Use native=False."))
        self.program, self.batch, self.threads, self.weights = program, batch, threads, weights
        exact = replace(program, steps=tuple(_plus_zero(step) for step in program.steps))
        self._exact, quantised = quantise_program(exact, weights)
        self._machine: Any = None
        with enough_memory("EventEngine"):
            if native_core.available() if native is None else native:
                from spikedeploy.runtime.events_native import Machine

                self._machine = Machine(self._exact, batch, threads, quantised)
            self._loop = None if self._machine else Loop(self._exact, batch, quantised)
        runner: Any = self._machine or self._loop
        self._slots: dict[tuple[str, str], Slot] = runner.slots
        self._stream: Stream | None = None
        self._wires = tuple(dict.fromkeys(output.wire for output in program.outputs))
        self._turn = RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        native = None if self.native else False
        return type(self), (self.program, self.batch, self.threads, self.weights, native), self.state

    def __setstate__(self, state: States) -> None:
        self.state = state

    @property
    def native(self) -> bool:
        """Whether the compiled kernels run."""
        return self._machine is not None

    # --- state ---------------------------------------------------------------------------------------------------

    @in_turn
    def reset(self) -> None:
        """All states to zero."""
        if self._machine:
            self._machine.settle()
        for slot in self._slots.values():
            slot.write(np.zeros_like(slot.read()))
        self._woken()

    def _woken(self) -> None:
        if self._machine:
            self._machine.startle()

    @property
    @in_turn
    def state(self) -> dict[str, dict[str, Real]]:
        """Copies of all states: per step and name `(B, *shape)`, as the reference's `Run.states`."""
        if self._machine:
            self._machine.settle()
        found: dict[str, dict[str, Real]] = {}
        for (step, name), slot in self._slots.items():
            found.setdefault(step, {})[name] = slot.read()
        return found

    @state.setter
    @in_turn
    def state(self, states: States) -> None:
        """Where to go on from; every state must be given, in its shape."""
        arrays = given_states(states, self.state)
        for key, value in arrays.items():
            self._slots[key].write(value)
        self._woken()

    # --- running -------------------------------------------------------------------------------------------------

    @in_turn
    def step(self, x: npt.ArrayLike | Events) -> dict[str, Real]:
        """One time step: `x (B, *input_shape)`, or `Events` of one step. Gives each output's wire at this step, `(B, *shape)`."""
        if self._machine and not isinstance(x, Events):
            return self._step(plain_array("input", x))
        found = self._run(self._source(x if isinstance(x, Events) else plain_array("input", x)[None]), self._wires, 1)
        wires, _ = next(found)
        return {output.name: wires[output.wire][0] for output in self.program.outputs}

    def _step(self, x: Real) -> dict[str, Real]:
        """The short way: copy in, one compiled call, copy out."""
        stream = self._stream
        if stream is None or stream.tape is not self._machine.current:
            stream = self.stream()
        if x.shape != stream.input.shape or x.dtype.kind not in "fiub" or self.program.input_kind != "float":
            dense_input(x[None], self.program, self.batch)
        with np.errstate(over="ignore"):
            stream.next[...] = x
        if not stream.valid():
            raise BadInput(message("input", "NaN or infinity, or beyond float32", "finite float32 numbers are needed"))
        stream.input[...] = stream.next
        stream.step()
        return {name: value.copy() for name, value in stream.outputs.items()}

    @in_turn
    def stream(self) -> Stream:
        """For tight loops, see `Stream`; until `run` or `step` is called on the engine. An engine has one: further calls give the same.

        Raises `BadInput` without the compiled kernels.
        """
        if not self._machine:
            raise BadInput(message("stream", "the engine runs in NumPy", "the compiled kernels are needed", "Use step()."))
        tape = self._machine.tape(1, self._wires, stream=True)
        if self._stream is None or self._stream.tape is not tape:
            self._stream = Stream(tape, self.program, self.batch)
        return self._stream

    @in_turn
    def run(self, x: npt.ArrayLike | Events, *, record: Collection[str] = (), order: Order = "layer", chunk: int | None = None) -> Run:
        """A whole sequence, from the present state on: `x (T, B, *input_shape)` or `Events`.

        record  wires to keep, `(T, B, *shape)` each
        order   "layer": each operation runs over a chunk of time before the next; "step": all operations at every step
        chunk   steps per chunk; chosen to fit the cache when not given

        Returns what the reference's `run` returns. Raises `BadInput` for an input of another shape, NaN or infinity.
        """
        record = run_options(self.program, record, order, chunk)
        with enough_memory("run"):
            return self._whole_run(x, record, order, chunk)

    def _whole_run(self, x: npt.ArrayLike | Events, record: Collection[str], order: Order, chunk: int | None) -> Run:
        source = self._source(x, checked=not (self._machine and self._machine.compiled))
        steps = source.shape[0] if isinstance(source, np.ndarray) else len(source.ones) // self.batch
        kept = tuple(dict.fromkeys([*self._wires, *record]))
        records = tuple(dict.fromkeys([*record, *self._whole()]))
        plans = {output.name: Collect(output.reduce, steps) for output in self.program.outputs}
        kept_plans = {wire: Collect("none", steps) for wire in records}
        tape = self._one_call(kept, steps, order, chunk, source)
        if tape is not None:
            spikes = self._sequence(tape, source, steps, plans, kept_plans)
        else:
            if isinstance(source, np.ndarray):
                source = self._source(source)
            spikes = self._collect(self._run(source, kept, 1 if order == "step" else chunk or 0), plans, kept_plans)
        return Run(
            outputs={name: collect.result for name, collect in plans.items()},
            wires={wire: collect.result for wire, collect in kept_plans.items()},
            states=self.state,
            spikes=spikes,
            decisions={wire: steps * self.batch * prod(self.program.wires[wire]) for wire in spikes},
        )

    def _collect(
        self, chunks: Iterator[tuple[dict[str, Real], dict[str, int]]], outputs: Mapping[str, Collect], records: Mapping[str, Collect]
    ) -> dict[str, int]:
        """Takes chunk after chunk; gives the spikes per spiking wire."""
        spikes = {step.name: 0 for step in self.program.spiking}
        for wires, counted in chunks:
            for output in self.program.outputs:
                outputs[output.name].add(wires[output.wire])
            for wire, collect in records.items():
                collect.add(wires[wire])
            for wire, count in counted.items():
                spikes[wire] += count
        return spikes

    def _one_call(self, kept: Collection[str], steps: int, order: Order, chunk: int | None, source: Real | Rows) -> Any:
        """The tape on which the whole sequence is one compiled call; None where a step needs NumPy or the input must be copied."""
        if not self._machine or not self._machine.compiled or INPUT in kept:
            return None
        numbers = self._machine.numbers(kept)
        size = 1 if order == "step" else self._size(steps, numbers, chunk)
        tape = self._machine.tape(size, numbers)
        return tape if tape.takes_events or (isinstance(source, np.ndarray) and not tape.copies) else None

    def _size(self, steps: int, kept: Collection[str], chunk: int | None) -> int:
        """Steps per block: no more than there are, in round numbers, so that sequences of similar lengths share a tape."""
        return min(chunk or self._machine.chunk(kept), 1 << (steps - 1).bit_length())

    def _sequence(
        self, tape: Any, source: Real | Rows, steps: int, outputs: Mapping[str, Collect], records: Mapping[str, Collect]
    ) -> dict[str, int]:
        if isinstance(source, Rows):
            tape.feed_events(source, 0)
        else:
            tape.feed(source)
        kept = [(output.wire, outputs[output.name]) for output in self.program.outputs] + list(records.items())
        for wire, collect in kept:
            collect.reserve((self.batch, *self.program.wires[wire]))
        tape.forget()
        if not tape.sequence(steps, [(wire, collect.code, collect.value) for wire, collect in kept]):
            raise BadInput(message("input", "NaN or infinity", "finite numbers are needed"))
        return {step.name: tape.spikes(step.name) for step in self.program.spiking}

    def _whole(self) -> list[str]:
        """Wires whose every step is an output anyway."""
        return [output.wire for output in self.program.outputs if output.reduce == "none"]

    def _source(self, x: npt.ArrayLike | Events, *, checked: bool = True) -> Real | Rows:
        if isinstance(x, Events):
            return sort_events(x, self.program, self.batch)
        return dense_input(x, self.program, self.batch, checked=checked)

    def _run(self, source: Real | Rows, kept: Collection[str], chunk: int) -> Iterator[tuple[dict[str, Real], dict[str, int]]]:
        """Chunk after chunk: the kept wires and the spikes per spiking wire."""
        steps = len(source) if isinstance(source, np.ndarray) else len(source.ones) // self.batch
        size = self._size(steps, kept, chunk) if self._machine else chunk or 64
        for first in range(0, steps, size):
            count = min(size, steps - first)
            if self._machine:
                yield self._compiled(source, kept, first, count, size)
            else:
                assert self._loop is not None
                yield self._loop.run(self._dense(source, first, count), kept)

    def _dense(self, source: Real | Rows, first: int, count: int) -> Real:
        if isinstance(source, np.ndarray):
            return source[first : first + count]
        rows = slice(first * self.batch, (first + count) * self.batch)
        start = source.start[rows.start : rows.stop + 1]
        inside = slice(start[0], start[-1])
        value = None if source.value is None else source.value[inside]
        return densify(Rows(start - start[0], source.index[inside], value, source.ones[rows]), self.program, self.batch)

    def _compiled(
        self, source: Real | Rows, kept: Collection[str], first: int, count: int, size: int
    ) -> tuple[dict[str, Real], dict[str, int]]:
        tape = self._machine.tape(size, kept)
        if isinstance(source, Rows) and tape.takes_events:
            tape.feed_events(source, first * self.batch)
        else:
            fed = self._dense(source, first, count)
            tape.feed(fed)
        tape.forget()
        tape.run(count)
        wires = {wire: self._dense(source, first, count) if wire == INPUT else tape.view(wire, count).copy() for wire in kept}
        return wires, {step.name: tape.spikes(step.name) for step in self.program.spiking}


__all__ = ["EventEngine", "Events", "Output"]
