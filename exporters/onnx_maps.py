"""ONNX nodes of the step kinds without a memory: linear maps, wiring, elementwise and row functions.

A row takes the graph, the step and the values it reads, appends nodes, and returns the value it writes. Equations: `spikedeploy.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.exporters.onnx_graph import Graph
from spikedeploy.steps import Shape


def affine(g: Graph, step: S.Affine, x: str) -> str:
    bias = [] if step.bias is None else [g.constant("bias", step.bias)]
    if len(g.shape(step.inputs[0])) == 1:
        return g.node("Gemm", [x, g.constant("weight", step.weight), *bias], transB=1, doc="y = W x + b")
    product = g.node("MatMul", [x, g.constant("weight", step.weight.T)], "product" if bias else "", doc="y = W x")
    return g.node("Add", [product, *bias], doc="y = W x + b") if bias else product


def conv2d(g: Graph, step: S.Conv2d, x: str) -> str:
    bias = [] if step.bias is None else [g.constant("bias", step.bias)]
    return _conv(g, [x, g.constant("weight", step.weight), *bias], step, step.weight.shape[2:], step.dilation, step.groups)


def sum_pool2d(g: Graph, step: S.SumPool2d, x: str) -> str:
    """A convolution with ones: an average times the count of a window would round."""
    channels = g.shape(step.inputs[0])[0]
    ones = g.constant("ones", np.ones((channels, 1, *step.kernel), np.float32))
    return _conv(g, [x, ones], step, step.kernel, (1, 1), channels)


def _conv(g: Graph, inputs: list[str], step: S.Conv2d | S.SumPool2d, kernel: Shape, dilation: Shape, groups: int) -> str:
    (ph, pw), strides = step.padding, list(step.stride)
    return g.node("Conv", inputs, kernel_shape=list(kernel), strides=strides, pads=[ph, pw, ph, pw], dilations=list(dilation), group=groups)


def scale(g: Graph, step: S.Scale, x: str) -> str:
    y = g.node("Mul", [x, g.constant("scale", step.scale)], "" if step.offset is None else "scaled", doc="y = scale x")
    return y if step.offset is None else g.node("Add", [y, g.constant("offset", step.offset)], doc="y = scale x + offset")


def reshape(g: Graph, step: S.Reshape, x: str) -> str:
    """Nothing where the shape stays; 0 stands for the batch axis as it is."""
    return x if g.shape(step.inputs[0]) == step.shape else g.node("Reshape", [x, g.integers(0, *step.shape)])


def slice_(g: Graph, step: S.Slice, x: str) -> str:
    axis = len(g.shape(step.inputs[0]))
    return g.node("Slice", [x, g.integers(step.start), g.integers(step.stop), g.integers(axis)])


def add(g: Graph, step: S.Add, *xs: str) -> str:
    values = _aligned(g, step, xs)
    total = values[0] if len(values) > 1 else g.node("Identity", [values[0]])
    for index, value in enumerate(values[1:], 1):
        total = g.node("Add", [total, value], "" if index == len(values) - 1 else f"sum{index}")
    return total


def mul(g: Graph, step: S.Mul, a: str, b: str) -> str:
    return g.node("Mul", _aligned(g, step, (a, b)))


def _aligned(g: Graph, step: S.Add | S.Mul, xs: tuple[str, ...]) -> list[str]:
    """Broadcasting looks from the right; a shorter wire needs ones after its batch axis."""
    ranks = [len(g.shape(wire)) for wire in step.inputs]
    missing = [max(ranks) - rank for rank in ranks]
    return [
        g.node("Unsqueeze", [x, g.integers(*range(1, 1 + many))], f"aligned{index}") if many else x
        for index, (x, many) in enumerate(zip(xs, missing, strict=True))
    ]


def activation(g: Graph, step: S.Activation, x: str) -> str:
    return FUNCTIONS[step.function](g, x)


def _gelu(g: Graph, x: str) -> str:
    inner = g.node("Erf", [g.node("Mul", [x, g.real(0.5**0.5)], "scaled")], "erf")
    return g.node("Mul", [x, _half_plus_half(g, inner)], doc="x/2 (1 + erf(x/sqrt 2))")


def _gelu_tanh(g: Graph, x: str) -> str:
    cube = g.node("Mul", [g.node("Mul", [x, x], "square"), x], "cube")
    inner = g.node("Add", [x, g.node("Mul", [cube, g.real(0.044715)], "bent")], "inner")
    curve = g.node("Tanh", [g.node("Mul", [inner, g.real((2 / np.pi) ** 0.5)], "scaled")], "tanh")
    return g.node("Mul", [x, _half_plus_half(g, curve)], doc="x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))")


def _half_plus_half(g: Graph, x: str) -> str:
    return g.node("Mul", [g.node("Add", [x, g.real(1.0)], "raised"), g.real(0.5)], "gate")


FUNCTIONS: Mapping[S.Function, Callable[[Graph, str], str]] = {
    "relu": lambda g, x: g.node("Relu", [x]),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda g, x: g.node("Mul", [x, g.node("Sigmoid", [x], "gate")], doc="x sigmoid(x)"),
    "sigmoid": lambda g, x: g.node("Sigmoid", [x]),
    "tanh": lambda g, x: g.node("Tanh", [x]),
    "exp": lambda g, x: g.node("Exp", [x]),
}


def layer_norm(g: Graph, step: S.LayerNorm, x: str) -> str:
    """In primitives: the LayerNormalization operator exists from opset 17 only, and fewer runtimes have it."""
    axis = len(g.shape(step.inputs[0]))
    centred = g.node("Sub", [x, g.reduce("ReduceMean", x, axis, "mean", keep=True)], "centred")
    variance = g.reduce("ReduceMean", g.node("Mul", [centred, centred], "square"), axis, "variance", keep=True)
    deviation = g.node("Sqrt", [g.node("Add", [variance, g.real(step.eps)], "padded")], "deviation")
    y = g.node("Div", [centred, deviation], "normal" if step.weight is not None or step.bias is not None else "")
    if step.weight is not None:
        y = g.node("Mul", [y, g.constant("weight", step.weight)], "weighted" if step.bias is not None else "")
    return y if step.bias is None else g.node("Add", [y, g.constant("bias", step.bias)])


def l2_normalize(g: Graph, step: S.L2Normalize, x: str) -> str:
    norm = g.reduce("ReduceL2", x, len(g.shape(step.inputs[0])), "norm", keep=True)
    return g.node("Div", [x, g.node("Max", [norm, g.real(step.eps)], "floor")], doc="x / max(|x|, eps)")


def embedding(g: Graph, step: S.Embedding, x: str) -> str:
    """The input of whole numbers is int64 already."""
    return g.node("Gather", [g.constant("table", step.table), x], axis=0, doc="table[x]")


def topk(g: Graph, step: S.TopK, x: str) -> str:
    """ONNX settles ties as we do: the lower index first. A mask is scattered, not values: onnx.reference fails to gather some shapes."""
    axis = len(g.shape(step.inputs[0]))
    if step.k == g.shape(step.inputs[0])[-1]:
        return x
    top, index = g.pair("TopK", [g.node("Abs", [x], "magnitude"), g.integers(step.k)], ("top", "index"), axis=axis, largest=1, sorted=1)
    nowhere, everywhere = g.node("Less", [x, x], "nowhere"), g.node("Equal", [top, top], "everywhere")
    mask = g.node("ScatterElements", [nowhere, index, everywhere], "mask", axis=axis)
    return g.node("Where", [mask, x, g.real(0.0)], doc=f"the {step.k} largest, zeros elsewhere")


def nearest(g: Graph, step: S.Nearest, x: str) -> str:
    """ArgMin gives the first of equals, which is the lower level."""
    axis = len(g.shape(step.inputs[0])) + 1
    levels = g.constant("levels", step.levels)
    distance = g.node("Abs", [g.node("Sub", [g.unsqueeze(x, axis, "column"), levels], "difference")], "distance")
    return g.node("Gather", [levels, g.node("ArgMin", [distance], "index", axis=axis, keepdims=0)], axis=0, doc="the nearest level")
