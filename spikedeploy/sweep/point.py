"""One point of a sweep: what a program does on the data, beside what the full model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused
from spikedeploy.plain import load_program
from spikedeploy.program import Program
from spikedeploy.report.measuring import CHUNK_BYTES, measure
from spikedeploy.runtime.events import EventEngine
from spikedeploy.runtime.events_lazy import savings
from spikedeploy.runtime.reference import REDUCE, Real
from spikedeploy.topk import Keep

LAZY_STEPS = 128
"""The lazy form is counted in plain Python: on the first sample, this many steps of it."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one setting gives.

    topk_k, topk_v     the setting; None for the full model
    accuracy           share of samples whose largest output (summed over time; ties by lowest index) is the label, or the full
                       model's where there are no labels; None where an output has one value only
    spikes, decisions  of all spiking layers, and how many there could be
    acs, macs          effective operations, as `spikedeploy report` counts them
    lazy_saved         share of the memories' eager operations that the event-driven form does not need (`events_lazy.savings`); first
                       sample, at most 128 steps; None without a Gen2 memory of positive threshold
    differ             decisions that differ from the full model's; by layer in `differ_by_layer`
    first_step         the first step, counted from 0, at which one differs; None where none does
    output_difference  largest difference of an output from the full model's; None where it is not finite
    """

    topk_k: Keep | None
    topk_v: Keep | None
    accuracy: float | None
    spikes: int
    decisions: int
    acs: int
    macs: int
    lazy_saved: float | None
    differ: int
    first_step: int | None
    output_difference: float | None
    differ_by_layer: Mapping[str, int]

    @property
    def sparsity(self) -> float | None:
        """Share of decisions without a spike."""
        return 1 - self.spikes / self.decisions if self.decisions else None

    @property
    def divergence(self) -> float | None:
        """Share of decisions that differ from the full model's."""
        return self.differ / self.decisions if self.decisions else None

    @property
    def operations(self) -> int:
        """ACs and MACs together."""
        return self.acs + self.macs

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"sparsity": self.sparsity, "operations": self.operations, "divergence": self.divergence}


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a program did: spikes by layer as bits `(T, bytes)`, outputs by name, and the answer of each sample `(B,)`, if it has one."""

    spikes: Mapping[str, npt.NDArray[np.uint8]]
    outputs: Mapping[str, Real]
    answers: npt.NDArray[np.int64] | None


def trace(program: Program, x: Real) -> Trace:
    """Run `x (T, B, *input_shape)` on the event-driven engine, chunk by chunk of time."""
    bits: dict[str, list[npt.NDArray[np.uint8]]] = {step.name: [] for step in program.spiking}
    kept: dict[str, list[Real]] = {output.wire: [] for output in program.outputs}
    for wires in _chunks(program, x, [*bits, *kept]):
        for name, parts in bits.items():
            parts.append(np.packbits(wires[name].reshape(len(wires[name]), -1) != 0, axis=1))
        for name, values in kept.items():
            values.append(wires[name])
    whole = {name: np.concatenate(values) for name, values in kept.items()}
    outputs = {output.name: REDUCE[output.reduce](whole[output.wire]) for output in program.outputs}
    return Trace({name: np.concatenate(parts) for name, parts in bits.items()}, outputs, _answers(program, outputs, x.shape[1]))


def _chunks(program: Program, x: Real, record: list[str]) -> Iterator[Mapping[str, Real]]:
    size = sum(prod(program.wires[wire]) for wire in record)
    length, engine = max(1, CHUNK_BYTES // (4 * x.shape[1] * size)), EventEngine(program, x.shape[1])
    for first in range(0, len(x), length):
        yield engine.run(np.ascontiguousarray(x[first : first + length], np.float32), record=record).wires


def _answers(program: Program, outputs: Mapping[str, Real], batch: int) -> npt.NDArray[np.int64] | None:
    """The largest of the first output, summed over time in float64 where it is one per step."""
    value = outputs[program.outputs[0].name]
    scores = (value.sum(axis=0, dtype=np.float64) if program.outputs[0].reduce == "none" else value).reshape(batch, -1)
    return scores.argmax(axis=1) if scores.shape[1] > 1 else None


def evaluate(data: bytes, k: Keep | None, v: Keep | None, x: Real, full: Trace, truth: npt.NDArray[np.int64] | None) -> Point:
    """One point from plain data, so that it can run anywhere: `data` is a program's bytes, `truth (B,)` the right answers."""
    program = load_program(data)
    here, counts = trace(program, x), measure(program, x).total
    differ, first = _differences(here, full)
    return Point(
        topk_k=k,
        topk_v=v,
        accuracy=None if truth is None or here.answers is None else float(np.mean(here.answers == truth)),
        spikes=counts.spikes,
        decisions=counts.decisions,
        acs=counts.acs,
        macs=counts.macs,
        lazy_saved=_saved(program, x),
        differ=sum(differ.values()),
        first_step=first,
        output_difference=_largest(here, full),
        differ_by_layer=differ,
    )


def _differences(here: Trace, full: Trace) -> tuple[dict[str, int], int | None]:
    """Differing decisions by layer, and the first step that has one."""
    by_step = {name: np.bitwise_count(bits ^ full.spikes[name]).sum(axis=1, dtype=np.int64) for name, bits in here.spikes.items()}
    steps = [int(np.flatnonzero(counts)[0]) for counts in by_step.values() if counts.any()]
    return {name: int(counts.sum()) for name, counts in by_step.items()}, min(steps, default=None)


def _largest(here: Trace, full: Trace) -> float | None:
    largest = [np.abs(value.astype(np.float64) - full.outputs[name]).max() for name, value in here.outputs.items()]
    return float(max(largest)) if np.isfinite(largest).all() else None


def _saved(program: Program, x: Real) -> float | None:
    """By `events_lazy.savings`, all memories together."""
    if not any(isinstance(step, S.MatrixMemory) for step in program.steps):
        return None
    try:
        found = savings(program, np.ascontiguousarray(x[:LAZY_STEPS, :1], np.float32)).values()
    except ModelRefused:  # a threshold of 0 or less: there is no lazy form
        return None
    return 1 - sum(operations.lazy for operations in found) / sum(operations.eager for operations in found)
