"""What lowering rules share: wires that know which of their axes is time, and the list of steps that grows.

Every value of the traced model carries its axes by meaning: "T" time, "B" batch, "TB" both merged (time-major), "f" a feature. An
operation that touches "T" in any way but a final reduction mixes time steps and is refused; one that touches "B" mixes samples. A
program's wire has the feature axes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import Reduce
from spikedeploy.shapes import ShapeError, shapes_of
from spikedeploy.steps import Array, Shape, Step

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wire:
    """A value at every time step: the program's wire that holds it, the meaning of its axes, and their sizes in the probe run."""

    name: str
    axes: Axes
    sizes: Shape

    @property
    def shape(self) -> Shape:
        """The feature axes: the shape of the program's wire."""
        return tuple(n for axis, n in zip(self.axes, self.sizes, strict=True) if axis == "f")


@dataclass(frozen=True, slots=True)
class Reduced:
    """A value reduced over time; nothing but the output may read it. kept: the time axis is still there, of size one."""

    wire: Wire
    reduce: Reduce
    kept: bool = False


class Dim(int):
    """The size of one axis of a wire; `axis` is its meaning, "" for a number computed from sizes of time or batch."""

    axis: str

    def __new__(cls, size: int, axis: str) -> Dim:
        self = super().__new__(cls, size)
        self.axis = axis
        return self


class Ratio(float):
    """A number computed from the size of time or batch: what one step cannot know."""


def from_sizes(value: Any) -> bool:
    """Whether a value was computed from how many steps or samples there are."""
    if isinstance(value, (tuple, list)):
        return any(from_sizes(item) for item in value)
    return isinstance(value, Ratio) or (isinstance(value, Dim) and value.axis != "f")


def measured(result: Any) -> Any:
    """A result computed from such numbers, marked as one."""
    if isinstance(result, bool):
        return result
    if isinstance(result, int):
        return Dim(result, "")
    return Ratio(result) if isinstance(result, float) else result


@dataclass(slots=True)
class Builder:
    """The program as it grows. taken: names that only their owner may use (paths of layers); probe: T and B of the probe run;
    whole: the input holds whole numbers."""

    taken: set[str]
    probe: tuple[int, int] = (3, 2)
    whole: bool = False
    semantics: str | None = None
    truncation: str = "exact"
    called: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fresh(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`... where that is taken; the result is taken from now on."""
        count, found = 0, name
        while found in self.taken or found in self.shapes or f"{found}.mem" in self.shapes:
            count += 1
            found = f"{name}_{count}"
        self.taken.add(found)
        return found


@dataclass(frozen=True, slots=True)
class Call:
    """One node of the model being lowered.

    name    what its steps are called; where: how errors name it; origin: the layer's class or the function
    result  what the node gave in the probe run: its sizes are known without working them out again
    """

    builder: Builder
    name: str
    where: str
    origin: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def refuse(self, found: str, needed: str = "", do: str = "") -> ModelRefused:
        """The error that names this layer or operation."""
        return ModelRefused(message(self.where, found, needed, do))

    def mixes_time(self, how: str, do: str = "") -> ModelRefused:
        """The error for an operation that reads other time steps."""
        return self.refuse(
            f"it mixes time steps ({how})",
            "between neurons every operation must act on one time step; only the model's output may be reduced over time",
            do or "Take it out of the model, or do it on the result.",
        )

    def emit(self, step: Step) -> str:
        """Append a step; its name comes back. Raises `ModelRefused` where shapes do not fit."""
        builder = self.builder
        try:
            shapes = shapes_of(step, [builder.shapes[name] for name in step.inputs])
        except ShapeError as error:
            raise self.refuse(error.found, error.needed) from None
        for name, shape in zip(step.outputs, shapes, strict=True):
            if 0 in shape:
                raise self.refuse(f"an output of shape {shape}", "every axis needs at least one channel")
            builder.shapes[name] = shape
        builder.steps.append(step)
        builder.origin[step.name] = self.origin
        return step.name

    def wire(self, index: int = 0) -> Wire:
        """The argument that must be a value at every time step."""
        if index >= len(self.args):
            raise self.refuse(f"it was called with {len(self.args)} arguments", "the layer's input must be its first argument")
        return self.as_wire(self.args[index])

    def as_wire(self, value: Any) -> Wire:
        """`value`, if it is a value at every time step; else the reason why not."""
        if isinstance(value, Wire):
            return value
        if isinstance(value, Reduced):
            raise self.refuse(
                f"its input is already reduced over time ({value.reduce})",
                "a time reduction is supported only as the last operation of the model",
                "Apply this layer before the reduction, or after the deployed model's output.",
            )
        if isinstance(value, tuple):
            raise self.refuse(
                f"its input is a tuple of {len(value)}", "one tensor is needed", "Neurons return (spikes, membrane): pass one of them."
            )
        raise self.refuse(f"its input is {type(value).__name__}", "a value computed from the model's input is needed")

    def mixes(self, x: Wire, axis: int) -> ModelRefused:
        """The error for an operation over `axis`, which is time or batch."""
        if "T" in x.axes[axis]:
            return self.mixes_time(f"axis {axis} of its input {describe_axes(x)} is time")
        return self.refuse(
            f"it mixes samples (axis {axis} of its input {describe_axes(x)} is the batch)", "every sample must be treated by itself"
        )

    def like(self, x: Wire, name: str) -> Wire:
        """A wire of the same axes under another name; feature sizes are read from the program."""
        shape = list(self.builder.shapes[name])
        count = len(x.shape)
        if len(shape) != count:
            raise self.refuse(f"an output of shape {tuple(shape)} for an input of shape {x.shape}", "the same number of axes is needed")
        sizes = tuple(shape.pop(0) if axis == "f" else n for axis, n in zip(x.axes, x.sizes, strict=True))
        return Wire(name, x.axes, sizes)


def describe_axes(x: Wire) -> str:
    """`(T, B, 5)`: the axes by meaning, features by size."""
    return "(" + ", ".join(axis if axis != "f" else str(n) for axis, n in zip(x.axes, x.sizes, strict=True)) + ")"


def to_array(value: Any) -> Array:
    """A torch tensor or number as a NumPy array of the same precision (bfloat16 and float16 widened to float32)."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj()
        if value.dtype.is_floating_point and value.element_size() < 4:
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value, np.float64)


def regroup(axes: Axes, sizes: Shape, out: Sequence[int]) -> Axes | None:
    """The axes after a row-major reshape from `sizes` to `out`; None where it tears time or batch apart or mixes them with features.

    Both shapes are cut into the smallest groups of equal product. A group of features stays features; time and batch may merge (in that
    order) and part.
    """
    result: list[str] = []
    i = j = 0
    while i < len(sizes) or j < len(out):
        unit_in, unit_out = i < len(sizes) and sizes[i] == 1, j < len(out) and out[j] == 1
        if unit_in and axes[i] == "f" and not unit_out:
            i += 1
            continue
        if unit_out and not unit_in:
            result.append("f")
            j += 1
            continue
        if i >= len(sizes) or j >= len(out):
            return None
        a, b = [i], [j]
        while (left := prod(sizes[k] for k in a)) != (right := prod(out[k] for k in b)):
            (a if left < right else b).append((a if left < right else b)[-1] + 1)
            if a[-1] >= len(sizes) or b[-1] >= len(out):
                return None
        i, j = a[-1] + 1, b[-1] + 1
        group = _group([axes[k] for k in a], [sizes[k] for k in a], [out[k] for k in b])
        if group is None:
            return None
        result += group
    return tuple(result)


def _group(axes: list[str], sizes: list[int], out: list[int]) -> list[str] | None:
    leads = [axis for axis in axes if axis != "f"]
    if not leads:
        return ["f"] * len(out)
    if any(axis == "f" and n > 1 for axis, n in zip(axes, sizes, strict=True)):
        return None
    known = [axis for axis in axes if axis != "f"]
    if len(known) == len(out) == 1:
        return known
    if known == ["T", "B"] and len(out) == 1:
        return ["TB"]
    return None


def split_lead(axes: Axes, sizes: Shape, out: Sequence[int], steps: int, batch: int) -> tuple[Axes, Shape]:
    """A merged "TB" axis taken apart, where the new shape begins a group with (T, B): then `regroup` sees them one by one."""
    if "TB" not in axes:
        return axes, sizes
    at = axes.index("TB")
    if any(tuple(out[k : k + 2]) == (steps, batch) for k in range(len(out))):
        return (*axes[:at], "T", "B", *axes[at + 1 :]), (*sizes[:at], steps, batch, *sizes[at + 1 :])
    return axes, sizes


def constant(value: Any) -> bool:
    """Whether a value is a number or a tensor of the model, known before anything runs."""
    return isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
