"""Who takes part in a verification: anything that runs the model on given inputs and can be made to see the reference's spikes.

A party is asked twice: once on its own (`forced` None: what a user gets), once with every spiking layer's output replaced, for all that
read it, by the reference's spikes (so that each layer is judged on the same inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.verify.bounds import membrane_wire
from spikedeploy.verify.rules import Doubt

Real = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What a party did. Per layer of the source program: which neurons fired `(T, B, *shape)`, and the membranes where they can be seen; the outputs by name."""

    fired: Mapping[str, Real]
    membranes: Mapping[str, Real]
    outputs: Mapping[str, Real]


class Party(Protocol):
    """One form of the model."""

    name: str
    doubt: Doubt

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        """Run `x (T, B, *input_shape)`; `forced` holds the source program's spike values per layer."""
        ...

    def missing(self) -> Mapping[str, str]:
        """Layers of the source program that this form does not have or show, with the reason."""
        ...


@dataclass(slots=True)
class ProgramParty:
    """A program in the reference runtime, judged as `source`: the source itself in float32, or what a reader made of an artifact."""

    name: str
    program: Program
    source: Program
    dtype: npt.DTypeLike = np.float32
    doubt: Doubt = field(default_factory=Doubt)
    output_names: Mapping[str, str] = field(default_factory=dict)

    def layers(self) -> Mapping[str, tuple[S.Threshold | S.LIF, S.Threshold | S.LIF]]:
        """Per layer of the source that is here too: its step there and here."""
        own = {step.name: step for step in self.program.spiking}
        pairs = ((step, own.get(step.name)) for step in self.source.spiking)
        return {a.name: (a, b) for a, b in pairs if b is not None and self._fits(a, b)}  # type: ignore[misc]

    def _fits(self, a: S.Step, b: S.Step) -> bool:
        return self.program.wires[b.name] == self.source.wires[a.name]

    def missing(self) -> Mapping[str, str]:
        own = {step.name for step in self.program.spiking}
        found = self.layers()
        return {
            step.name: f"shape {self.program.wires[step.name]} in place of {self.source.wires[step.name]}"
            if step.name in own
            else "it has no such layer"
            for step in self.source.spiking
            if step.name not in found
        }

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        layers = self.layers()
        record = [wire for _, step in layers.values() for wire in (step.name, membrane_wire(step))]
        run = reference.run(self.program, x, dtype=self.dtype, record=record, forced=self._forced(forced))
        return Observation(
            fired={name: run.wires[name] != 0 for name in layers},
            membranes={name: in_units_of(a.threshold, b.threshold, run.wires[membrane_wire(b)]) for name, (a, b) in layers.items()},
            outputs=run.outputs,
        )

    def _forced(self, forced: Mapping[str, Real] | None) -> Mapping[str, Real] | None:
        """The reference's spikes at the amplitude that this form gives them."""
        if forced is None:
            return None
        return {name: (forced[name] != 0) * b.amplitude for name, (_, b) in self.layers().items()}


def in_units_of(source: Real, own: Real, membrane: Real) -> Real:
    """A membrane measured in thresholds, put back into the source's: some targets have one threshold per layer and weights to match."""
    shape = membrane.shape[2:]
    if np.array_equal(np.broadcast_to(source, shape), np.broadcast_to(own, shape)):
        return membrane
    if np.any(own == 0) or np.any(source / own <= 0):
        return membrane
    return membrane * (source.astype(np.float64) / own)
