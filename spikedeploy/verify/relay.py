"""A program whose layers may be wider than the source's: some targets cannot add where two wires meet, so earlier spikes are carried on by relay
neurons behind a layer's own. The first channels are the layer; the relays are left to do what they do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime import reference
from spikedeploy.verify.bounds import membrane_wire
from spikedeploy.verify.parties import Observation, ProgramParty, Real, in_units_of


class RelayParty(ProgramParty):
    """A `ProgramParty` that also accepts layers with relay neurons behind their own."""

    __slots__ = ()

    def _fits(self, a: S.Step, b: S.Step) -> bool:
        own, source = self.program.wires[b.name], self.source.wires[a.name]
        return own == source or (len(own) == len(source) == 1 and own[0] > source[0])

    def _own(self, name: str, values: Real) -> Real:
        """The layer's own channels of a wire."""
        width = self.source.wires[name][:1]
        return values[:, :, : width[0]] if values.shape[2:] != self.source.wires[name] else values

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        layers = self.layers()
        record = [wire for _, step in layers.values() for wire in (step.name, membrane_wire(step))]
        run = reference.run(self.program, x, dtype=self.dtype, record=record, forced=self._filled(x, forced))
        own = {name: self._own(name, run.wires[name]) for name in layers}
        return Observation(
            fired={name: values != 0 for name, values in own.items()},
            membranes={name: self._membrane(name, a, b, run.wires[membrane_wire(b)]) for name, (a, b) in layers.items()},
            outputs={self.output_names.get(name, name): value for name, value in run.outputs.items()},
        )

    def _membrane(self, name: str, source: S.Threshold | S.LIF, own: S.Threshold | S.LIF, values: Real) -> Real:
        values = self._own(name, values)
        theta = np.broadcast_to(own.threshold, self.program.wires[own.name])
        theta = theta[: values.shape[2]] if theta.ndim == 1 else theta
        return in_units_of(np.asarray(source.threshold), theta, values)

    def _filled(self, x: Real, forced: Mapping[str, Real] | None) -> Mapping[str, Real] | None:
        """The reference's spikes for every layer; behind them the relays' own, found layer after layer."""
        if forced is None:
            return None
        ready: dict[str, Real] = {}
        for name, (_, step) in self.layers().items():
            amplitude = np.broadcast_to(step.amplitude, self.program.wires[name])
            width = forced[name].shape[2]
            if self.program.wires[name] == self.source.wires[name]:
                ready[name] = (forced[name] != 0) * amplitude
            else:
                behind = reference.run(self.program, x, dtype=self.dtype, record=[name], forced=ready).wires[name]
                ready[name] = np.concatenate([(forced[name] != 0) * amplitude[:width], behind[:, :, width:]], axis=2)
        return ready
