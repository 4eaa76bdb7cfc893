"""Functions whose bits do not depend on who computes them: the NumPy side of `native/events_math.inc`.

Only additions, multiplications, divisions, square roots and integer operations are used, in float64 and in one written order; IEEE 754
fixes the result of each, so this file and the C file give the same bytes on every machine, which `np.exp` and the C library's `expf` do
not. The float64 result is rounded once to float32, so it is within 0.5001 units in the last place (`gelu`: 2e-11 relative to the true value
before rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[Any]

LANES = 16
"""Row sums run over this many lanes side by side, each in ascending order, and are then folded in halves."""

_EXP = (
    1.0,
    1.0,
    0.5,
    0.16666666666666666,
    0.041666666666666664,
    0.008333333333333333,
    0.001388888888888889,
    0.0001984126984126984,
    2.48015873015873e-05,
    2.7557319223985893e-06,
    2.755731922398589e-07,
    2.505210838544172e-08,
    2.08767569878681e-09,
    1.6059043836821613e-10,
)
_LOG = (
    1.0,
    0.3333333333333333,
    0.2,
    0.14285714285714285,
    0.1111111111111111,
    0.09090909090909091,
    0.07692307692307693,
    0.06666666666666667,
    0.058823529411764705,
    0.05263157894736842,
    0.047619047619047616,
)
_ERFC = (
    1.2530080582695005,
    -0.13562110604826236,
    -0.04756229431542297,
    0.12964515499401721,
    -0.11927366445991576,
    0.0683080801016496,
    -0.023770503773524125,
    0.0025290530107441194,
    0.0018886300023609158,
    -0.0007786682476634434,
    -0.00010497229530498733,
    0.00012279549725216968,
    4.59479871539339e-06,
    -1.7423401641541476e-05,
    -3.1303472336053314e-07,
    1.6976457635941376e-06,
    4.8356260419337805e-08,
)
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 6.93147180369123816490e-01, 1.90821492927058770002e-10
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_ONE = 1023 << 52
_HALF_SQRT = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


def _horner(coefficients: tuple[float, ...], x: Real) -> Real:
    total = np.full_like(x, coefficients[-1])
    for value in coefficients[-2::-1]:
        total = total * x + value
    return total


def exp64(x: Real) -> Real:
    """`e^x` in float64, x limited to [-700, 700]: Taylor of degree 13 on |r| <= ln(2)/2, times a power of two."""
    x = np.minimum(np.maximum(x, -700.0), 700.0)
    shifted = x * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    power = ((shifted.view(np.int64) - np.float64(_ROUND).view(np.int64)) << 52) + _ONE
    return _horner(_EXP, r) * power.view(np.float64)


def log64(x: Real) -> Real:
    """`ln x` in float64 for normal positive x: `2 artanh((m-1)/(m+1))` with x = m 2^e, m in [sqrt(1/2), sqrt(2))."""
    bits = x.view(np.int64)
    exponent = (bits - _HALF_SQRT) >> 52
    m = (bits - (exponent << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    e = exponent.astype(np.float64)
    return (s * 2.0) * _horner(_LOG, s * s) + (e * _LN2_LOW + e * _LN2_HIGH)


def _sigmoid64(x: Real) -> Real:
    return 1.0 / (1.0 + exp64(-x))


def _tanh64(x: Real) -> Real:
    e = exp64(np.abs(x) * -2.0)
    y = (1.0 - e) / (1.0 + e)
    y = np.where(x < 0.0, -y, y)
    return np.where(np.abs(x) < 0.015625, x - (x * x) * x * 0.3333333333333333, y)


def _normal64(x: Real) -> Real:
    """The normal distribution function: `erfc(-x / sqrt(2)) / 2`, erfc by a Chebyshev series in (z - 3)/(z + 3)."""
    z = np.abs(x) * 0.7071067811865476
    half = exp64(-(z * z)) * _horner(_ERFC, (z - 3.0) / (z + 3.0)) / (1.0 + 2.0 * z) * 0.5
    return np.where(x < 0.0, half, 1.0 - half)


_FUNCTIONS: Mapping[str, Callable[[Real], Real]] = {
    "relu": lambda x: np.where(x > 0.0, x, 0.0),
    "gelu": lambda x: x * _normal64(x),
    "gelu_tanh": lambda x: x * _sigmoid64((x + (x * x) * x * 0.044715) * 1.5957691216057308),
    "silu": lambda x: x * _sigmoid64(x),
    "sigmoid": _sigmoid64,
    "tanh": _tanh64,
    "exp": exp64,
}


def activation(function: str, x: Real) -> Real:
    """The activation of that name on float32, computed in float64 and rounded once."""
    with np.errstate(over="ignore", under="ignore"):
        return _FUNCTIONS[function](x.astype(np.float64)).astype(np.float32)


def exp32(x: Real) -> Real:
    """`e^x`, float32 in and out."""
    return activation("exp", x)


def log32(x: Real) -> Real:
    """`ln x`, float32 in and out, x positive."""
    return log64(x.astype(np.float64)).astype(np.float32)


def row_sum(x: Real) -> Real:
    """The sum over the last axis in float32: lane l adds elements l, l+16, l+32, ... in order; then lanes fold 8, 4, 2, 1."""
    rows = -(-x.shape[-1] // LANES)
    padded = np.zeros((*x.shape[:-1], rows * LANES), np.float32)
    padded[..., : x.shape[-1]] = x
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for row in range(rows):
        lanes = lanes + padded[..., row * LANES : (row + 1) * LANES]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]
