"""What each step kind costs in one chunk of time: one table, a row per kind. All counts are per step and sample, `(T, B)`, int64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.report.counts import Counts
from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Array, Step


@dataclass(slots=True, eq=False)
class Cost:
    """Counts of one step over a chunk, each `(T, B)` or a number that every step and sample shares."""

    acs: Any = 0
    macs: Any = 0
    dense: Any = 0
    driven: Any = 0
    idle: Any = 0
    elements: Any = 0
    functions: Any = 0
    state_bytes: Any = 0
    weight_bytes: Any = 0


@dataclass(slots=True, eq=False)
class Moment:
    """One step in one chunk: its inputs and output `(T, B, *shape)`, what it had before, how many of its inputs received an event
    `(T, B)`, and what it keeps from chunk to chunk."""

    step: Any
    inputs: list[Real]
    output: Real
    before: Real
    reached: Any
    memo: dict[str, Any] = field(default_factory=dict)


def _rows(x: Real) -> Real:
    return x.reshape(*x.shape[:2], -1)


def _nonzero(x: Real) -> Counts:
    return np.count_nonzero(_rows(x), axis=2).astype(np.int64)


def _whole(x: Array) -> Counts:
    return np.rint(x).astype(np.int64)


def _accumulates(x: Real) -> Any:
    """Per step `(T, 1)`: whether all inputs of the batch are in {-1, 0, 1}."""
    return np.array([bool(np.all((now == 0) | (np.abs(now) == 1))) for now in x])[:, None]


def _split(x: Real, operations: Counts) -> dict[str, Counts]:
    accumulates = _accumulates(x)
    return {"acs": operations * accumulates, "macs": operations * ~accumulates}


def affine(m: Moment) -> Cost:
    connected = m.memo.setdefault("connected", m.step.weight != 0)
    active = m.inputs[0] != 0
    out, wide = connected.shape
    fan = connected.sum(axis=0).astype(np.float64)
    operations = _whole((active.astype(np.float64) @ fan).reshape(*active.shape[:2], -1).sum(axis=2))
    rows = _nonzero(active)
    places = prod(active.shape[2:-1])
    return Cost(dense=places * out * wide, weight_bytes=rows * (out * 4), **_split(m.inputs[0], operations))


def _fan_out(step: S.Conv2d, shape: tuple[int, ...], weight: Array) -> Array:
    """Per input place how many outputs it reaches through nonzero weights: the convolution's transpose applied to ones."""
    out, per_group, kh, kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = step.stride, step.padding, step.dilation
    c, h, w = shape
    height, width = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    fan = np.zeros((c, h + 2 * ph, w + 2 * pw), np.float64)
    groups = (weight != 0).reshape(step.groups, out // step.groups, per_group, kh, kw).sum(axis=1).reshape(c, kh, kw)
    for i in range(kh):
        for j in range(kw):
            fan[:, i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw] += groups[:, i, j, None, None]
    return fan[:, ph : ph + h, pw : pw + w]


def conv2d(m: Moment) -> Cost:
    step, x = m.step, m.inputs[0]
    if "fan" not in m.memo:
        m.memo["fan"] = _fan_out(step, x.shape[2:], step.weight)
        m.memo["all"] = _fan_out(step, x.shape[2:], np.ones_like(step.weight))
    active = _rows(x != 0).astype(np.float64)
    operations, weights = _whole(active @ m.memo["fan"].ravel()), _whole(active @ m.memo["all"].ravel())
    return Cost(dense=int(m.memo["all"].sum()), weight_bytes=weights * 4, **_split(x, operations))


def matmul(m: Moment) -> Cost:
    left, right = m.inputs
    size = right.shape[-1]
    return Cost(dense=prod(left.shape[2:]) * size, **_split(left, _nonzero(left) * size))


def _neurons(m: Moment) -> Cost:
    size = prod(m.output.shape[2:])
    return Cost(driven=m.reached, idle=size - m.reached, state_bytes=8 * size)


def matrix_memory(m: Moment) -> Cost:
    v, k, _ = m.inputs
    cells = prod(m.output.shape[2:])
    gate = 4 * k.shape[-1] if m.step.semantics == "snntorch-1.0.0" else 0
    macs = _nonzero(m.before) + _nonzero(v) * _nonzero(k)
    return Cost(macs=macs, dense=2 * cells, functions=gate, state_bytes=8 * cells + 2 * gate)


def delta_memory(m: Moment) -> Cost:
    k = m.inputs[1]
    cells = prod(m.output.shape[2:])
    seen = np.count_nonzero((m.before != 0) & (k[..., None, :] != 0), axis=(2, 3))
    return Cost(macs=_nonzero(m.before) + seen + _nonzero(k) * m.output.shape[2], dense=3 * cells, state_bytes=8 * cells)


def diagonal_ssm(m: Moment) -> Cost:
    modes, channels = m.step.a_re.size, m.step.d.size
    macs = 6 * modes + channels
    return Cost(macs=macs, dense=macs, state_bytes=16 * modes, weight_bytes=4 * (4 * modes + channels))


def _elementwise(times: int) -> Callable[[Moment], Cost]:
    return lambda m: Cost(elements=times * prod(m.output.shape[2:]))


def scale(m: Moment) -> Cost:
    return Cost(elements=_nonzero(m.inputs[0]) * (1 if m.step.offset is None else 2))


def sum_pool(m: Moment) -> Cost:
    return Cost(elements=_nonzero(m.inputs[0]) * prod(m.step.kernel) // prod(m.step.stride))


def activation(m: Moment) -> Cost:
    size = prod(m.output.shape[2:])
    return Cost(elements=size) if m.step.function == "relu" else Cost(functions=size)


def norm(m: Moment) -> Cost:
    size = prod(m.output.shape[2:])
    return Cost(elements=4 * size, functions=size)


COST: Mapping[type[Step], Callable[[Moment], Cost]] = {
    S.Affine: affine,
    S.Conv2d: conv2d,
    S.SumPool2d: sum_pool,
    S.Scale: scale,
    S.Add: lambda m: Cost(elements=(len(m.inputs) - 1) * prod(m.output.shape[2:])),
    S.Mul: _elementwise(1),
    S.MatMul: matmul,
    S.Delay: lambda m: Cost(state_bytes=8 * prod(m.output.shape[2:])),
    S.Activation: activation,
    S.LayerNorm: norm,
    S.L2Normalize: norm,
    S.TopK: _elementwise(1),
    S.Nearest: _elementwise(1),
    S.Embedding: lambda m: Cost(weight_bytes=4 * prod(m.output.shape[2:])),
    S.Integrator: _neurons,
    S.LIF: _neurons,
    S.Threshold: lambda m: Cost(),
    S.MatrixMemory: matrix_memory,
    S.DeltaMemory: delta_memory,
    S.DiagonalSSM: diagonal_ssm,
}
"""Per step kind its cost; `Reshape` and `Slice` cost nothing. The comparison of a `Threshold` belongs to the update of its neuron."""

NEURONS = (S.Integrator, S.LIF)
"""Kinds whose updates are driven or idle."""

READS_BEFORE = (S.MatrixMemory, S.DeltaMemory)
"""Kinds whose cost depends on the state before the step."""
