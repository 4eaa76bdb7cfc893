"""The program: an ordered list of frozen steps that says what one time step of the trained model does.

Front-ends (a traced torch model, a NIR file) make programs; back-ends (exporters, runtimes, reports) read them.
A program is checked when it is built, so whoever holds one may rely on: unique names, inputs that exist, matching shapes, finite
parameters, decays in [0, 1], at least one step and one output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused, message
from spikedeploy.shapes import ShapeError, shapes_of, states_of
from spikedeploy.steps import Shape, Step

Reduce = Literal["none", "mean", "sum", "last", "max"]
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Output:
    """One result of the model: `wire` at every step, or reduced over time (`mean`, `sum`, `last`, `max`) at the end."""

    name: str
    wire: str
    reduce: Reduce = "none"


@dataclass(frozen=True, eq=False)
class Program:
    """One time step of a model. Compare programs by `digest`.

    input_shape  shape of one sample at one time step, without batch: `(C,)`, `(C, H, W)`, `()` for a token
    input_kind   "float", or "index" for whole numbers that an Embedding looks up
    steps        in the order they run; the wire `input` exists before the first
    outputs      what the model returns, in its order
    origin       for people: step name -> the layer it came from, e.g. `StateLeaky`; not part of the digest
    notes        for people: what the conversion decided or gave up, with numbers; not part of the digest
    """

    input_shape: Shape
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    input_kind: Literal["float", "index"] = "float"
    origin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self.wires
        for index, step in enumerate(self.steps):
            _check_values(self.where(index), step)
            if isinstance(step, S.Embedding) and (step.inputs != (INPUT,) or self.input_kind != "index"):
                found = f"it looks up '{step.inputs[0]}', whose values are real numbers"
                raise ModelRefused(message(self.where(index), found, "a table is looked up by the model's own input of whole numbers"))
        for output in self.outputs:
            if output.wire not in self.wires:
                raise ModelRefused(
                    message(
                        f"output '{output.name}'",
                        f"wire '{output.wire}' does not exist",
                        "an output must name a wire",
                    )
                )

    def where(self, index: int) -> str:
        """How an error names step `index`: `layer 3 'lif2' (StateLeaky)`."""
        step = self.steps[index]
        return f"layer {index} '{step.name}' ({self.origin.get(step.name, type(step).__name__)})"

    @cached_property
    def wires(self) -> Mapping[str, Shape]:
        """The shape of every wire, in the order they are written."""
        if not self.steps or not self.outputs:
            raise ModelRefused(message("model", "it has no layers or no output", "at least one of each is needed"))
        if any(n < 1 for n in self.input_shape):
            raise ModelRefused(message("model", f"an input of shape {self.input_shape}", "every axis needs at least one channel"))
        wires: dict[str, Shape] = {INPUT: self.input_shape}
        for index, step in enumerate(self.steps):
            missing = [name for name in step.inputs if name not in wires]
            if missing:
                raise ModelRefused(
                    message(
                        self.where(index),
                        f"input '{missing[0]}' is not written before it",
                        "steps must come in the order they run",
                    )
                )
            try:
                shapes = shapes_of(step, [wires[name] for name in step.inputs])
            except ShapeError as error:
                raise ModelRefused(message(self.where(index), error.found, error.needed)) from None
            for name, shape in zip(step.outputs, shapes, strict=True):
                if name in wires:
                    raise ModelRefused(message(self.where(index), f"the name '{name}' is taken", "every wire needs its own"))
                if any(n < 1 for n in shape):
                    raise ModelRefused(
                        message(
                            self.where(index),
                            f"an output of shape {shape}",
                            "every axis needs at least one channel",
                        )
                    )
                wires[name] = shape
        return wires

    @cached_property
    def states(self) -> Mapping[str, Mapping[str, Shape]]:
        """Per step with a memory: its states by name, with shapes. All start at zero."""
        found = ((step.name, states_of(step, [self.wires[name] for name in step.inputs])) for step in self.steps)
        return {name: states for name, states in found if states}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides a number; the same on every machine."""
        from spikedeploy.plain import dump_program

        return sha256(dump_program(self, with_notes=False)).hexdigest()

    @property
    def spiking(self) -> Iterator[S.Firing]:
        """The steps that decide spikes, in order."""
        return (step for step in self.steps if isinstance(step, S.Firing))

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def writer(self, wire: str) -> Step | None:
        """The step that writes `wire`; None for the input."""
        return next((step for step in self.steps if wire in step.outputs), None)

    def readers(self, wire: str) -> list[Step]:
        """The steps that read `wire`, in order."""
        return [step for step in self.steps if wire in step.inputs]


def arrays_of(step: Step) -> Iterable[tuple[str, S.Array]]:
    """The parameters of a step: field name and array."""
    return ((item.name, value) for item in fields(step) if isinstance(value := getattr(step, item.name), np.ndarray))


def _check_values(where: str, step: Step) -> None:
    for name, array in arrays_of(step):
        if array.dtype.kind not in "fiu":
            raise ModelRefused(message(where, f"{name} holds {array.dtype}", "real numbers are needed"))
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            index = list(map(int, bad[0]))
            value = array[tuple(bad[0])]
            raise ModelRefused(
                message(
                    where,
                    f"{name}{index or ''} is {value}",
                    "every parameter must be finite",
                    "The checkpoint was probably saved after training diverged.",
                )
            )
    decay = getattr(step, "decay", None)
    if decay is not None and (np.any(decay < 0) or np.any(decay > 1)):
        worst = decay[(decay < 0) | (decay > 1)].ravel()[0]
        raise ModelRefused(message(where, f"a decay of {worst}", "every decay must lie in [0, 1]"))
