"""Who takes part in a verification: anything that runs the model on given inputs and can be made to see the reference's spikes.

A party is asked twice: once on its own (`forced` None: what a user gets), once with every spiking layer's output replaced, for all that
read it, by the reference's spikes (so that each layer is judged on the same inputs).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    """What a party did. Per layer of the source: which neurons fired `(T, B, *shape)`, the membranes where they show; outputs by name."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a layer of the source is in another program: the neurons `start:stop` of a spiking step (all of them as a rule).

    Some targets cannot add where two wires meet; there, earlier spikes are carried on by relay neurons behind a layer's own.
    """

    source: S.Firing
    own: S.Firing
    start: int | None = None
    stop: int | None = None

    def cut(self, values: Real) -> Real:
        """The layer's part of a wire `(T, B, ...)`."""
        return values if self.start is None else values[..., self.start : self.stop]

    def parameter(self, value: Real, width: int) -> Real:
        """The layer's part of a parameter of the own step."""
        return value if self.start is None else np.broadcast_to(value, (width,))[self.start : self.stop]


@dataclass(slots=True)
class ProgramParty:
    """A program in the reference runtime, judged as `source`: the source itself in float32, or what a reader made of an artifact."""

    name: str
    program: Program
    source: Program
    dtype: npt.DTypeLike = np.float32
    doubt: Doubt = field(default_factory=Doubt)
    output_names: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """What a layer of the source is called here, where that is something else."""

    def places(self) -> Mapping[str, Place]:
        """Per layer of the source that is here too: where."""
        found = {step.name: self._place(step) for step in self.source.spiking}
        return {name: place for name, place in found.items() if place is not None}

    def _place(self, step: Any) -> Place | None:
        name = self.aliases.get(step.name, step.name)
        own = self.program.writer(name)
        if own is None or self.program.wires[name] != self.source.wires[step.name]:
            return None
        if isinstance(own, S.Firing):
            return Place(step, own)
        wide = self.program.writer(own.inputs[0]) if isinstance(own, S.Slice) else None
        return Place(step, wide, own.start, own.stop) if isinstance(own, S.Slice) and isinstance(wide, S.Firing) else None

    def missing(self) -> Mapping[str, str]:
        found = self.places()
        return {step.name: self._why(step.name) for step in self.source.spiking if step.name not in found}

    def _why(self, layer: str) -> str:
        if layer not in self.program.wires:
            return "it has no such layer"
        return f"shape {self.program.wires[layer]} where {self.source.wires[layer]} is needed, or no spiking layer"

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        places = self.places()
        record = {wire for place in places.values() for wire in (place.own.name, membrane_wire(place.own))}
        run = self._run(x, record, None if forced is None else self._forced(x, forced))
        return Observation(
            fired={name: place.cut(run.wires[place.own.name]) != 0 for name, place in places.items()},
            membranes={
                name: self._membrane(place, run.wires[membrane_wire(place.own)])
                for name, place in places.items()
                if remembers(self.program, place.own) or not remembers(self.source, place.source)
            },
            outputs={self.output_names.get(name, name): value for name, value in run.outputs.items()},
        )

    def _run(self, x: Real, record: Collection[str], forced: Mapping[str, Real] | None) -> reference.Run:
        return reference.run(self.program, x, dtype=self.dtype, record=record, forced=forced)

    def _membrane(self, place: Place, values: Real) -> Real:
        theta = place.parameter(place.own.threshold, self.program.wires[place.own.name][-1])
        return in_units_of(place.source.threshold, theta, place.cut(values))

    def _forced(self, x: Real, forced: Mapping[str, Real]) -> Mapping[str, Real]:
        """The reference's spikes, at the amplitude that this form gives them; relays keep what they carry, found layer after layer."""
        ready: dict[str, Real] = {}
        for name, place in self.places().items():
            spikes = forced[name] != 0
            if place.start is not None:
                values = ready.get(place.own.name)
                values = self._run(x, [place.own.name], ready).wires[place.own.name].copy() if values is None else values
                values[..., place.start : place.stop] = spikes * place.parameter(place.own.amplitude, values.shape[-1])
                ready[place.own.name] = values
            else:
                ready[place.own.name] = spikes * place.own.amplitude
        return ready


def remembers(program: Program, neuron: S.Firing) -> bool:
    """Whether anything is kept from step to step between this neuron's decision and the spikes before it. A relay that passes on what
    other nodes decided keeps nothing: some targets take one decay per node, and a layer's membrane is then spread over several."""
    if neuron.name in program.states:
        return True
    ahead, seen = [neuron.inputs[0]], set[str]()
    while ahead:
        step = program.writer(wire := ahead.pop())
        if step is None or wire in seen or isinstance(step, S.Firing):
            continue
        if step.name in program.states:
            return True
        seen.add(wire)
        ahead += step.inputs
    return False


def in_units_of(source: Real, own: Real, membrane: Real) -> Real:
    """A membrane measured in thresholds, put back into the source's: some targets have one threshold per layer and weights to match."""
    shape = membrane.shape[2:]
    if np.array_equal(np.broadcast_to(source, shape), np.broadcast_to(own, shape)):
        return membrane
    if np.any(own == 0) or np.any(source / own <= 0):
        return membrane
    return membrane * (source.astype(np.float64) / own)
