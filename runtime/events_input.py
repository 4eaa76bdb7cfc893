"""What the engine takes: dense arrays, or address events as an event camera gives them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import native
from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program
from spikedeploy.runtime.events_checks import MOST_ROWS, narrowed, plain_array, whole_number
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
            if value is not None or name in ("index", "time"):
                object.__setattr__(self, name, frozen_array(plain_array(f"events.{name}", value)))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Events sorted by row (time outer, sample inner) and index: row r owns entries `start[r]` to `start[r + 1]`.
    `value` is None for 1 each."""

    start: npt.NDArray[np.int64]
    index: npt.NDArray[np.uint32]
    value: npt.NDArray[np.float32] | None
    ones: npt.NDArray[np.uint8]


def _column(name: str, value: Array, count: int) -> npt.NDArray[np.int64]:
    if value.shape != (count,) or value.dtype.kind not in "iu":
        raise BadInput(message(f"events.{name}", f"{value.dtype} of shape {value.shape}", f"({count},) whole numbers are needed"))
    if count and value.dtype == np.uint64 and value.max() >= 2**63:
        raise BadInput(message(f"events.{name}", f"a value of {value.max()}", "numbers below 2^63 are needed"))
    return np.ascontiguousarray(value, np.int64)


def _values(value: Array, count: int) -> npt.NDArray[np.float32]:
    narrow = narrowed(value)
    if narrow.shape != (count,) or not np.isfinite(narrow).all():
        found = f"shape {narrow.shape} or values that are not finite"
        raise BadInput(message("events.value", found, f"({count},) finite numbers are needed"))
    return narrow


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Events as arrays of one kind each; None for samples that are all 0, values that are all 1."""

    index: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64] | None
    value: npt.NDArray[np.float32] | None


def sort_events(events: Events, program: Program, batch: int) -> Rows:
    """Checks the events and sorts them; raises `BadInput`."""
    steps = whole_number("events.steps", events.steps, 1, MOST_ROWS // batch)
    if program.input_kind != "float":
        raise BadInput(message("events", "the model reads whole numbers (tokens)", "give them as an array"))
    size, count = prod(program.input_shape), len(np.atleast_1d(events.index))
    columns = _Columns(
        _column("index", events.index, count),
        _column("time", events.time, count),
        None if events.sample is None else _column("sample", events.sample, count),
        None if events.value is None else _values(events.value, count),
    )
    return _in_order(columns, size, steps, batch) or _sorted(columns, size, steps, batch)


def _in_order(columns: _Columns, size: int, steps: int, batch: int) -> Rows | None:
    """Events that come sorted, one at a place at most: used as they are. None for any other, and without the native core."""
    if not native.available():
        return None
    ffi, lib = native.core()
    count = len(columns.index)
    start, place, ones = np.empty(steps * batch + 1, np.int64), np.empty(count, np.uint32), np.empty(steps * batch, np.uint8)
    given = [
        ffi.NULL if column is None else ffi.from_buffer(f"{kind}[]", column)
        for column, kind in zip((columns.index, columns.time, columns.sample, columns.value), ("int64_t",) * 3 + ("float",), strict=True)
    ]
    into = ffi.from_buffer("int64_t[]", start), ffi.from_buffer("uint32_t[]", place), ffi.from_buffer("uint8_t[]", ones)
    if not lib.sd_event_rows(*given, count, size, steps, batch, *into):
        return None
    return Rows(start, place, columns.value, ones)


def _sorted(columns: _Columns, size: int, steps: int, batch: int) -> Rows:
    """Events in any order, several at one place added up."""
    rows, index, row = steps * batch, columns.index, columns.time * batch
    for name, column, limit in (("index", index, size), ("time", columns.time, steps), ("sample", columns.sample, batch)):
        if column is not None and column.size and (column.min() < 0 or column.max() >= limit):
            found = f"values from {column.min()} to {column.max()}"
            raise BadInput(message(f"events.{name}", found, f"they must lie in [0, {limit})"))
    row = row if columns.sample is None else row + columns.sample
    place, where = np.unique(row * size + index, return_inverse=True)
    total = np.zeros(len(place), np.float32)
    with np.errstate(over="ignore"):
        np.add.at(total, where, np.float32(1) if columns.value is None else columns.value)
    if not np.isfinite(total).all():
        raise BadInput(message("events.value", "values at one place and step that add up beyond float32", "finite sums are needed"))
    place, total = place[total != 0], total[total != 0]
    start = np.searchsorted(place, np.arange(rows + 1) * size)
    ones = np.ones(rows, np.uint8)
    ones[place[total != 1] // size] = 0
    return Rows(start, (place % size).astype(np.uint32), total, ones)


def densify(rows: Rows, program: Program, batch: int) -> Real:
    """The dense sequence `(T, B, *input_shape)` that the events stand for."""
    size, count = prod(program.input_shape), len(rows.ones)
    x = np.zeros((count, size), np.float32)
    x[np.repeat(np.arange(count), np.diff(rows.start)), rows.index] = 1 if rows.value is None else rows.value
    return x.reshape(count // batch, batch, *program.input_shape)


def dense_input(x: Any, program: Program, batch: int, *, checked: bool = True) -> Real:
    """`x (T, B, *input_shape)` in float32, C order. checked: NaN, infinity and numbers beyond float32 are refused here."""
    array = plain_array("input", x)
    checked = checked or array.dtype != np.float32 or array.ndim != len(program.input_shape) + 2 or program.input_kind != "float"
    if checked or array.shape[2:] != program.input_shape or 0 in array.shape:
        array = check_input(program, array, np.float32)
    if array.shape[1] != batch:
        found, needed = f"a batch of {array.shape[1]}", f"the engine was made for {batch}"
        raise BadInput(message("input", found, needed, f"Use EventEngine(program, batch={array.shape[1]})."))
    return np.require(array, np.float32, ["C", "A"])
