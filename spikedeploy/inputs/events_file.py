"""From the arrays of a file of address events to a `Recording`: every array checked, times cut into steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.inputs.recording import AXES, MAX_VALUES, Recording, Whole
from spikedeploy.steps import Shape

Real = npt.NDArray[Any]
Path_ = str | os.PathLike[str]
COLUMNS = ("t", "index", *AXES, "sample", "value")
ABOUT = ("shape", "steps", "batch", "dt", "labels")
LONGEST = 1 << 31
"""Steps are counted in 31 bits."""


def recording(path: Path_, arrays: Mapping[str, Real], event_dt: float | None) -> Recording:
    """A recording from its arrays by name. Raises `BadInput`."""
    if unknown := [name for name in arrays if name not in (*COLUMNS, *ABOUT)]:
        known = ", ".join((*COLUMNS, *ABOUT))
        raise BadInput(message(f"{path}", f"address events with an array '{unknown[0]}'", f"known are {known}"))
    if "t" not in arrays or ("index" in arrays) == any(name in arrays for name in AXES):
        raise BadInput(message(f"{path}", f"address events with {', '.join(arrays)}", "t and either index, or x (and y, p), are needed"))
    count = arrays["t"].size
    dt = event_dt if event_dt is not None else _number(path, "dt", arrays["dt"]) if "dt" in arrays else None
    time = _in_steps(path, arrays["t"], dt)
    whole = {name: _whole(path, name, arrays[name], count) for name in ("index", *AXES, "sample") if name in arrays}
    sample = whole.pop("sample", None)
    steps = _extent(path, "steps", arrays, time, "t")
    batch = _extent(path, "batch", arrays, np.zeros(1, np.int64) if sample is None else sample, "sample")
    if steps * batch > MAX_VALUES:
        do = "Say how long a step is: --event-dt, or dt in the file. A recording begins at time 0."
        raise BadInput(message(f"{path}", f"{steps:,} steps of {batch:,} samples", f"at most {MAX_VALUES:,} together are used", do))
    value = _values(path, arrays["value"], count) if "value" in arrays else None
    shape = _shape(path, arrays["shape"]) if "shape" in arrays else None
    return Recording(path, time, whole, steps, batch, sample, value, shape, arrays.get("labels"))


def _in_steps(path: Path_, t: Real, dt: float | None) -> Whole:
    """The step of each time: `floor(t / dt)`; exact for whole numbers, in float64 for others."""
    if dt is not None and not (isfinite(dt) and dt > 0):
        raise BadInput(message(f"{path}", f"a step of length {dt}", "a positive finite number is needed"))
    if dt is None:
        do = "Say how long a step is: --event-dt, or dt in the file." if t.dtype.kind == "f" else ""
        return _below(path, _whole(path, "t", t, t.size, do))
    if t.dtype.kind in "iu" and float(dt).is_integer() and dt < 2**63:
        return _below(path, _whole(path, "t", t, t.size) // int(dt))
    if t.ndim != 1 or t.dtype.kind not in "fiu":
        raise BadInput(message(f"{path}", f"'t' is {t.dtype} of shape {t.shape}", "(E,) numbers are needed"))
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.floor(t.astype(np.float64) / dt)
    if not ((steps >= 0) & (steps < LONGEST)).all():
        worst = t[~((steps >= 0) & (steps < LONGEST))][0]
        raise BadInput(message(f"{path}", f"'t' has a value of {worst}", f"times from 0 to {LONGEST - 1:,} steps of {dt:g} are needed"))
    return steps.astype(np.int64)


def _below(path: Path_, steps: Whole) -> Whole:
    if steps.size and steps.max() >= LONGEST:
        do = "Say how long a step is: --event-dt, or dt in the file. A recording begins at time 0."
        raise BadInput(message(f"{path}", f"'t' goes up to step {steps.max():,}", f"fewer than {LONGEST:,} steps are needed", do))
    return steps


def _whole(path: Path_, name: str, array: Real, count: int, do: str = "") -> Whole:
    """`(E,)` whole numbers from 0 on."""
    array = array.astype(np.int64) if array.size == 0 == count and array.dtype.kind == "f" else array  # np.array([]) is float64
    if array.shape != (count,) or array.dtype.kind not in "iub":
        found = f"'{name}' is {array.dtype} of shape {array.shape}"
        raise BadInput(message(f"{path}", found, f"({count},) whole numbers are needed", do))
    low, high = (int(array.min()), int(array.max())) if count else (0, 0)
    if low < 0 or high >= 2**63:
        found = f"'{name}' has a value of {low if low < 0 else high}"
        raise BadInput(message(f"{path}", found, "whole numbers from 0 to 2^63 are needed"))
    return array.astype(np.int64)


def _values(path: Path_, array: Real, count: int) -> Real:
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise BadInput(message(f"{path}", f"'value' is {array.dtype} of shape {array.shape}", f"({count},) numbers are needed"))
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise BadInput(message(f"{path}", "'value' holds NaN, infinity or numbers beyond float32", "finite numbers are needed"))
    return narrow


def _number(path: Path_, name: str, array: Real) -> float:
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise BadInput(message(f"{path}", f"'{name}' is {array.dtype} of shape {array.shape}", "one number is needed"))
    return float(array.reshape(())[()])


def _extent(path: Path_, name: str, arrays: Mapping[str, Real], found: Whole, of: str) -> int:
    """How many steps or samples there are: as the file says, or one more than the last."""
    last = int(found.max()) if found.size else -1
    if name not in arrays:
        if last < 0:
            raise BadInput(message(f"{path}", f"no events and no '{name}'", f"a number '{name}' that says how many there are is needed"))
        return last + 1
    number = _number(path, name, arrays[name])
    if arrays[name].dtype.kind == "f" or not max(1, last + 1) <= number < LONGEST:
        reach = f", and '{of}' goes up to {last}" if last >= 0 else ""
        raise BadInput(message(f"{path}", f"'{name}' is {number:g}{reach}", "a whole number beyond all of them is needed"))
    return int(number)


def _shape(path: Path_, array: Real) -> Shape:
    if array.ndim != 1 or array.dtype.kind not in "iu" or not 1 <= array.size <= 8 or (array < 1).any():
        raise BadInput(message(f"{path}", f"'shape' is {array.dtype} of shape {array.shape}", "some whole numbers from 1 on are needed"))
    shape = tuple(int(n) for n in array)
    if prod(shape) > MAX_VALUES:
        raise BadInput(message(f"{path}", f"'shape' is {shape}", f"at most {MAX_VALUES:,} numbers a step are used"))
    return shape
