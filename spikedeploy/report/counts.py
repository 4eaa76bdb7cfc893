"""The numbers of a report. Every count is a whole number, exactly reproducible; ratios are made from them when asked for.

Definitions follow NeuroBench: an effective synaptic operation is a nonzero input times a nonzero weight; it is an AC (accumulate) where the
layer's inputs of that step, over the batch, are all in {-1, 0, 1}, and a MAC otherwise. Biases are not operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
BINS = 1000
"""Series over time are shown in at most this many bins, each the sum of its steps."""

ADDITIVE = (
    "spikes", "decisions", "acs", "macs", "dense", "driven", "idle", "elements", "functions", "state_bytes", "weight_bytes",
    "weights", "zero_weights",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One step of the program over the whole input, all steps and samples together.

    spikes, decisions   nonzero values of a spiking wire, and how many there could be
    weights, zero_weights  of a linear map
    acs, macs           effective synaptic operations; a matrix memory's decay, read-out and write are MACs
    dense               multiply-accumulates of the same map when every input and every weight counts
    driven, idle        neuron updates with and without a synaptic event in that step
    elements            elementwise additions, multiplications and comparisons of real-valued steps
    functions           divisions, square roots, exponentials
    state_bytes         read and written, 4 bytes a number
    weight_bytes        weight rows of active inputs, 4 bytes a number
    """

    name: str
    kind: str
    origin: str = ""
    spikes: int = 0
    decisions: int = 0
    weights: int = 0
    zero_weights: int = 0
    acs: int = 0
    macs: int = 0
    dense: int = 0
    driven: int = 0
    idle: int = 0
    elements: int = 0
    functions: int = 0
    state_bytes: int = 0
    weight_bytes: int = 0

    @property
    def rate(self) -> float | None:
        """Spikes per neuron and step; None for a step that does not spike."""
        return self.spikes / self.decisions if self.decisions else None

    @property
    def activation_sparsity(self) -> float | None:
        """Share of a spiking wire's values that are zero."""
        return (self.decisions - self.spikes) / self.decisions if self.decisions else None

    @property
    def connection_sparsity(self) -> float | None:
        """Share of a linear map's weights that are zero."""
        return self.zero_weights / self.weights if self.weights else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the counts and the ratios."""
        counts = {item.name: getattr(self, item.name) for item in fields(self)}
        ratios = ("rate", "activation_sparsity", "connection_sparsity")
        return counts | {name: getattr(self, name) for name in ratios}


def total_of(layers: tuple[LayerCount, ...]) -> LayerCount:
    """All layers together."""
    return LayerCount("total", "", **{name: sum(getattr(layer, name) for layer in layers) for name in ADDITIVE})


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A layer's counts by the names of `LayerCount`, those that are not zero: over time in the bins of `bins_of`, and by sample `(B,)`."""

    per_step: Mapping[str, Counts]
    per_sample: Mapping[str, Counts]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "per_step": {name: values.tolist() for name, values in self.per_step.items()},
            "per_sample": {name: values.tolist() for name, values in self.per_sample.items()},
        }


def bins_of(steps: int) -> Counts:
    """The first step of each bin."""
    return np.unique(np.linspace(0, steps, min(steps, BINS) + 1).astype(np.int64))[:-1]


def sum_of(series: Iterable[Series]) -> Series:
    """All layers together."""
    per_step: dict[str, Counts] = {}
    per_sample: dict[str, Counts] = {}
    for one in series:
        for total, part in ((per_step, one.per_step), (per_sample, one.per_sample)):
            for name, values in part.items():
                total[name] = total[name] + values if name in total else values
    return Series(per_step, per_sample)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Distances `(membrane - threshold) / scale` of a spiking layer: counts between `edges`, and outside of them."""

    scale: float
    edges: npt.NDArray[np.float64]
    counts: Counts
    below: int
    above: int


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What `measure` found.

    layers      in program order; every step that costs something
    per_step    name -> `(T,)`, summed over samples: `acs`, `macs`, `input events`, and `spikes <layer>` for each spiking layer
    per_sample  name -> `(B,)`, summed over steps: `acs`, `macs`, `spikes`
    rasters     spiking layer -> `(neurons, steps)` of the first sample, the beginning only
    histograms  spiking layer -> how far its membranes were from the threshold
    series      layer -> its counts over time and by sample
    """

    steps: int
    batch: int
    program_digest: str
    layers: tuple[LayerCount, ...]
    per_step: Mapping[str, Counts]
    per_sample: Mapping[str, Counts]
    rasters: Mapping[str, npt.NDArray[np.bool_]]
    histograms: Mapping[str, Histogram]
    input_events: int
    input_values: int
    series: Mapping[str, Series] = field(default_factory=dict)

    @property
    def total(self) -> LayerCount:
        """All layers together."""
        return total_of(self.layers)

    @property
    def synaptic(self) -> LayerCount:
        """Linear layers and convolutions only: what NeuroBench calls synaptic operations."""
        return total_of(tuple(layer for layer in self.layers if layer.kind in ("Affine", "Conv2d")))

    @property
    def spiking(self) -> tuple[LayerCount, ...]:
        """The layers that spike."""
        return tuple(layer for layer in self.layers if layer.decisions)

    def binned(self, name: str) -> tuple[list[int], list[int]]:
        """A series over time in at most `BINS` bins: the first step of each, and its sum."""
        edges = bins_of(self.steps)
        return edges.tolist(), np.add.reduceat(self.per_step[name], edges).tolist()

    def _series(self, layer: str) -> dict[str, Any]:
        return self.series[layer].as_dict() if layer in self.series else {}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; series over time in at most `BINS` bins."""
        starts = self.binned("acs")[0]
        return {
            "format": "spikedeploy.report",
            "version": 1,
            "program_digest": self.program_digest,
            "steps": self.steps,
            "batch": self.batch,
            "input": {"events": self.input_events, "values": self.input_values, "sparsity": 1 - self.input_events / self.input_values},
            "layers": [layer.as_dict() | self._series(layer.name) for layer in self.layers],
            "total": self.total.as_dict() | sum_of(self.series.values()).as_dict(),
            "synaptic": self.synaptic.as_dict(),
            "per_sample": {name: values.tolist() for name, values in self.per_sample.items()},
            "per_step": {"first_step": starts} | {name: self.binned(name)[1] for name in self.per_step},
            "histograms": {
                name: {"scale": h.scale, "edges": h.edges.tolist(), "counts": h.counts.tolist(), "below": h.below, "above": h.above}
                for name, h in self.histograms.items()
            },
        }
