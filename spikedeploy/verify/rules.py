"""How far a float32 evaluation of one step can be from float64: the steps without a memory. One row per kind.

A rule gets the `Moment` (the step, its states, the reference's results) and its inputs as `Bounded`, and returns the error of the wire(s)
the step writes. All bounds are worst cases over every order of summation; `moment.doubt` adds what an artifact may have done to the
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime import reference
from spikedeploy.verify.rounding import (
    NOWHERE,
    TINY,
    UNIT,
    Bounded,
    Real,
    add,
    gamma,
    grid,
    known,
    parameter_error,
    product,
    rounded,
    sum_is_exact,
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """What a party may do differently from the plain float32 loop, in units of `UNIT`.

    parameters  relative: weights folded, rescaled, stored again
    decay       of `max(d, 1 - d)`: a decay that went through a time constant and back
    functions   absolute: a library's own exp, sigmoid, erf
    floor       not in units but as it is: states this small may settle at zero (silent neurons must not fill with denormals)
    parallel    whole sequences at once: the rules of `parallel.py` come in
    """

    parameters: float = 0.0
    decay: float = 0.0
    functions: float = 0.0
    floor: float = 0.0
    parallel: bool = False


@dataclass(slots=True)
class Moment:
    """One step at one time: states `before` and `after`, the reference's `results`; `memory` is the rule's own running state."""

    step: Any
    time: int
    steps_in_all: int
    before: Mapping[str, Real]
    after: Mapping[str, Real]
    results: tuple[Real, ...]
    memory: dict[str, Any]
    doubt: Doubt
    decision: Bounded | None = field(default=None)
    """For a spiking step: what was compared with the threshold."""


Rule = Callable[..., Any]


def _sum(magnitude: Real, passed: Real, count: Real, lowest: Real, spread: Real | float) -> Real:
    """The error of a sum of `count` products: `passed` comes from the inputs, `spread` from the parameters."""
    inexact = passed + spread + gamma(count) * (magnitude + passed) + count * TINY
    exact = sum_is_exact(magnitude, lowest) & (np.asarray(passed + spread) == 0)
    return np.where(exact, 0.0, inexact)


def _once(moment: Moment, name: str, make: Callable[[], Any]) -> Any:
    """A value that depends on the step alone, computed once per run."""
    if name not in moment.memory:
        moment.memory[name] = make()
    return moment.memory[name]


def _bias(bias: Real | None, like: tuple[int, ...]) -> Real:
    return np.zeros(1) if bias is None else np.abs(np.asarray(bias, np.float64)).reshape(like)


def affine(moment: Moment, x: Bounded) -> Real:
    step: S.Affine = moment.step
    weight, doubtful, lowest = _once(moment, "weight", lambda: _affine_facts(step))
    bias = _bias(step.bias, (-1,))
    size = np.abs(x.value)
    magnitude = size @ weight + bias
    passed = x.error @ weight
    spread = size @ doubtful + moment.doubt.parameters * UNIT * magnitude
    count = np.count_nonzero(size + x.error, axis=-1)[..., None] + (step.bias is not None)
    steps_of = grid(x.value).min(axis=-1)[..., None] + lowest
    return _sum(magnitude, passed, count, np.minimum(steps_of, grid(bias)), spread)


def _affine_facts(step: S.Affine) -> tuple[Real, Real, Real]:
    weight = np.asarray(step.weight, np.float64).T
    return np.abs(weight), parameter_error(weight), grid(weight).min(axis=0)


def conv2d(moment: Moment, x: Bounded) -> Real:
    step: S.Conv2d = moment.step
    size, bias = np.abs(x.value), _bias(step.bias, (-1, 1, 1))

    def through(weight: Real, signal: Real) -> Real:
        return reference.conv2d(replace(step, weight=weight, bias=None), signal, {})

    weight = np.asarray(step.weight, np.float64)
    magnitude = through(np.abs(weight), size) + bias
    passed = through(np.abs(weight), x.error)
    spread = through(parameter_error(weight), size) + moment.doubt.parameters * UNIT * magnitude
    count = through(np.ones_like(weight), (size + x.error > 0).astype(np.float64)) + 1
    lowest = grid(weight).min(axis=(1, 2, 3))[:, None, None] + _lowest_of_sample(x.value)
    return _sum(magnitude, passed, count, np.minimum(lowest, grid(bias)), spread)


def _lowest_of_sample(x: Real) -> Real:
    return grid(x).reshape(len(x), -1).min(axis=1).reshape(-1, *(1,) * (x.ndim - 1))


def sum_pool2d(moment: Moment, x: Bounded) -> Real:
    step: S.SumPool2d = moment.step

    def pool(signal: Real) -> Real:
        return reference.sum_pool2d(step, signal, {})

    magnitude = pool(np.abs(x.value))
    count = np.full_like(magnitude, float(np.prod(step.kernel)))
    return _sum(magnitude, pool(x.error), count, np.broadcast_to(_lowest_of_sample(x.value), magnitude.shape), 0.0)


def scale(moment: Moment, x: Bounded) -> Real:
    step: S.Scale = moment.step
    result = product(known(step.scale, moment.doubt.parameters), x)
    return result.error if step.offset is None else add(result, known(step.offset, moment.doubt.parameters)).error


def add_all(moment: Moment, *xs: Bounded) -> Real:
    values = [x.value for x in xs]
    aligned = [Bounded(reference._align(x.value, values), reference._align(x.error, values)) for x in xs]
    magnitude = reduce(np.add, (np.abs(x.value) for x in aligned))
    passed = reduce(np.add, (x.error for x in aligned))
    lowest = reduce(np.minimum, (grid(x.value) for x in aligned))
    spread = moment.doubt.parameters * UNIT * magnitude
    return _sum(magnitude, passed, np.full_like(magnitude, len(xs) - 1.0), lowest, spread)


def mul(moment: Moment, a: Bounded, b: Bounded) -> Real:
    pair = (a.value, b.value)
    left, right = (Bounded(reference._align(x.value, pair), reference._align(x.error, pair)) for x in (a, b))
    return product(left, right).error


def matmul(moment: Moment, a: Bounded, b: Bounded) -> Real:
    magnitude = np.abs(a.value) @ np.abs(b.value)
    passed = np.abs(a.value) @ b.error + a.error @ np.abs(b.value) + a.error @ b.error
    count = np.count_nonzero(np.abs(a.value) + a.error, axis=-1)[..., None]
    lowest = grid(a.value).min(axis=-1)[..., :, None] + grid(b.value).min(axis=-2)[..., None, :]
    return _sum(magnitude, passed, count, lowest, 0.0)


def activation(moment: Moment, x: Bounded) -> Real:
    """|f(x + e) - f(x)| by the slope on the interval, and the function's own error; `f(0)` is exact."""
    y = moment.results[0]
    passed = SLOPE[moment.step.function](x, y)
    own = UNIT * (4 * np.abs(y) + CANCELS.get(moment.step.function, 0) * np.abs(x.value) + moment.doubt.functions) + TINY
    simple = (x.error == 0) & ((x.value == 0) | (moment.step.function == "relu"))
    return np.where(simple, 0.0, np.where(moment.step.function == "relu", passed, passed + own))


SLOPE: Mapping[str, Callable[[Bounded, Real], Real]] = {
    "relu": lambda x, y: x.error,
    "gelu": lambda x, y: 1.13 * x.error,
    "gelu_tanh": lambda x, y: 1.13 * x.error,
    "silu": lambda x, y: 1.1 * x.error,
    "sigmoid": lambda x, y: x.error * np.minimum(0.25, y * (1 - y) * np.exp(np.minimum(x.error, 50.0)) + TINY),
    "tanh": lambda x, y: x.error * np.minimum(1.0, (1 - y * y) * np.exp(2 * np.minimum(x.error, 50.0)) + TINY),
    "exp": lambda x, y: y * np.expm1(np.minimum(x.error, 50.0)),
}
"""Per function: at most how far it moves when its argument moves by `x.error`."""

CANCELS: Mapping[str, float] = {"gelu": 4, "gelu_tanh": 4}
"""Functions whose last product cancels: their error scales with the argument too."""


def layer_norm(moment: Moment, x: Bounded) -> Real:
    step: S.LayerNorm = moment.step
    width = x.value.shape[-1]
    size = np.abs(x.value)
    mean_error = x.error.mean(axis=-1, keepdims=True) + gamma(width + 1) * (size + x.error).mean(axis=-1, keepdims=True)
    centred = x.value - x.value.mean(axis=-1, keepdims=True)
    error = x.error + mean_error
    error = error + UNIT * (np.abs(centred) + error)
    variance = (centred * centred).mean(axis=-1, keepdims=True) + step.eps
    drift = (2 * np.abs(centred) * error + error * error).mean(axis=-1, keepdims=True)
    drift = drift + gamma(width + 4) * (variance + drift)
    result = _divided(centred, error, variance, drift)
    if step.weight is not None:
        result = product(result, known(step.weight, moment.doubt.parameters))
    return result.error if step.bias is None else add(result, known(step.bias, moment.doubt.parameters)).error


def _divided(x: Real, error: Real, square: Real, drift: Real) -> Bounded:
    """`x / sqrt(square)`, when square errs by at most `drift`."""
    low = np.sqrt(np.maximum(square - drift, np.finfo(np.float64).tiny))
    value = x / np.sqrt(square)
    error = error / low + np.abs(x) * (1 / low - 1 / np.sqrt(square + drift))
    return Bounded(value, error + 4 * UNIT * (np.abs(value) + error) + TINY)


def l2_normalize(moment: Moment, x: Bounded) -> Real:
    width = x.value.shape[-1]
    square = np.maximum((x.value * x.value).sum(axis=-1, keepdims=True), moment.step.eps**2)
    drift = (2 * np.abs(x.value) * x.error + x.error**2).sum(axis=-1, keepdims=True)
    drift = drift + gamma(width + 2) * (square + drift)
    return _divided(x.value, x.error, square, drift).error


def topk(moment: Moment, x: Bounded) -> Real:
    """Entries whose rank the errors leave open may be kept or dropped."""
    size, k = np.abs(x.value), moment.step.k
    high, low = size + x.error, size - x.error
    surely_out = (low[..., None, :] > high[..., :, None]).sum(axis=-1) >= k
    rivals = (high[..., None, :] >= low[..., :, None]).sum(axis=-1) - 1
    open_rank = ~surely_out & (rivals >= k) & ((x.error > 0).any(axis=-1, keepdims=True))
    return np.where(open_rank, size + x.error, np.where(moment.results[0] != 0, x.error, 0.0))


def nearest(moment: Moment, x: Bounded) -> Real:
    """Exact while the whole interval has one nearest level; else as far as the levels it can reach."""
    low, high = (reference.nearest(moment.step, edge, {}) for edge in (x.value - x.error, x.value + x.error))
    value = moment.results[0]
    reach = np.maximum(np.abs(high - value), np.abs(value - low))
    return np.where(reach > 0, reach, parameter_error(value))


def threshold(moment: Moment, x: Bounded) -> Real:
    moment.decision = x
    return np.zeros_like(x.value)


def delay(moment: Moment, x: Bounded) -> Real:
    line = moment.memory.setdefault("line", [np.zeros_like(x.error)] * moment.step.steps)
    line.append(x.error)
    return line.pop(0)


RULES: Mapping[type[S.Step], Rule] = {
    S.Affine: affine,
    S.Conv2d: conv2d,
    S.SumPool2d: sum_pool2d,
    S.Scale: scale,
    S.Reshape: lambda moment, x: x.error.reshape(len(x.error), *moment.step.shape),
    S.Slice: lambda moment, x: x.error[..., moment.step.start : moment.step.stop],
    S.Add: add_all,
    S.Mul: mul,
    S.MatMul: matmul,
    S.Delay: delay,
    S.Activation: activation,
    S.LayerNorm: layer_norm,
    S.L2Normalize: l2_normalize,
    S.Embedding: lambda moment, x: parameter_error(moment.results[0]),
    S.TopK: topk,
    S.Nearest: nearest,
    S.Threshold: threshold,
}
"""Per step kind without a memory (Delay and Threshold included): the rule."""

__all__ = ["NOWHERE", "RULES", "Doubt", "Moment", "Rule", "rounded"]
