"""Where a convolution's events go: the tables and weights of `native/events_conv.c`.

Along one axis an input at i is seen by the outputs y with `i + padding - k*dilation = stride*y` for a tap k of the kernel. Those taps are
every `stride/g`-th from a first one (its phase), those outputs every `dilation/g`-th, g the greatest common divisor. So every input adds
one patch of `count` outputs, and there are `stride/g` patches of weights to choose from. Outputs outside the map fall into a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime.events_pack import aligned, up
from spikedeploy.steps import Array, Shape

TILE = 128
"""Lanes that are skipped or stepped together; also the widest panel of a layer, whose tables a convolution shares."""


LANES = 16
"""Of the widest vector."""
HALF = 8
"""Lanes that everything is a multiple of."""
STEPS = 4
"""That a tile takes at once, where nobody reads what happens between them."""


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One axis of a convolution.

    first  per input place the lowest output of its patch, possibly outside the map
    phase  per input place which patch of weights it takes; `len(kernel) - 1` is the empty one
    valid  per input place the first entry of the patch that is a tap
    kernel `(phases + 1, count)`: the tap of each entry, -1 where there is none
    jump   outputs from one entry to the next
    """

    first: Array
    phase: Array
    valid: Array
    kernel: Array
    jump: int

    @property
    def count(self) -> int:
        """Entries of a patch."""
        return int(self.kernel.shape[1])

    @property
    def reach(self) -> tuple[int, int]:
        """The lowest and the highest output that a patch touches."""
        return int(self.first.min()), int(self.first.max()) + (self.count - 1) * self.jump


def axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """The patches of an axis of `size` inputs."""
    common = gcd(stride, dilation)
    phases, jump = stride // common, dilation // common
    count = -(-kernel // phases)
    tap = np.arange(phases + 1)[:, None] + phases * np.arange(count)[::-1]
    tap[(tap >= kernel) | (np.arange(phases + 1) == phases)[:, None]] = -1
    place = np.arange(size) + padding
    fits = (place[:, None] - dilation * np.arange(phases)) % stride == 0
    phase = np.where(fits.any(axis=1), fits.argmax(axis=1), phases)
    first = np.where(phase < phases, (place - dilation * phase) // stride - (count - 1) * jump, 0)
    return Axis(first, phase, (tap < 0).sum(axis=1)[phase], tap, jump)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Channels-last outputs in rows of pixels, each row with a margin that the next row's shares.

    order   per index on the wire its lane
    width   lanes of all neurons, whole tiles
    begin   where they begin in the sums, whose margin rows lie before and behind
    lanes   of the sums
    pixel   lanes of a pixel
    pitch   lanes of a row
    patch   lanes of a patch's pixel: the outputs of a group
    gap     lanes of zeros before and behind every run of weights, where runs may begin in the middle of the widest vector
    """

    shape: Shape
    rows: Axis
    columns: Axis
    order: Array
    width: int
    begin: int
    lanes: int
    pixel: int
    pitch: int
    patch: int
    gap: int

    @property
    def real(self) -> Array:
        """Per lane whether it is a neuron's."""
        real = np.zeros(self.width, bool)
        real[self.order] = True
        return real

    @property
    def runs(self) -> tuple[int, int]:
        """Of a row of a patch: how many runs of lanes it has, and the lanes of each. Pixels that touch are one run."""
        count = self.columns.count
        return (1, count * self.patch) if self.patch == self.columns.jump * self.pixel else (count, self.patch)


def layout(step: S.Conv2d, seen: Shape, shape: Shape) -> Layout:
    """Where inputs of shape `seen` and outputs of this shape lie."""
    rows, columns = (axis(seen[1 + a], step.weight.shape[2 + a], step.stride[a], step.padding[a], step.dilation[a]) for a in (0, 1))
    out, height, wide = shape
    pixel, group = up(out, HALF), out // step.groups
    patch = pixel if step.groups == 1 else max(up(g * group + group, HALF) - g * group // HALF * HALF for g in range(step.groups))
    (top, bottom), (left, right) = rows.reach, columns.reach
    pitch = up((wide + max(0, -left, right - wide + 1)) * pixel, LANES)
    begin = up(max(0, -top) * pitch + max(0, -left) * pixel, TILE)
    width = up((height - 1) * pitch + wide * pixel, TILE)
    places = np.arange(height)[:, None] * pitch + np.arange(wide) * pixel
    order = (places.ravel() + np.arange(out)[:, None]).ravel()
    behind = max(0, bottom - height + 1) * pitch + max(0, right - wide + 1) * pixel + patch + LANES
    gap = 0 if step.groups == 1 and pixel % LANES == 0 else HALF
    return Layout(
        shape, rows, columns, order, width, begin, up(begin + max(width, height * pitch) + behind, TILE), pixel, pitch, patch, gap
    )


def _first_lane(step: S.Conv2d, channel: int, place: Layout) -> tuple[int, int, int]:
    """Of an input channel's group: the lane where its vectors begin, and its true lanes from there."""
    out, per_group = step.weight.shape[:2]
    group = out // step.groups
    low = channel // per_group * group
    start = min(low // HALF * HALF, place.pixel - place.patch)
    return start, low - start, low - start + group


def _line(place: Layout) -> int:
    """Of a row of a patch the weights, gaps included."""
    runs, lanes = place.runs
    return runs * (lanes + 2 * place.gap)


def weights(step: S.Conv2d, weight: Array, place: Layout) -> Array:
    """`(O, C/groups, kh, kw)` as `(C, row phase, column phase, row, run, lane)`: per input channel all patches, zero without a tap and in
    the gaps; and a vector that may be read behind the last."""
    out, per_group = weight.shape[:2]
    group, channels = out // step.groups, per_group * step.groups
    rows, columns, (runs, lanes) = place.rows.kernel, place.columns.kernel, place.runs
    count = channels * len(rows) * len(columns) * rows.shape[1] * _line(place)
    memory = aligned((count + LANES,), weight.dtype)
    lines = memory[:count].reshape(channels, len(rows), len(columns), rows.shape[1], runs, lanes + 2 * place.gap)
    inside = lines[..., place.gap : place.gap + lanes]
    packed = inside.reshape(*inside.shape[:-2], columns.shape[1], place.patch)
    for channel in range(channels):
        mine = weight[channel // per_group * group : (channel // per_group + 1) * group, channel % per_group]
        _, low, high = _first_lane(step, channel, place)
        i, j = rows[:, None, :, None], columns[None, :, None, :]
        packed[channel, ..., low:high] = np.moveaxis(np.where((i < 0) | (j < 0), 0, mine[:, i, j]), 0, -1)
    inside[...] = packed.reshape(inside.shape)
    return memory


def tables(step: S.Conv2d, seen: Shape, place: Layout) -> Array:
    """What the kernel looks up: per lane whether it is a neuron's, as bits; per input where its patch lies in the sums and in the
    weights; per lane its place on the wire; per input row `(channel, y)` and column which of the patch's entries are taps."""
    rows, columns = place.rows, place.columns
    patch = rows.count * _line(place)
    row, taps = np.zeros((seen[0], seen[1], 2), np.int64), np.zeros((seen[0], seen[1], 3), np.int32)
    for channel in range(seen[0]):
        start, low, high = _first_lane(step, channel, place)
        row[channel, :, 0] = place.begin + rows.first * place.pitch + start
        row[channel, :, 1] = (channel * len(rows.kernel) + rows.phase) * len(columns.kernel) * patch + place.gap
        taps[channel] = np.stack([rows.valid, np.full(seen[1], low), np.full(seen[1], high)], axis=1)
    origins = row[:, :, None] + np.stack([columns.first * place.pixel, columns.phase * patch], axis=1)
    wire = np.zeros(place.width, np.int32)
    wire[place.order] = np.arange(prod(place.shape))
    bits = np.packbits(place.real, bitorder="little").view(np.int32)
    places = (origins[..., 0] | origins[..., 1] << 32).ravel().view(np.int32)
    return np.concatenate([bits, places, wire, *(part.astype(np.int32).ravel() for part in (taps, columns.valid))])


def division(by: int) -> tuple[int, int]:
    """`(factor, shift)`: `i // by == i * factor >> shift` for every i below 2^31, without leaving 64 bits."""
    shift = 31 + (by - 1).bit_length()
    return -(-(1 << shift) // by), shift


def sizes(step: S.Conv2d, seen: Shape, place: Layout, *, late: bool, alike: bool) -> tuple[int, ...]:
    """`n` of the operation; late: see `settles_late`; alike: see `made_alike`."""
    rows, columns = place.rows, place.columns
    return (
        seen[2], place.width, place.patch, place.width // TILE, *place.shape, place.pitch, place.pixel, rows.count, columns.count,
        rows.jump * place.pitch, columns.jump * place.pixel, place.begin, place.lanes, seen[0] * seen[1], late,
        0 if alike else TILE, place.gap,
    )  # fmt: skip


def scratch(place: Layout, batch: int, bias: Array, *, integers: bool) -> Array:
    """Sums of `STEPS` steps (at the bias between groups of steps), three tables, integer sums (at zero)."""
    memory = aligned((batch, STEPS * (2 if integers else 1) + 3, place.lanes), np.float32)
    memory[:, :STEPS, place.begin : place.begin + place.width] = bias
    return memory


def made_alike(parameters: list[Array], place: Layout) -> bool:
    """Whether one tile's parameters do for all, so that they stay in the nearest cache; if so, lanes without a neuron get them too.

    They do where neurons of one channel have the same, and pixels fill tiles evenly or channels are alike as well.
    """
    real = place.real.reshape(-1, TILE)
    first = real.argmax(axis=0), np.arange(TILE)
    tiles = [values.reshape(-1, TILE) for values in parameters]
    if not all((~real | (tile == tile[first])).all() for tile in tiles):
        return False
    for tile in tiles:
        tile[:] = tile[first]
    return True


def settles_once(bias: Array) -> Array:
    """Per lane whether a leak of many steps may be settled at its end only, to the same bytes.

    Without a bias magnitudes only shrink, so what is still normal at the end always was, and what is not would have become zero. A bias of
    2^-100 or more leaves, next to it, no sum between zero and 2^-126: the numbers there are multiples of 2^-124.
    """
    return (bias == 0) | (np.abs(bias) >= np.float32(2.0**-100))


def settles_late(terms: list[Array], decay: Array, theta: Array) -> bool:
    """Whether states may be settled after several steps instead of after each, to the same bytes and spikes.

    terms  what a current is a sum of, each at most once or a whole number of times

    Terms of 2^-78 or more are multiples of 2^-101, and so are their rounded sums. A state below 2^-126 that was not settled becomes no
    larger by leaking, and adds nothing to a current of 2^-101 or more, whose neighbours are more than 2^-126 away; next to a current of
    zero it stays below 2^-126. It is above no threshold of 2^-126 or more, so it does not fire and is not reset.
    """
    sizes = np.abs(np.concatenate([term.ravel() for term in terms]))
    exact = not ((sizes > 0) & (sizes < np.float32(2.0**-78))).any() and not (theta < np.finfo(np.float32).tiny).any()
    return bool(exact and (decay >= 0).all() and (decay <= 1).all())


def pool_tables(step: S.SumPool2d, seen: Shape, shape: Shape) -> Array:
    """Per input row `(channel, y)` and per input column: the first output place that sees it, and how many do."""
    found = []
    for a in (0, 1):
        place = np.arange(seen[1 + a]) + step.padding[a]
        first = np.maximum(0, -((step.kernel[a] - 1 - place) // step.stride[a]))
        last = np.minimum(shape[1 + a] - 1, place // step.stride[a])
        found.append((first, np.maximum(0, last - first + 1)))
    (top, rows), (left, columns) = found
    channel = np.arange(seen[0])[:, None] * shape[1] + top
    row = np.stack([channel.ravel() * shape[2], np.tile(rows, seen[0])], axis=1)
    return np.concatenate([row.ravel(), np.stack([left, columns], axis=1).ravel()]).astype(np.int32)
