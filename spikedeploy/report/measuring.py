"""Runs a program on the event-driven engine, chunk by chunk of time, and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.program import INPUT, Program
from spikedeploy.report.counts import Counts, Histogram, LayerCount, Report, Series, bins_of
from spikedeploy.report.reached import reached
from spikedeploy.report.rules import COST, NEURONS, READS_BEFORE, Cost, Moment
from spikedeploy.runtime.events import EventEngine
from spikedeploy.runtime.events_input import dense_input
from spikedeploy.runtime.reference import Real, check_input
from spikedeploy.steps import Step

CHUNK_BYTES = 32 << 20
RASTER_NEURONS, RASTER_STEPS = 96, 512
EDGES = np.linspace(-2.0, 2.0, 81)


def measure(program: Program, x: npt.ArrayLike, *, native: bool | None = None) -> Report:
    """Count what `program` does on `x (T, B, *input_shape)`, from the zero state.

    Memory stays bounded whatever T is: time is cut into chunks, and only sums over samples or over steps are kept.
    Raises `BadInput` for an input that the program cannot take.
    """
    given = check_input(program, x, np.float32)
    tally = Tally(program, given.shape[0], given.shape[1])
    engine = EventEngine(program, given.shape[1], native=native)
    record = [wire for wire in tally.wires if wire != INPUT]
    for first in range(0, len(given), tally.chunk):
        now = dense_input(given[first : first + tally.chunk], program, given.shape[1])
        tally.add(first, {INPUT: now, **engine.run(now, record=record).wires})
    return tally.report()


@dataclass(slots=True, eq=False)
class Tally:
    """The sums so far."""

    program: Program
    steps: int
    batch: int
    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    per_step: dict[str, Counts] = field(default_factory=dict)
    per_sample: dict[str, Counts] = field(default_factory=dict)
    rasters: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    spread: dict[str, list[Any]] = field(default_factory=dict)
    last: dict[str, Real] = field(default_factory=dict)
    memos: dict[str, dict[str, Any]] = field(default_factory=dict)
    over_time: dict[str, dict[str, Counts]] = field(default_factory=dict)
    by_sample: dict[str, dict[str, Counts]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ["acs", "macs", "input events", *(f"spikes {step.name}" for step in self.program.spiking)]
        self.per_step = {name: np.zeros(self.steps, np.int64) for name in names}
        self.per_sample = {name: np.zeros(self.batch, np.int64) for name in ("acs", "macs", "spikes")}

    @property
    def counted(self) -> list[Step]:
        return [step for step in self.program.steps if type(step) in COST]

    @property
    def wires(self) -> list[str]:
        """Every wire that a counted step reads or writes."""
        return list(dict.fromkeys(wire for step in self.counted for wire in (*step.inputs, *step.outputs)))

    @property
    def chunk(self) -> int:
        size = sum(prod(self.program.wires[wire]) for wire in self.wires)
        return max(1, min(1024, CHUNK_BYTES // (4 * self.batch * max(1, size))))

    def add(self, first: int, wires: Mapping[str, Real]) -> None:
        """One chunk that begins at step `first`."""
        here = slice(first, first + len(wires[INPUT]))
        self.per_step["input events"][here] += _per_step(wires[INPUT])
        for step in self.counted:
            self._add_step(step, wires, here)
        for step in self.program.spiking:
            self._add_spikes(step, wires, here)
        self.last = {step.name: wires[step.name][-1] for step in self.counted if isinstance(step, READS_BEFORE)}

    def _add_step(self, step: Step, wires: Mapping[str, Real], here: slice) -> None:
        output, before, driven = wires[step.name], wires[step.name], None
        if isinstance(step, READS_BEFORE):
            start = self.last.get(step.name, np.zeros_like(output[0]))
            before = np.concatenate([start[None], output[:-1]])
        if isinstance(step, NEURONS):
            driven = _per_row(reached(self.program, wires, step.inputs[0]))
        memo = self.memos.setdefault(step.name, {})
        cost = COST[type(step)](Moment(step, [wires[wire] for wire in step.inputs], output, before, driven, memo))
        for name, value in _spread(cost, output.shape[:2]):
            self._count(step.name, name, value, here)
            if name in ("acs", "macs"):
                self.per_step[name][here] += value.sum(axis=1)
                self.per_sample[name] += value.sum(axis=0)

    def _count(self, layer: str, name: str, value: Counts, here: slice) -> None:
        """`value (T, B)` goes into the layer's sums, over everything, over time and by sample."""
        total, found = self.totals.setdefault(layer, {}), int(value.sum())
        total[name] = total.get(name, 0) + found
        if not found:
            return
        bins = bins_of(self.steps)
        over_time = self.over_time.setdefault(layer, {}).setdefault(name, np.zeros(len(bins), np.int64))
        np.add.at(over_time, np.searchsorted(bins, np.arange(here.start, here.stop), "right") - 1, value.sum(axis=1))
        by_sample = self.by_sample.setdefault(layer, {}).setdefault(name, np.zeros(self.batch, np.int64))
        by_sample += value.sum(axis=0)

    def _add_spikes(self, step: Step, wires: Mapping[str, Real], here: slice) -> None:
        fired = wires[step.name].reshape(*wires[step.name].shape[:2], -1) != 0
        spikes = _per_row(fired)
        self._count(step.name, "spikes", spikes, here)
        self._count(step.name, "decisions", np.full_like(spikes, fired.shape[2]), here)
        self.per_step[f"spikes {step.name}"][here] += spikes.sum(axis=1)
        self.per_sample["spikes"] += spikes.sum(axis=0)
        self._add_raster(step.name, fired, here.start)
        self._add_distances(step, wires)

    def _add_raster(self, name: str, fired: npt.NDArray[np.bool_], first: int) -> None:
        if first >= RASTER_STEPS:
            return
        neurons = np.unique(np.linspace(0, fired.shape[2] - 1, min(fired.shape[2], RASTER_NEURONS)).astype(int))
        part = fired[: RASTER_STEPS - first, 0, neurons].T
        self.rasters[name] = np.concatenate([self.rasters[name], part], axis=1) if name in self.rasters else part.copy()

    def _add_distances(self, step: Any, wires: Mapping[str, Real]) -> None:
        """A neuron that is reset at once shows its membrane after the reset."""
        membrane = wires[step.outputs[1] if isinstance(step, S.LIF) else step.inputs[0]]
        scale = float(np.abs(step.threshold).max()) or 1.0
        distance = ((membrane - step.threshold.astype(np.float32)) / np.float32(scale)).ravel()
        counts, _ = np.histogram(distance, EDGES)
        kept = self.spread.setdefault(step.name, [scale, np.zeros(len(EDGES) - 1, np.int64), 0, 0])
        kept[1] += counts
        kept[2] += int(np.count_nonzero(distance < EDGES[0]))
        kept[3] += int(np.count_nonzero(distance > EDGES[-1]))

    def _weights(self, step: Step) -> dict[str, int]:
        if not isinstance(step, S.Affine | S.Conv2d):
            return {}
        return {"weights": step.weight.size, "zero_weights": int(np.count_nonzero(step.weight == 0))}

    def report(self) -> Report:
        """What was counted."""
        layers = tuple(
            LayerCount(
                step.name, type(step).__name__, self.program.origin.get(step.name, ""), **self.totals[step.name], **self._weights(step)
            )
            for step in self.counted
        )
        return Report(
            steps=self.steps,
            batch=self.batch,
            program_digest=self.program.digest,
            layers=layers,
            per_step=self.per_step,
            per_sample=self.per_sample,
            rasters=self.rasters,
            histograms={name: Histogram(kept[0], EDGES, *kept[1:]) for name, kept in self.spread.items()},
            input_events=int(self.per_step["input events"].sum()),
            input_values=self.steps * self.batch * prod(self.program.input_shape),
            series={step.name: Series(self.over_time.get(step.name, {}), self.by_sample.get(step.name, {})) for step in self.counted},
        )


def _per_row(x: Real) -> Counts:
    return np.count_nonzero(x.reshape(*x.shape[:2], -1), axis=2).astype(np.int64)


def _per_step(x: Real) -> Counts:
    return np.count_nonzero(x.reshape(len(x), -1), axis=1).astype(np.int64)


def _spread(cost: Cost, shape: tuple[int, int]) -> Iterator[tuple[str, Counts]]:
    """Every count as `(T, B)`."""
    for item in fields(cost):
        yield item.name, np.broadcast_to(np.asarray(getattr(cost, item.name), np.int64), shape)
