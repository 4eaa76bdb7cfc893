"""What the engine takes: dense arrays, or address events as an event camera gives them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program
from spikedeploy.runtime.reference import Real, check_input
from spikedeploy.steps import Array, frozen_array


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Address events: at step `time[i]`, input `index[i]` of sample `sample[i]` receives `value[i]`.

    index   `(E,)` whole numbers, flat (row-major) into the program's input shape: `(polarity * H + y) * W + x` for a camera
    time    `(E,)` whole numbers, the step, in [0, steps)
    steps   how many steps the sequence has
    value   `(E,)` or None for 1 each; values at the same place and step add up, in the order given
    sample  `(E,)` place in the batch, or None for sample 0
    """

    index: Array
    time: Array
    steps: int
    value: Array | None = None
    sample: Array | None = None

    def __post_init__(self) -> None:
        for name in ("index", "time", "value", "sample"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, frozen_array(value))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Events sorted by row (time outer, sample inner) and index: row r owns entries `start[r]` to `start[r + 1]`."""

    start: npt.NDArray[np.int64]
    index: npt.NDArray[np.uint32]
    value: npt.NDArray[np.float32]
    ones: npt.NDArray[np.uint8]


def _column(name: str, value: Array | None, count: int, limit: int) -> npt.NDArray[np.int64]:
    if value is None:
        return np.zeros(count, np.int64)
    if value.shape != (count,) or value.dtype.kind not in "iu":
        raise BadInput(message(f"events.{name}", f"{value.dtype} of shape {value.shape}", f"({count},) whole numbers are needed"))
    if count and (value.min() < 0 or value.max() >= limit):
        raise BadInput(message(f"events.{name}", f"values from {value.min()} to {value.max()}", f"they must lie in [0, {limit})"))
    return value.astype(np.int64)


def _values(value: Array | None, count: int) -> npt.NDArray[np.float32]:
    if value is None:
        return np.ones(count, np.float32)
    if value.dtype.kind not in "fiub":
        raise BadInput(message("events.value", f"an array of {value.dtype}", "real numbers are needed"))
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    if narrow.shape != (count,) or not np.isfinite(narrow).all():
        found = f"shape {narrow.shape} or values that are not finite"
        raise BadInput(message("events.value", found, f"({count},) finite numbers are needed"))
    return narrow


def sort_events(events: Events, program: Program, batch: int) -> Rows:
    """Checks the events and sorts them; raises `BadInput`."""
    size, count = prod(program.input_shape), len(np.atleast_1d(events.index))
    if not isinstance(events.steps, int | np.integer) or events.steps < 1:
        raise BadInput(message("events.steps", f"{events.steps!r} steps", "a whole number, at least one, is needed"))
    if program.input_kind != "float":
        raise BadInput(message("events", "the model reads whole numbers (tokens)", "give them as an array"))
    index, time = _column("index", events.index, count, size), _column("time", events.time, count, events.steps)
    sample = _column("sample", events.sample, count, batch)
    value = _values(events.value, count)
    place, where = np.unique((time * batch + sample) * size + index, return_inverse=True)
    total = np.zeros(len(place), np.float32)
    with np.errstate(over="ignore"):
        np.add.at(total, where, value)
    if not np.isfinite(total).all():
        raise BadInput(message("events.value", "values at one place and step that add up beyond float32", "finite sums are needed"))
    place, total = place[total != 0], total[total != 0]
    start = np.searchsorted(place, np.arange(events.steps * batch + 1) * size)
    ones = np.ones(events.steps * batch, np.uint8)
    ones[place[total != 1] // size] = 0
    return Rows(start, (place % size).astype(np.uint32), total, ones)


def densify(rows: Rows, program: Program, batch: int) -> Real:
    """The dense sequence `(T, B, *input_shape)` that the events stand for."""
    size, count = prod(program.input_shape), len(rows.ones)
    x = np.zeros((count, size), np.float32)
    x[np.repeat(np.arange(count), np.diff(rows.start)), rows.index] = rows.value
    return x.reshape(count // batch, batch, *program.input_shape)


def dense_input(x: Any, program: Program, batch: int, *, checked: bool = True) -> Real:
    """`x (T, B, *input_shape)` in float32, C order. checked: NaN, infinity and numbers beyond float32 are refused here."""
    array = np.asarray(x)
    checked = checked or array.dtype != np.float32 or array.ndim != len(program.input_shape) + 2 or program.input_kind != "float"
    if checked or array.shape[2:] != program.input_shape or 0 in array.shape:
        array = check_input(program, array)
    if array.shape[1] != batch:
        found, needed = f"a batch of {array.shape[1]}", f"the engine was made for {batch}"
        raise BadInput(message("input", found, needed, f"Use EventEngine(program, batch={array.shape[1]})."))
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(array, np.float32)
    if checked and array.dtype != np.float32 and not np.isfinite(narrow).all():
        raise BadInput(message("input", "numbers beyond float32", "finite float32 numbers are needed"))
    return narrow
