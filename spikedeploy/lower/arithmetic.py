"""Elementwise operations between wires, with constants, and the activation functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.lower import wiring
from spikedeploy.lower.builder import Call, Dim, Reduced, Wire, constant, describe_axes, from_sizes, to_array
from spikedeploy.steps import Array


def _aligned(call: Call, a: Wire, b: Wire) -> Wire:
    """The axes of an elementwise operation on both, broadcasting from the right as torch does."""
    long, short = (a, b) if len(a.axes) >= len(b.axes) else (b, a)
    shift = len(long.axes) - len(short.axes)
    axes, sizes = list(long.axes), list(long.sizes)
    for i, (axis, n) in enumerate(zip(short.axes, short.sizes, strict=True)):
        at = i + shift
        if axis == axes[at]:
            sizes[at] = max(sizes[at], n)
        elif axes[at] == "f" and sizes[at] == 1:
            axes[at], sizes[at] = axis, n
        elif not (axis == "f" and n == 1):
            raise call.refuse(
                f"operands {describe_axes(a)} and {describe_axes(b)}", "axes of the same meaning in the same place are needed"
            )
    joint = Wire("", tuple(axes), tuple(sizes))
    leads = [axis for axis in joint.axes if axis != "f"]
    if joint.axes != (*leads, *("f",) * len(joint.shape)) and a.axes != b.axes:
        raise call.refuse(f"operands {describe_axes(a)} and {describe_axes(b)}", "time and batch first are needed where shapes differ")
    return joint


def _constant(call: Call, x: Wire, value: Any) -> Array:
    """A constant operand as it broadcasts to the wire's features; time and batch must be of size one in it."""
    if from_sizes(value):
        raise call.refuse(
            "it computes with the number of steps or samples",
            "one time step cannot know them",
            "Use mean(0) instead of a sum divided by T; or use a fixed number.",
        )
    array = to_array(value)
    if array.ndim > len(x.axes):
        raise call.refuse(f"a constant of shape {array.shape} with {describe_axes(x)}", "one that broadcasts to the wire is needed")
    padded = array.reshape((1,) * (len(x.axes) - array.ndim) + array.shape)
    for axis, n in zip(x.axes, padded.shape, strict=True):
        if axis != "f" and n != 1:
            what = "time step" if "T" in axis else "sample"
            raise call.refuse(f"a constant of shape {array.shape} that differs by {what}", f"the same constant at every {what} is needed")
    shape = tuple(n for axis, n in zip(x.axes, padded.shape, strict=True) if axis == "f")
    return padded.reshape(shape)


def _scale(call: Call, x: Wire, scale: Array, offset: Array | None, name: str) -> Wire:
    return call.like(x, call.emit(S.Scale(name, (x.name,), scale, offset)))


def _on_reduced(call: Call, value: Reduced, factor: Any) -> Reduced:
    """A reduced value times a constant: the factor moves inside; `sum / T` is the mean."""
    array = _constant(call, value.wire, factor)
    if value.reduce == "max" and np.any(array < 0):
        raise call.refuse("a negative factor of a maximum", "a positive one is needed")
    return Reduced(_scale(call, value.wire, array, None, call.name), value.reduce)


ONE = np.array(1.0)


def add(call: Call, *rest: Any) -> Any:
    """`a + b`, `torch.add(a, b, alpha=)`."""
    return _sum(call, 1.0)


def sub(call: Call, *rest: Any) -> Any:
    """`a - b`."""
    return _sum(call, -1.0)


def _sum(call: Call, sign: float) -> Any:
    a, b = call.args[:2]
    sign = sign * float(call.kwargs.get("alpha", 1))
    if constant(a) and constant(b):
        return call.result
    if constant(b):
        x = call.as_wire(a)
        return _scale(call, x, ONE, sign * _constant(call, x, b), call.name)
    if constant(a):
        x = call.as_wire(b)
        return _scale(call, x, np.array(sign), _constant(call, x, a), call.name)
    a, b = call.as_wire(a), call.as_wire(b)
    joint = _aligned(call, a, b)
    if sign != 1.0:
        b = _scale(call, b, np.array(sign), None, f"{call.name}.scaled")
    return call.like(joint, call.emit(S.Add(call.name, (a.name, b.name))))


def mul(call: Call, *rest: Any) -> Any:
    """`a * b`."""
    a, b = call.args[:2]
    if constant(a) and constant(b):
        return call.result
    if constant(a):
        a, b = b, a
    if constant(b):
        if isinstance(a, Reduced):
            return _on_reduced(call, a, b)
        x = call.as_wire(a)
        return _scale(call, x, _constant(call, x, b), None, call.name)
    a, b = call.as_wire(a), call.as_wire(b)
    joint = _aligned(call, a, b)
    return call.like(joint, call.emit(S.Mul(call.name, (a.name, b.name))))


def div(call: Call, *rest: Any) -> Any:
    """`a / b` by a constant; a sum over time divided by T is the mean."""
    a, b = call.args[:2]
    if call.kwargs.get("rounding_mode"):
        raise call.refuse("a division that rounds", "a plain division is needed")
    if constant(a) and constant(b):
        return call.result
    if isinstance(a, Reduced) and a.reduce == "sum" and isinstance(b, Dim) and b.axis == "T":
        return Reduced(a.wire, "mean")
    if not constant(b):
        raise call.refuse("a division by a computed value", "a division by a constant is needed")
    if isinstance(a, Reduced):
        return _on_reduced(call, a, _inverse(call, a.wire, b))
    x = call.as_wire(a)
    return _scale(call, x, _inverse(call, x, b), None, call.name)


def _inverse(call: Call, x: Wire, b: Any) -> Array:
    array = _constant(call, x, b).astype(np.float64)
    if np.any(array == 0):
        raise call.refuse("a division by zero", "a divisor other than zero is needed")
    return 1.0 / array


def neg(call: Call, *rest: Any) -> Wire:
    """`-a`."""
    x = call.wire()
    return _scale(call, x, np.array(-1.0), None, call.name)


def square(call: Call, *rest: Any) -> Wire:
    """`a ** 2`, `a.square()`."""
    x = call.wire()
    if len(call.args) > 1 and call.args[1] != 2:
        raise call.refuse(f"a power of {call.args[1]}", "a power of 2 is supported")
    return call.like(x, call.emit(S.Mul(call.name, (x.name, x.name))))


def activation(function: S.Function) -> Callable[..., Wire]:
    """The rule for one elementwise function."""

    def rule(call: Call, *rest: Any) -> Wire:
        x = call.wire()
        return call.like(x, call.emit(S.Activation(call.name, (x.name,), function)))

    return rule


_GELU, _GELU_TANH = activation("gelu"), activation("gelu_tanh")


def gelu(call: Call, module: Any = None) -> Wire:
    """GELU, exact or by tanh."""
    kind = module.approximate if module is not None else call.kwargs.get("approximate", "none")
    return (_GELU_TANH if kind == "tanh" else _GELU)(call)


def glu(call: Call, module: Any = None) -> Wire:
    """`a * sigmoid(b)` where the last axis is `[a, b]`."""
    x = call.wire()
    dim = module.dim if module is not None else call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    if dim % len(x.axes) != len(x.axes) - 1 or x.axes[-1] != "f":
        raise call.refuse(f"a gate over axis {dim} of {describe_axes(x)}", "the last axis is needed")
    half = x.sizes[-1] // 2
    a = wiring.cut(call, x, slice(0, half), name=f"{call.name}.value")
    b = wiring.cut(call, x, slice(half, 2 * half), name=f"{call.name}.gate")
    gate = call.emit(S.Activation(f"{call.name}.sigmoid", (b.name,), "sigmoid"))
    return call.like(a, call.emit(S.Mul(call.name, (a.name, gate))))
