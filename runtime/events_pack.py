"""Memory for the compiled engine: aligned, padded, weights input-major in column panels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Array, Shape

LINE = 64
PANELS = (128, 64, 32, 16)


def up(n: int, to: int = 16) -> int:
    """The next multiple."""
    return -(-n // to) * to


def aligned(shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Zeros that begin at a cache line."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.zeros(size + LINE, np.uint8)
    offset = -raw.ctypes.data % LINE
    return raw[offset : offset + size].view(kind).reshape(shape)


def padded(value: npt.ArrayLike, shape: Shape, fill: float = 0.0, order: Array | None = None, width: int | None = None) -> Real:
    """`value` broadcast to the wire's shape, flat, in the engine's order, padded to whole vectors with `fill`."""
    flat = np.broadcast_to(np.asarray(value, np.float32), shape).ravel()
    out = aligned((up(flat.size) if width is None else width,), np.float32)
    out[:] = fill
    out[np.arange(flat.size) if order is None else order] = flat
    return out


def panels(width: int) -> Iterator[tuple[int, int]]:
    """`(first column, columns)` of every panel of a padded width."""
    column = 0
    while column < width:
        columns = next(size for size in PANELS if size <= width - column)
        yield column, columns
        column += columns


def panel_major(weight: Array) -> Array:
    """`(out, in)` as panel after panel of `(in, columns)`, so that one input's row of a panel is whole cache lines."""
    out, wide = weight.shape
    columns = np.zeros((wide, up(out)), weight.dtype)
    columns[:, :out] = weight.T
    packed = aligned((wide * up(out),), weight.dtype)
    for first, count in panels(up(out)):
        packed[first * wide : (first + count) * wide] = columns[:, first : first + count].ravel()
    return packed


def panel_pairs(q: Array) -> Array:
    """Integer weights as `panel_major`, plus half their range, two columns to a lane (see `SUM_PAIRS` in `native/events_layer.c`)."""
    kind = np.dtype(f"u{q.itemsize}")
    offset = 1 << (8 * q.itemsize - 1)
    packed = panel_major((q.astype(np.int64) + offset).astype(kind))
    wide, done = q.shape[1], aligned(packed.shape, kind)
    for first, count in panels(up(len(q))):
        group = min(count, LINE // q.itemsize)
        part = packed[first * wide : (first + count) * wide].reshape(-1, 2, group // 2)
        done[first * wide : (first + count) * wide] = part.swapaxes(1, 2).ravel()
    return done


def stays_silent(decay: Real, theta: Real, bias: Real, *, strict: bool) -> Any:
    """Per neuron: a membrane at or below the threshold cannot pass it in a step without events.

    Rounding is monotone and decay is not negative, so `fl(fl(d*u)+b) <= fl(fl(d*theta)+b)` for every u up to theta.
    """
    with np.errstate(over="ignore"):
        highest = decay * theta + bias
    return highest <= theta if strict else highest < theta
