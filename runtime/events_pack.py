"""Memory for the compiled engine: aligned, padded, weights input-major in column panels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Array, Shape

LINE = 64
PANELS = (128, 64, 32, 16)
HIGH = float(np.finfo(np.float32).max)


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


@dataclass(frozen=True, slots=True, eq=False)
class ConvLayout:
    """Channels-last places of a convolution's outputs: `order[canonical index]` is the place in `(pixel, padded channel)`."""

    order: Array
    width: int
    channels: int


def conv_layout(shape: Shape) -> ConvLayout:
    out, height, wide = shape
    channels, pixels = up(out, 8), height * wide
    order = (np.arange(pixels)[None, :] * channels + np.arange(out)[:, None]).ravel()
    return ConvLayout(order, up(pixels * channels), channels)


def taps(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """Per input coordinate: how many outputs see it, then pairs (output coordinate, tap), ascending; padded to one length."""
    found = []
    for place in range(size):
        seen = [(place + padding - k * dilation, k) for k in range(kernel)]
        found.append([value for at, k in seen if at >= 0 and at % stride == 0 and at // stride < out for value in (at // stride, k)])
    table = np.zeros((size, 1 + max(map(len, found))), np.int32)
    for place, pairs in enumerate(found):
        table[place, 0] = len(pairs) // 2
        table[place, 1 : 1 + len(pairs)] = pairs
    return table


def conv_weight(step: S.Conv2d, weight: Array) -> Array:
    """`(O, C/groups, kh, kw)` as `(C, kh, kw, padded O/groups)`: every input channel with the outputs of its group."""
    out, per_group, kh, kw = weight.shape
    group = out // step.groups
    packed = aligned((per_group * step.groups, kh, kw, up(out, 8)), weight.dtype)
    for channel in range(per_group * step.groups):
        mine = weight[channel // per_group * group : (channel // per_group + 1) * group, channel % per_group]
        packed[channel, :, :, :group] = np.moveaxis(mine, 0, -1)
    return packed


def stays_silent(decay: Real, theta: Real, bias: Real, *, strict: bool) -> Any:
    """Per neuron: a membrane at or below the threshold cannot pass it in a step without events.

    Rounding is monotone and decay is not negative, so `fl(fl(d*u)+b) <= fl(fl(d*theta)+b)` for every u up to theta.
    """
    with np.errstate(over="ignore"):
        highest = decay * theta + bias
    return highest <= theta if strict else highest < theta
