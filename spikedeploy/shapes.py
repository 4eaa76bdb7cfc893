"""What shape each step writes and which states it keeps: two tables, one row per step kind.

Shapes leave out the batch axis. A row raises `ShapeError` with what it found and what it needs; `Program` adds where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.steps import Shape, Step

States = dict[str, Shape]


class ShapeError(Exception):
    """What was found and what is needed; the caller says where."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(f"{found}; {needed}")
        self.found, self.needed = found, needed


def _need(condition: bool, found: str, needed: str) -> None:
    if not condition:
        raise ShapeError(found, needed)


def _broadcast(x: Shape, *arrays: Any) -> Shape:
    """The wire's shape, after checking that every parameter broadcasts to it without enlarging it."""
    for array in arrays:
        if array is None:
            continue
        try:
            fits = np.broadcast_shapes(x, array.shape) == x
        except ValueError:
            fits = False
        _need(fits, f"a parameter of shape {array.shape}", f"it must broadcast to the wire's shape {x}")
    return x


def _same(step: Step, x: Shape) -> Shape:
    return x


def _affine(step: S.Affine, x: Shape) -> Shape:
    _need(step.weight.ndim == 2, f"a weight of shape {step.weight.shape}", "a matrix (out, in) is needed")
    out, wide = step.weight.shape
    _need(
        len(x) >= 1 and x[-1] == wide,
        f"an input of shape {x}",
        f"its last axis must be {wide}, as the weight {step.weight.shape} says",
    )
    if step.bias is not None:
        _need(step.bias.shape == (out,), f"a bias of shape {step.bias.shape}", f"({out},) is needed")
    return (*x[:-1], out)


def _window(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    _need(
        stride > 0 and count > 0,
        f"size {size} under a window of {kernel}",
        "at least one whole window must fit",
    )
    return count


def _conv2d(step: S.Conv2d, x: Shape) -> Shape:
    _need(step.weight.ndim == 4, f"a weight of shape {step.weight.shape}", "(out, in/groups, kH, kW) is needed")
    out, per_group, kh, kw = step.weight.shape
    _need(
        len(x) == 3 and x[0] == per_group * step.groups,
        f"an input of shape {x}",
        f"({per_group * step.groups}, H, W) is needed",
    )
    _need(
        out % step.groups == 0,
        f"{out} output channels in {step.groups} groups",
        "the groups must divide them",
    )
    if step.bias is not None:
        _need(step.bias.shape == (out,), f"a bias of shape {step.bias.shape}", f"({out},) is needed")
    h = _window(x[1], kh, step.stride[0], step.padding[0], step.dilation[0])
    w = _window(x[2], kw, step.stride[1], step.padding[1], step.dilation[1])
    return (out, h, w)


def _pool(step: S.SumPool2d, x: Shape) -> Shape:
    _need(len(x) == 3, f"an input of shape {x}", "(C, H, W) is needed")
    h, w = (_window(x[i + 1], step.kernel[i], step.stride[i], step.padding[i]) for i in (0, 1))
    return (x[0], h, w)


def _reshape(step: S.Reshape, x: Shape) -> Shape:
    _need(prod(step.shape) == prod(x), f"an input of shape {x}", f"it cannot become {step.shape}")
    return step.shape


def _slice(step: S.Slice, x: Shape) -> Shape:
    _need(
        len(x) >= 1 and 0 <= step.start < step.stop <= x[-1],
        f"a slice {step.start}:{step.stop} of {x}",
        "it must lie inside the last axis",
    )
    return (*x[:-1], step.stop - step.start)


def _combine(step: Step, *xs: Shape) -> Shape:
    try:
        return tuple(int(n) for n in np.broadcast_shapes(*xs))
    except ValueError:
        raise ShapeError(f"inputs of shapes {', '.join(map(str, xs))}", "they must broadcast") from None


def _matmul(step: S.MatMul, a: Shape, b: Shape) -> Shape:
    _need(
        len(a) == len(b) == 2 and a[1] == b[0],
        f"inputs of shapes {a} and {b}",
        "(d, n) and (n, m) are needed",
    )
    return (a[0], b[1])


def _delay(step: S.Delay, x: Shape) -> Shape:
    _need(step.steps >= 1, f"a delay of {step.steps} steps", "at least one is needed")
    return x


def _norm(step: S.LayerNorm, x: Shape) -> Shape:
    _need(len(x) >= 1, "a scalar", "an axis to normalise is needed")
    return _broadcast(x, step.weight, step.bias)


def _embedding(step: S.Embedding, x: Shape) -> Shape:
    _need(step.table.ndim == 2, f"a table of shape {step.table.shape}", "(rows, C) is needed")
    return (*x, step.table.shape[1])


def _topk(step: S.TopK, x: Shape) -> Shape:
    _need(len(x) >= 1 and 1 <= step.k <= x[-1], f"k = {step.k} of {x}", "k must lie between 1 and the width")
    return x


def _memory(step: S.MatrixMemory, v: Shape, k: Shape, alpha: Shape) -> Shape:
    _need(len(v) == len(k) == 1 and k == alpha, f"v {v}, k {k}, alpha {alpha}", "(d,), (n,) and (n,) are needed")
    return (v[0], k[0])


def _delta(step: S.DeltaMemory, v: Shape, k: Shape, alpha: Shape, beta: Shape) -> Shape:
    _need(
        len(v) == len(k) == 1 and k == alpha and beta == (1,),
        f"v {v}, k {k}, alpha {alpha}, beta {beta}",
        "(d,), (n,), (n,) and (1,) are needed",
    )
    return (v[0], k[0])


def _ssm(step: S.DiagonalSSM, x: Shape) -> Shape:
    modes = step.a_re.shape
    _need(
        len(x) == 1 and len(modes) == 2 and modes[0] == x[0],
        f"an input of shape {x} for modes {modes}",
        "(H,) and (H, M) are needed",
    )
    _need(
        all(p.shape == modes for p in (step.a_im, step.c_re, step.c_im)),
        "A and C of different shapes",
        f"all must be {modes}",
    )
    _need(step.d.shape == x, f"D of shape {step.d.shape}", f"{x} is needed")
    return x


OUTPUT_SHAPE: Mapping[type[Step], tuple[int, Callable[..., Shape]]] = {
    S.Affine: (1, _affine),
    S.Conv2d: (1, _conv2d),
    S.SumPool2d: (1, _pool),
    S.Scale: (1, lambda step, x: _broadcast(x, step.scale, step.offset)),
    S.Reshape: (1, _reshape),
    S.Slice: (1, _slice),
    S.Add: (-1, _combine),
    S.Mul: (2, _combine),
    S.MatMul: (2, _matmul),
    S.Delay: (1, _delay),
    S.Activation: (1, _same),
    S.LayerNorm: (1, _norm),
    S.L2Normalize: (1, _same),
    S.Embedding: (1, _embedding),
    S.TopK: (1, _topk),
    S.Nearest: (1, _same),
    S.Integrator: (1, lambda step, x: _broadcast(x, step.decay)),
    S.Threshold: (1, lambda step, x: _broadcast(x, step.threshold, step.amplitude)),
    S.LIF: (1, lambda step, x: _broadcast(x, step.decay, step.threshold, step.amplitude, step.reset_value)),
    S.MatrixMemory: (3, _memory),
    S.DeltaMemory: (4, _delta),
    S.DiagonalSSM: (1, _ssm),
}
"""Per step kind: how many inputs it takes (-1: one or more) and the shape it writes from the shapes it reads."""


def _matrix_states(step: S.MatrixMemory, v: Shape, k: Shape, alpha: Shape) -> States:
    return {"S": (v[0], k[0])} | ({"log_p": k} if step.semantics == "snntorch-1.0.0" else {})


STATES: Mapping[type[Step], Callable[..., States]] = {
    S.Delay: lambda step, x: {"line": (step.steps, *x)},
    S.Integrator: lambda step, x: {"u": x},
    S.LIF: lambda step, x: {"u": x},
    S.MatrixMemory: _matrix_states,
    S.DeltaMemory: lambda step, v, k, alpha, beta: {"S": (v[0], k[0])},
    S.DiagonalSSM: lambda step, x: {"re": step.a_re.shape, "im": step.a_re.shape},
}
"""Per step kind with a memory: its states by name, all zero at the start. A kind that is not here has none."""


def shapes_of(step: Step, inputs: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes of all wires that the step writes."""
    count, rule = OUTPUT_SHAPE[type(step)]
    fits = len(inputs) >= 1 if count < 0 else len(inputs) == count
    _need(fits, f"{len(inputs)} inputs", "one or more are needed" if count < 0 else f"{count} are needed")
    return (rule(step, *inputs),) * len(step.outputs)


def states_of(step: Step, inputs: Sequence[Shape]) -> States:
    """The step's states by name, without the batch axis."""
    rule = STATES.get(type(step))
    return {} if rule is None else rule(step, *inputs)
