"""Rounding in binary32, bounded; and where it can be proven that there is none.

`UNIT` is the unit roundoff: an operation on floats returns the exact result times (1 + delta), |delta| <= UNIT, or is off by at most `TINY`
below the normal range (flush to zero included). The sum of n terms in ANY order errs by at most `gamma(n)` times the sum of their
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3-4). A sum of multiples of 2^g whose magnitudes add up to at
most 2^(24+g) is exact in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[Any]

UNIT = 2.0**-24
TINY = 2.0**-126
SLACK = 1 + 2.0**-16
"""What the float64 arithmetic of the bound itself, and of the reference it stands beside, can add."""
NOWHERE = 4096
"""The grid of zero: every grid divides it."""


class Bounded(NamedTuple):
    """A wire at one step: the float64 reference's `value`, and how far a float32 evaluation may be from it."""

    value: Real
    error: Real


def gamma(n: Any) -> Any:
    """`n u / (1 - n u)`: the relative error of n roundings in a row."""
    return n * UNIT / (1 - n * UNIT)


def representable(x: Real) -> Real:
    """Where float64 `x` is a float32 value."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x.astype(np.float32).astype(np.float64) == x)


def parameter_error(array: Real) -> Real:
    """How far the float32 copy of a parameter is from it (zero for parameters that are stored as float32)."""
    wide = np.asarray(array, np.float64)
    return np.asarray(np.abs(wide - wide.astype(np.float32)))


def grid(x: Real) -> Real:
    """The exponent of the lowest set bit of each entry: x is a multiple of `2^grid`. `NOWHERE` for zero."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = (whole & -whole).astype(np.float64)
    return np.where(whole == 0, NOWHERE, exponent - 53 + np.log2(np.maximum(lowest, 1)).astype(np.int64))


def sum_is_exact(magnitude: Real, lowest: Real) -> Real:
    """Where a sum of multiples of `2^lowest` with magnitudes adding up to `magnitude` is exact in float32, whatever the order."""
    return magnitude <= np.ldexp(1.0, np.clip(lowest + 24, -1000, 1000))


def rounded(exact: Real, value: Real, error: Real | float) -> Real:
    """The error after one more rounding of a result `value` that already errs by `error`; none where `exact` and `error` is 0."""
    grown = error + UNIT * (np.abs(value) + error) + TINY
    return np.where(exact & (np.asarray(error) == 0), 0.0, grown)


def product(a: Bounded, b: Bounded) -> Bounded:
    """One float32 multiplication. Two float32 values multiply exactly in float64, so exactness can be seen."""
    value = a.value * b.value
    error = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    seen = representable(a.value) & representable(b.value) & representable(value)
    return Bounded(value, rounded(seen, value, error))


def add(a: Bounded, b: Bounded) -> Bounded:
    """One float32 addition; exact where float64 shows nothing lost and the result is a float32 value."""
    value = a.value + b.value
    seen = (value - a.value == b.value) & (value - b.value == a.value) & representable(value)
    return Bounded(value, rounded(seen, value, a.error + b.error))


def known(array: Any, slack: float = 0.0) -> Bounded:
    """A parameter, with `slack` units of relative doubt beside its own rounding to float32."""
    wide = np.asarray(array, np.float64)
    return Bounded(wide, parameter_error(wide) + slack * UNIT * np.abs(wide))
