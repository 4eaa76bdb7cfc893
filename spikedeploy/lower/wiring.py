"""Reshapes, slices and the reduction over time at the end: what moves values without computing on them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.lower.builder import Call, Dim, Reduced, Wire, describe_axes, regroup, split_lead
from spikedeploy.program import INPUT, Reduce


def keep(call: Call, *rest: Any) -> Any:
    """Nothing happens to the value (dropout in eval mode, identity, contiguous, a change of dtype)."""
    return call.args[0]


def cast(call: Call, *rest: Any) -> Any:
    """A change of dtype that changes no value: between float32 and float64, or of an input that holds whole numbers already."""
    value, dtype = call.args[0], call.result.dtype
    whole = isinstance(value, Wire) and value.name == INPUT and call.builder.whole
    if not whole and (not dtype.is_floating_point or dtype.itemsize < 4):
        raise call.refuse(f"it rounds to {dtype}", "float32 or float64 is needed", "Leave it out, or round before the model.")
    return value


def reshape(call: Call, *rest: Any) -> Any:
    """Any reshape: feature axes become a `Reshape` step, time and batch may merge and part again."""
    value = call.args[0]
    if isinstance(value, Reduced) and value.kept:
        if tuple(call.result.shape) != value.wire.sizes:
            raise call.refuse("it reshapes a result whose reduced time axis was kept", "squeeze(0) is needed", "Reduce with keepdim=False.")
        return Reduced(value.wire, value.reduce)
    if isinstance(value, Reduced):  # of features only: it may stand before the reduction
        return Reduced(_reshape(call, value.wire), value.reduce)
    return _reshape(call, call.wire())


def _reshape(call: Call, x: Wire) -> Wire:
    out = tuple(int(n) for n in call.result.shape)
    steps, batch = call.builder.probe
    axes, sizes = split_lead(x.axes, x.sizes, out, steps, batch)
    new = regroup(axes, sizes, out)
    if new is None:
        raise call.refuse(
            f"it turns {describe_axes(x)} into {out} (time {steps}, batch {batch} in the probe)",
            "time and batch may be merged (time first) and parted again, but not mixed with features or with each other",
            "Keep the first two axes (T, B), or merge them as x.flatten(0, 1).",
        )
    return _shaped(call, x, new, out)


def _shaped(call: Call, x: Wire, axes: tuple[str, ...], out: tuple[int, ...]) -> Wire:
    result = Wire(x.name, axes, out)
    if result.shape == x.shape:
        return result
    return Wire(call.emit(S.Reshape(call.name, (x.name,), result.shape)), axes, out)


def permute(call: Call, *rest: Any) -> Wire:
    """An exchange of axes that leaves the features in their order (time and batch may go anywhere)."""
    x = call.wire()
    order = _order(call, len(x.axes))
    features = [i for i in order if x.axes[i] == "f" and x.sizes[i] > 1]
    if features != sorted(features):
        raise call.refuse(
            f"it exchanges feature axes of {describe_axes(x)}",
            "features in their order are needed",
            "Permute the next layer's weights instead.",
        )
    axes, sizes = tuple(x.axes[i] for i in order), tuple(x.sizes[i] for i in order)
    return _shaped(call, x, axes, sizes)


def _order(call: Call, count: int) -> list[int]:
    """Which input axis each output axis is, found by moving an array of distinct sizes."""
    kind = call.origin.split(".")[-1]
    values = [*call.args[1:], *call.kwargs.values()]
    if kind == "t":
        values = [0, 1]
    if kind == "permute":
        dims = values[0] if isinstance(values[0], (tuple, list)) else values
        return [int(d) % count for d in dims]
    if kind in ("transpose", "swapaxes", "t"):
        a, b = (int(v) % count for v in values)
        order = list(range(count))
        order[a], order[b] = order[b], order[a]
        return order
    probe = np.moveaxis(np.empty(tuple(range(1, count + 1)), np.int8), values[0], values[1])
    return [n - 1 for n in probe.shape]


def size(call: Call, *rest: Any) -> Any:
    """`x.shape`, `x.size()`, `x.size(0)`: sizes that remember what they measure."""
    x = call.args[0].wire if isinstance(call.args[0], Reduced) else call.wire()
    sizes = tuple(Dim(n, axis) for n, axis in zip(x.sizes, x.axes, strict=True))
    which = call.args[1] if len(call.args) > 1 and not isinstance(call.args[1], str) else call.kwargs.get("dim")
    return sizes if which is None else sizes[int(which)]


def getitem(call: Call, *rest: Any) -> Any:
    """`value[index]`: of a tuple, an element; of a wire, the last time step or a range of the last feature axis."""
    value, index = call.args
    if isinstance(value, dict) and index not in value:
        raise call.refuse("it takes the position of the maximum", "the maximum itself is needed")
    if isinstance(value, (tuple, dict)):
        return value[index]
    x = call.as_wire(value)
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(x.axes) - len(items) + 1)
    items += [slice(None)] * (len(x.axes) - len(items))
    if len(items) != len(x.axes) or any(item is None for item in items):
        raise call.refuse(
            f"an index {index} of {describe_axes(x)}", "one entry per axis is needed", "Use reshape or unsqueeze for new axes."
        )
    found: Wire | Reduced = x
    for axis, item in enumerate(items):
        found = _index(call, found, axis - len(items), item) if isinstance(found, Wire) else _later(call, found, item)
    return found


def _later(call: Call, x: Reduced, item: Any) -> Reduced:
    if item != slice(None):
        raise call.refuse("an index of time and of features at once", "one of them is needed", "Write x[-1][..., a:b] the other way round.")
    return x


def _index(call: Call, x: Wire, axis: int, item: Any) -> Wire | Reduced:
    if item == slice(None):
        return x
    meaning = x.axes[axis]
    if meaning == "T" and isinstance(item, int) and item in (-1, x.sizes[axis] - 1):
        return reduced(call, x, "last")
    if "T" in meaning:
        raise call.mixes_time(
            f"it takes steps {item} of the time axis", "Only the last step, x[-1], can be taken, at the end of the model."
        )
    if meaning == "B":
        raise call.mixes(x, len(x.axes) + axis)
    if axis != -1:
        raise call.refuse(f"an index of axis {axis} of {describe_axes(x)}", "only the last feature axis can be cut", "Reshape before it.")
    return cut(call, x, item)


def cut(call: Call, x: Wire, item: Any, name: str = "") -> Wire:
    """A range (or one entry) of the last feature axis -> `Slice`."""
    span = slice(item % x.sizes[-1], item % x.sizes[-1] + 1) if isinstance(item, int) else item
    start, stop, step = span.indices(x.sizes[-1])
    if step != 1:
        raise call.refuse(f"a step of {step}", "a contiguous range is needed")
    wire = call.emit(S.Slice(call.builder.fresh(name or call.name) if name else call.name, (x.name,), start, stop))
    result = Wire(wire, x.axes, (*x.sizes[:-1], stop - start))
    if not isinstance(item, int):
        return result
    flat = call.emit(S.Reshape(call.builder.fresh(f"{call.name}.item"), (wire,), result.shape[:-1]))
    return Wire(flat, x.axes[:-1], x.sizes[:-1])


def parts(call: Call, *rest: Any) -> tuple[Wire, ...]:
    """`chunk`, `split`, `unbind` over the last feature axis."""
    x = call.wire()
    axis = call.kwargs.get("dim", call.args[2] if len(call.args) > 2 else 0) % len(x.axes)
    if x.axes[axis] != "f":
        raise call.mixes(x, axis)
    if axis != len(x.axes) - 1 or call.origin.endswith("unbind"):
        raise call.refuse(f"it cuts axis {axis} of {describe_axes(x)}", "only the last axis can be cut into ranges")
    edges, found = 0, []
    for index, part in enumerate(call.result):
        found.append(cut(call, x, slice(edges, edges + part.shape[-1]), name=f"{call.name}.{index}"))
        edges += part.shape[-1]
    return tuple(found)


def reduced(call: Call, x: Wire, how: Reduce) -> Reduced:
    """`x` reduced over time."""
    at = x.axes.index("T")
    return Reduced(Wire(x.name, x.axes[:at] + x.axes[at + 1 :], x.sizes[:at] + x.sizes[at + 1 :]), how)


def accumulate(call: Call, *rest: Any) -> Reduced:
    """The running sum of a loop: the sum over time."""
    return reduced(call, call.wire(), "sum")


def select(call: Call, *rest: Any) -> Any:
    """`x.select(0, -1)`: the last step."""
    x = call.wire()
    axis, index = call.args[1] % len(x.axes), call.args[2]
    return _index(call, x, axis - len(x.axes), int(index))


_REDUCTIONS: dict[str, Reduce] = {"mean": "mean", "sum": "sum", "max": "max", "amax": "max"}


def reduction(call: Call, *rest: Any) -> Any:
    """`mean`, `sum`, `max`, `amax` over time (at the end), or `mean` and `sum` over trailing features."""
    called = call.origin.split(".")[-1]
    kind, x = _REDUCTIONS[called], call.args[0]
    dims = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    x = call.as_wire(x)
    if dims is None:
        raise call.mixes_time("it reduces over every axis at once", "Name the axis: mean(0) for time.")
    axes = sorted({int(d) % len(x.axes) for d in (dims if isinstance(dims, (tuple, list)) else (dims,))})
    for axis in axes:
        if x.axes[axis] in ("B", "TB"):
            raise call.mixes(x, axis)
    time = [axis for axis in axes if x.axes[axis] == "T"]
    features = [axis for axis in axes if x.axes[axis] == "f"]
    if features:
        x = _over_features(call, x, features, kind)
    if not time:
        return x
    done = reduced(call, x, kind)
    if call.kwargs.get("keepdim", call.args[2] if len(call.args) > 2 else False):
        done = Reduced(done.wire, done.reduce, kept=True)
    return {"values": done, 0: done} if called == "max" else done


def _over_features(call: Call, x: Wire, axes: list[int], kind: str) -> Wire:
    """The sum or mean over trailing feature axes as a row of ones."""
    count = len(axes)
    if kind not in ("mean", "sum"):
        raise call.refuse(f"a {kind} over features", "mean and sum are supported")
    if axes != list(range(len(x.axes) - count, len(x.axes))):
        raise call.refuse(f"it reduces axes {axes} of {describe_axes(x)}", "the last axes are needed")
    number = prod(x.sizes[-count:])
    rest = x.shape[:-count]
    flat = x.name if count == 1 else call.emit(S.Reshape(f"{call.name}.flat", (x.name,), (*rest, number)))
    row = np.full((1, number), 1.0 / number if kind == "mean" else 1.0)
    total = call.emit(S.Affine(f"{call.name}.all", (flat,), row))
    keepdim = bool(call.kwargs.get("keepdim", call.args[2] if len(call.args) > 2 else False))
    shape = (*rest, *(1,) * count) if keepdim else rest
    name = call.emit(S.Reshape(call.name, (total,), shape))
    kept = count if keepdim else 0
    return Wire(name, (*x.axes[:-count], *("f",) * kept), (*x.sizes[:-count], *(1,) * kept))
