"""What callers hand to the event-driven engine, checked before anything is touched: options, states, arrays. All raise `BadInput`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program
from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Array

MOST_ROWS = 2**31 - 1
"""Steps times samples of a sequence, and samples times numbers of a wire: places are counted in 32 bits."""
MOST_THREADS = 1024


def whole_number(where: str, value: object, least: int, most: int) -> int:
    """A whole number in `[least, most]`; `True` is none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise BadInput(message(where, repr(value), f"a whole number from {least} to {most} is needed"))
    return int(value)


def plain_array(where: str, value: Any) -> Array:
    """`value` as an array of real numbers; lists of different lengths, words and objects are none."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise BadInput(message(where, str(error), "an array of real numbers is needed")) from None
    if array.dtype.kind not in "fiub":
        raise BadInput(message(where, f"an array of {array.dtype}", "real numbers are needed"))
    return array


def narrowed(value: Array) -> Real:
    """In float32; what lies beyond is infinite then."""
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


@contextmanager
def enough_memory(where: str) -> Iterator[None]:
    """Arrays that cannot be made are the caller's sizes."""
    try:
        yield
    except MemoryError as error:
        raise BadInput(message(where, f"not enough memory ({error})", "smaller sizes are needed", "Use a smaller batch.")) from None


def engine_options(program: object, batch: object, threads: object, weights: object, native: object) -> tuple[int, int]:
    """Batch and threads as whole numbers."""
    if not isinstance(program, Program):
        raise BadInput(message("EventEngine", f"a program of type {type(program).__name__}", "a Program is needed", "Use convert or load."))
    widest = max(1, *(prod(shape) for shape in program.wires.values()))
    samples = whole_number("EventEngine: batch", batch, 1, MOST_ROWS // widest)
    workers = whole_number("EventEngine: threads", threads, 1, MOST_THREADS)
    if not isinstance(weights, str) or weights not in ("float32", "int8", "int16"):
        raise BadInput(message("EventEngine", f"weights {weights!r}", "'float32', 'int8' or 'int16' is needed"))
    if native is not None and not isinstance(native, bool):
        raise BadInput(message("EventEngine", f"native {native!r}", "True, False or None is needed"))
    return samples, workers


def run_options(program: Program, record: object, order: object, chunk: object) -> tuple[str, ...]:
    """The wires to record."""
    if isinstance(record, str) or not isinstance(record, Collection) or not all(isinstance(wire, str) for wire in record):
        raise BadInput(message("run", f"record {record!r}", "a list of the names of wires is needed"))
    unknown = sorted(set(record) - set(program.wires))
    if unknown:
        raise BadInput(message("run", f"record {unknown}", f"wires of the program are needed: {', '.join(sorted(program.wires))}"))
    if not isinstance(order, str) or order not in ("layer", "step"):
        raise BadInput(message("run", f"order {order!r}", "'layer' or 'step' is needed"))
    if chunk is not None:
        whole_number("run: chunk", chunk, 1, MOST_ROWS)
    return tuple(record)


def given_states(states: object, now: Mapping[str, Mapping[str, Real]]) -> dict[tuple[str, str], Real]:
    """Every state of the engine in float32, by step and name."""
    if not isinstance(states, Mapping) or set(states) != set(now):
        found = sorted(map(str, states)) if isinstance(states, Mapping) else repr(states)
        needed = f"a dictionary of exactly {sorted(now)} is needed"
        raise BadInput(message("state", f"states of {found}", needed, "Start from engine.state."))
    return {(step, name): value for step in now for name, value in _group(step, states[step], now[step])}


def _group(step: str, group: object, now: Mapping[str, Real]) -> Iterator[tuple[str, Real]]:
    if not isinstance(group, Mapping) or set(group) != set(now):
        found = sorted(map(str, group)) if isinstance(group, Mapping) else repr(group)
        raise BadInput(message(f"state {step}", f"states {found}", f"a dictionary of exactly {sorted(now)} is needed"))
    for name, old in now.items():
        where = f"state {step}.{name}"
        value = narrowed(plain_array(where, group[name]))
        if value.shape != old.shape or not np.isfinite(value).all():
            raise BadInput(message(where, f"shape {value.shape}", f"{old.shape} of finite float32 numbers is needed"))
        yield name, value
