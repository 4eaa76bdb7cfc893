"""Memory for the compiled engine: aligned, padded, weights input-major in column panels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Array, Shape

LINE, PAGE, HUGE = 64, 1 << 12, 1 << 21
LANES = 16
"""Numbers of 32 bits in a line."""
PANELS = (128, 64, 32, 16)
TOGETHER = 1024
"""Columns that lie together for single steps."""
PANEL_BYTES = 1 << 19
"""A second-level cache holds two panels of this size: the next one comes while one is read."""


def up(n: int, to: int = 16) -> int:
    """The next multiple."""
    return -(-n // to) * to


def width_of(n: int) -> int:
    """Columns of the panels over n of them, and numbers in a wire's row: whole vectors, and one more where that makes one panel of the
    last three (112 columns) or two (48)."""
    return up(n) + LANES if up(n) % PANELS[0] in (48, 112) else up(n)


def aligned(shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Zeros that begin at a cache line, at a page where they fill one, and at a huge page where they fill half of one.

    The processor fetches lines in pairs and looks addresses up by page. NumPy asks for huge pages under all that it allocates in 4 MB or
    more.
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    place = HUGE if size >= HUGE // 2 else PAGE if size >= PAGE else LINE
    raw = np.zeros(max(size + place, 2 * HUGE if place == HUGE else 0), np.uint8)
    offset = -raw.ctypes.data % place
    return raw[offset : offset + size].view(kind).reshape(shape)


def padded(value: npt.ArrayLike, shape: Shape, fill: float = 0.0, order: Array | None = None, width: int | None = None) -> Real:
    """`value` broadcast to the wire's shape, flat, in the engine's order, padded to whole vectors with `fill`."""
    flat = np.broadcast_to(np.asarray(value, np.float32), shape).ravel()
    out = aligned((width_of(flat.size) if width is None else width,), np.float32)
    out[:] = fill
    out[np.arange(flat.size) if order is None else order] = flat
    return out


def widest_panel(wide: int, bytes_each: int) -> int:
    """Columns of the widest panel over so many inputs; shorter rows than 64 columns would cost more than the cache gives."""
    return PANELS[0] if wide * PANELS[0] * bytes_each <= PANEL_BYTES else PANELS[1]


def panels(width: int, widest: int = PANELS[0]) -> Iterator[tuple[int, int]]:
    """`(first column, columns)` of every panel of a padded width."""
    column = 0
    while column < width:
        columns = next(size for size in PANELS if size <= min(widest, width - column))
        yield column, columns
        column += columns


def panel_major(weight: Array, widest: int = PANELS[0]) -> Array:
    """`(out, in)` as panel after panel of `(in, columns)`, so that one input's row of a panel is whole cache lines."""
    out, wide = weight.shape
    rows = np.zeros((wide, width_of(out)), weight.dtype)
    rows[:, :out] = weight.T
    packed = aligned((rows.size,), weight.dtype)
    for first, count in panels(width_of(out), widest):
        packed[first * wide : (first + count) * wide] = rows[:, first : first + count].ravel()
    return packed


def together(packed: Array, wide: int, widest: int) -> tuple[Array, int]:
    """Packed weights with the rows of panels side by side, `(in, 1024)`, for single steps that read them from far memory; and
    how many columns lie so. A block of steps wants each panel by itself, near."""
    whole = packed.size // wide // TOGETHER * TOGETHER
    if not whole:
        return packed, 0
    turned = aligned(packed.shape, packed.dtype)
    turned[:] = packed
    for first in range(0, whole * wide, TOGETHER * wide):
        rows = packed[first : first + TOGETHER * wide].reshape(-1, wide, widest)
        turned[first : first + TOGETHER * wide] = rows.swapaxes(0, 1).ravel()
    return turned, whole


def panel_pairs(q: Array, widest: int = PANELS[0]) -> Array:
    """Integer weights as `panel_major`, plus half their range, in whole cache lines whose columns lie as `native/events_sums.inc` adds
    them: column `16 i + l` of a line is byte or half-word i of its 32-bit lane l."""
    out, wide = q.shape
    kind, line = np.dtype(f"u{q.itemsize}"), LINE // q.itemsize
    rows = np.zeros((wide, width_of(out)), kind)
    rows[:, :out] = q.T.view(kind)
    places = [(first, count, up(first, line)) for first, count in panels(width_of(out), widest)]
    packed = aligned((wide * (places[-1][2] + up(places[-1][1], line)),), kind)
    for first, count, place in places:
        lines = np.zeros((wide, up(count, line)), kind)
        lines[:, :count] = rows[:, first : first + count]
        packed[place * wide :][: lines.size] = lines.reshape(-1, 4 // q.itemsize, LANES).swapaxes(1, 2).ravel()
    packed += kind.type(1 << (8 * q.itemsize - 1))
    return packed


def stays_silent(decay: Real, theta: Real, bias: Real, *, strict: bool) -> Any:
    """Per neuron: a membrane at or below the threshold cannot pass it in a step without events.

    Rounding is monotone and decay is not negative, so `fl(fl(d*u)+b) <= fl(fl(d*theta)+b)` for every u up to theta.
    """
    with np.errstate(over="ignore"):
        highest = decay * theta + bias
    return highest <= theta if strict else highest < theta
