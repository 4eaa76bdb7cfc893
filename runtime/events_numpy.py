"""The event-driven engine's arithmetic in plain NumPy: one function per step kind, the same bytes as the compiled kernels.

A float32 sum runs over the nonzero inputs only, in ascending index order, starts at the bias, multiplies, then adds. Elementwise steps
are the reference's own;
here are those that sum or that call a function whose bits would depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime import reference
from spikedeploy.runtime.events_math import activation, exp32, log32, row_sum
from spikedeploy.runtime.events_quant import Quantised
from spikedeploy.runtime.reference import Real, State, fires
from spikedeploy.steps import Step

ONE = np.float32(1)
TINY = np.finfo(np.float32).tiny


def _start(bias: Real | None, out: int) -> Real:
    return np.zeros(out, np.float32) if bias is None else bias


def affine(step: S.Affine, x: Real, state: State) -> Real:
    """Row by row; `np.add.accumulate` is sequential by definition, which `np.sum` is not."""
    out, wide = step.weight.shape
    columns, rows = step.weight.T, x.reshape(-1, wide)
    start = _start(step.bias, out)
    y = np.empty((len(rows), out), np.float32)
    for i, row in enumerate(rows):
        active = np.flatnonzero(row)
        terms = np.vstack([start, row[active, None] * columns[active]])
        y[i] = np.add.accumulate(terms, axis=0, dtype=np.float32)[-1]
    return y.reshape(*x.shape[:-1], out)


def _common(rows: Real) -> Real:
    """Per row of inputs: whether every nonzero value is 1."""
    return ((rows == 0) | (rows == ONE)).all(axis=1)


def integer_affine(step: S.Affine, x: Real, weights: Quantised, amplitude: np.float32 | None) -> Real:
    """With integer weights: exact int32 sums for rows of spikes. amplitude: the value of every spike on this wire; None for any other
    wire."""
    out, wide = step.weight.shape
    rows = x.reshape(-1, wide)
    whole = np.ones(len(rows), bool) if amplitude is not None else _common(rows)
    total = (rows[whole] != 0).astype(np.int32) @ weights.q.T.astype(np.int32)
    y = np.empty((len(rows), out), np.float32)
    scale = weights.scale * (ONE if amplitude is None else amplitude)
    y[whole] = total.astype(np.float32) * scale + _start(step.bias, out)
    if not whole.all():
        y[~whole] = affine(step, rows[~whole], {})
    return y.reshape(*x.shape[:-1], out)


def _taps(step: S.Conv2d, x: Real) -> Any:
    """Per tap in ascending input order `(channel, inputs (B, H', W'), weight index)`: the input that each output position sees."""
    _, per_group, kh, kw = step.weight.shape
    (sh, sw), (ph, pw), (dh, dw) = step.stride, step.padding, step.dilation
    height = (x.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    for channel in range(x.shape[1]):
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
                yield channel, x[:, channel, rows, columns], (channel % per_group, i, j)


def _group(step: S.Conv2d, channel: int) -> slice:
    """The output channels that an input channel reaches."""
    out, per_group = step.weight.shape[0] // step.groups, step.weight.shape[1]
    return slice(channel // per_group * out, (channel // per_group + 1) * out)


def _accumulate(step: S.Conv2d, x: Real, weight: Real, y: Real) -> Real:
    for channel, seen, (c, i, j) in _taps(step, x):
        reached, seen = _group(step, channel), seen[:, None]
        terms = seen * weight[reached, c, i, j][:, None, None]
        y[:, reached] = np.where(seen != 0, y[:, reached] + terms, y[:, reached])
    return y


def _conv_shape(step: S.Conv2d, x: Real) -> tuple[int, ...]:
    _, seen, _ = next(iter(_taps(step, x)))
    return (len(x), step.weight.shape[0], *seen.shape[1:])


def conv2d(step: S.Conv2d, x: Real, state: State) -> Real:
    start = _start(step.bias, len(step.weight))[:, None, None]
    return _accumulate(step, x, step.weight, np.broadcast_to(start, _conv_shape(step, x)).astype(np.float32))


def integer_conv2d(step: S.Conv2d, x: Real, weights: Quantised, amplitude: np.float32 | None) -> Real:
    """As `integer_affine`, one sample of the batch being one row."""
    whole = np.ones(len(x), bool) if amplitude is not None else _common(x.reshape(len(x), -1))
    y = np.empty(_conv_shape(step, x), np.float32)
    scale = (weights.scale * (ONE if amplitude is None else amplitude))[:, None, None]
    start = _start(step.bias, len(step.weight))[:, None, None]
    if whole.any():
        ones = (x[whole] != 0).astype(np.int32)
        total = _accumulate(step, ones, weights.q.astype(np.int32), np.zeros((len(ones), *y.shape[1:]), np.int32))
        y[whole] = total.astype(np.float32) * scale + start
    if not whole.all():
        y[~whole] = conv2d(step, x[~whole], {})
    return y


def sum_pool2d(step: S.SumPool2d, x: Real, state: State) -> Real:
    (ph, pw), (sh, sw) = step.padding, step.stride
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height, width = ((x.shape[2 + a] - step.kernel[a]) // step.stride[a] + 1 for a in (0, 1))
    y = np.zeros((*x.shape[:2], height, width), np.float32)
    for i in range(step.kernel[0]):
        for j in range(step.kernel[1]):
            y = y + x[:, :, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
    return y


def matmul(step: S.MatMul, a: Real, b: Real, state: State) -> Real:
    y = np.zeros((a.shape[0], a.shape[1], b.shape[2]), np.float32)
    for j in range(a.shape[2]):
        left = a[:, :, j, None]
        y = np.where(left != 0, y + left * b[:, None, j], y)
    return y


def layer_norm(step: S.LayerNorm, x: Real, state: State) -> Real:
    count = np.float32(x.shape[-1])
    centred = x - (row_sum(x) / count)[..., None]
    variance = row_sum(centred * centred) / count
    y = centred / np.sqrt(variance + np.float32(step.eps))[..., None]
    y = y if step.weight is None else y * step.weight
    return y if step.bias is None else y + step.bias


def l2_normalize(step: S.L2Normalize, x: Real, state: State) -> Real:
    return x / np.maximum(np.sqrt(row_sum(x * x)), np.float32(step.eps))[..., None]


def settle(u: Real) -> Real:
    """A state below the normal range (2^-126) becomes +0: it would stay there for good, and every later step would take ten times as
    long."""
    return np.where(np.abs(u) < TINY, np.float32(0), u)


def integrator(step: S.Integrator, x: Real, state: State) -> Real:
    state["u"] = settle(step.decay * state["u"] + x)
    return state["u"]


def lif(step: S.LIF, x: Real, state: State) -> tuple[Real, Real]:
    u = state["u"]
    if step.reset == "value":
        u = settle(step.decay * u + x)
        fired = fires(step, u)
        state["u"] = settle(np.where(fired > 0, step.reset_value, u).astype(np.float32))
        return step.amplitude * fired, state["u"]
    again = fires(step, u)
    u = settle(step.decay * u + x - again * step.threshold if step.reset == "subtract" else step.decay * ((1 - again) * u) + x)
    fired = fires(step, u)
    if not step.reset_delay:
        u = settle(u - (fired - again) * (step.threshold if step.reset == "subtract" else u))
    state["u"] = u
    return step.amplitude * fired, u


def matrix_memory(step: S.MatrixMemory, v: Real, k: Real, alpha: Real, state: State) -> Real:
    if step.semantics == "snntorch-1.0.0":
        eps = np.float32(1e-8)
        alpha = np.maximum(alpha, eps)
        state["log_p"] = state["log_p"] + log32(alpha)
        p = exp32(state["log_p"])
        k = k * (p / (p + eps))
    state["S"] = settle(state["S"] * alpha[:, None, :] + v[:, :, None] * k[:, None, :])
    return state["S"]


def delta_memory(step: S.DeltaMemory, v: Real, k: Real, alpha: Real, beta: Real, state: State) -> Real:
    kept = state["S"] * alpha[:, None, :]
    read = row_sum(kept * k[:, None, :])
    state["S"] = settle(kept + (beta * (v - read))[:, :, None] * k[:, None, :])
    return state["S"]


def diagonal_ssm(step: S.DiagonalSSM, x: Real, state: State) -> Real:
    re, im = state["re"], state["im"]
    state["re"] = settle(step.a_re * re - step.a_im * im + x[..., None])
    state["im"] = settle(step.a_re * im + step.a_im * re)
    return 2 * row_sum(step.c_re * state["re"] - step.c_im * state["im"]) + step.d * x


STEP: Mapping[type[Step], Callable[..., Any]] = {
    **reference.STEP,
    S.Affine: affine,
    S.Conv2d: conv2d,
    S.SumPool2d: sum_pool2d,
    S.MatMul: matmul,
    S.Activation: lambda step, x, state: activation(step.function, x),
    S.LayerNorm: layer_norm,
    S.L2Normalize: l2_normalize,
    S.Integrator: integrator,
    S.LIF: lif,
    S.MatrixMemory: matrix_memory,
    S.DeltaMemory: delta_memory,
    S.DiagonalSSM: diagonal_ssm,
}
"""Per step kind `(step, *inputs, state) -> output`, float32; the rows not written here are the reference's elementwise ones."""
