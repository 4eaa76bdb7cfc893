"""Operations on real-valued wires, and how they lie in memory for the compiled kernels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime import events_conv as conv
from spikedeploy.runtime.events_op import Context, Packed, integers
from spikedeploy.runtime.events_pack import aligned, padded, up, width_of
from spikedeploy.runtime.events_plan import Group
from spikedeploy.runtime.events_state import Padded, Ring
from spikedeploy.steps import Array

FUNCTIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "exp")
"""The order of the cases in `native/events_dense.c`."""


def pack_pool(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.SumPool2d)
    seen, shape = context.shape(step.inputs[0]), context.shape(step.name)
    sizes = (seen[2], seen[0] * seen[1], prod(shape), shape[2], *conv.division(seen[2]))
    return Packed("POOL", step.name, sizes=sizes, arrays={"taps": conv.pool_tables(step, seen, shape)})


def pack_scale(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Scale)
    shape = context.shape(step.name)
    arrays = {"weight": padded(step.scale, shape)} | ({} if step.offset is None else {"bias": padded(step.offset, shape)})
    return Packed("SCALE", step.name, sizes=(prod(shape),), arrays=arrays)


def _rowwise(kind: str, context: Context, group: Group, **more: Any) -> Packed:
    return Packed(kind, group.head.name, sizes=(prod(context.shape(group.head.name)),), **more)


def pack_activation(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Activation)
    return _rowwise("ACTIVATION", context, group, mode=FUNCTIONS.index(step.function))


def pack_slice(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Slice)
    wide = context.shape(step.inputs[0])
    return Packed("SLICE", step.name, sizes=(step.stop - step.start, step.start, wide[-1], prod(wide[:-1])))


def pack_topk(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.TopK)
    shape = context.shape(step.name)
    arrays = {"scratch": aligned((shape[-1],), np.float32)}
    return Packed("TOPK", step.name, sizes=(shape[-1], min(step.k, shape[-1]), prod(shape[:-1])), arrays=arrays)


def pack_nearest(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Nearest)
    return Packed(
        "NEAREST", step.name, sizes=(prod(context.shape(step.name)), len(step.levels)), arrays={"weight": np.array(step.levels, np.float32)}
    )


def pack_embedding(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Embedding)
    rows, width = step.table.shape
    sizes = (width, prod(context.shape(step.inputs[0])), rows)
    return Packed("EMBEDDING", step.name, sizes=sizes, arrays={"weight": np.array(step.table, np.float32)})


def pack_elementwise(context: Context, group: Group) -> Packed:
    """A sum or a product; where shapes differ, per input and element the place it is read from."""
    step, shape = group.head, context.shape(group.head.name)
    kind = "ADD" if isinstance(step, S.Add) else "MUL"
    seen = [context.shape(wire) for wire in step.inputs]
    if all(size == shape for size in seen):
        return _rowwise(kind, context, group)
    places = [np.broadcast_to(np.arange(prod(size), dtype=np.int32).reshape(size), shape).ravel() for size in seen]
    return _rowwise(kind, context, group, arrays={"taps": np.concatenate(places)})


def pack_delay(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Delay)
    shape = context.shape(step.name)
    ring = Ring(aligned((step.steps, context.batch, width_of(prod(shape))), np.float32), (step.steps, *shape), np.zeros(1, np.int32))
    arrays = {"state": ring.memory, "pending": ring.head}
    return Packed("DELAY", step.name, sizes=(prod(shape), step.steps), arrays=arrays, slots={(step.name, "line"): ring})


def _norm(context: Context, group: Group, eps: float) -> tuple[tuple[int, int], dict[str, Array]]:
    shape = context.shape(group.head.name)
    return (shape[-1], prod(shape[:-1])), {"scale": np.array([eps], np.float32)}


def pack_layer_norm(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.LayerNorm)
    sizes, arrays = _norm(context, group, step.eps)
    shape = context.shape(step.name)
    arrays |= {} if step.weight is None else {"weight": padded(step.weight, shape)}
    arrays |= {} if step.bias is None else {"bias": padded(step.bias, shape)}
    return Packed("NORM", step.name, sizes=sizes, arrays=arrays)


def pack_l2(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.L2Normalize)
    sizes, arrays = _norm(context, group, step.eps)
    return Packed("L2", step.name, sizes=sizes, arrays=arrays)


def pack_matmul(context: Context, group: Group) -> Packed:
    (d, n), (_, m) = (context.shape(wire) for wire in group.head.inputs)
    return Packed("MATMUL", group.head.name, sizes=(d, n, m, m))


def pack_rows(context: Context, group: Group) -> Packed:
    """A linear map of each row of a matrix: the product with a matrix that never changes."""
    step = group.head
    assert isinstance(step, S.Affine)
    out, wide = step.weight.shape

    def columns(weight: Array) -> Array:
        """Input-major, every row padded to whole vectors."""
        packed = aligned((wide, up(out)), weight.dtype)
        packed[:, :out] = weight.T
        return packed

    arrays = {"weight": columns(step.weight)} | ({} if step.bias is None else {"bias": padded(step.bias, (out,))})
    arrays |= integers(context, step, lambda q: columns(q.astype(np.int32)), lambda scale: padded(scale, scale.shape))
    return Packed("MATMUL", step.name, sizes=(prod(context.shape(step.name)) // out, wide, out, up(out)), arrays=arrays)


def pack_ssm(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.DiagonalSSM)
    channels, modes = shape = step.a_re.shape
    width = up(channels * modes)
    weight = aligned((4 * channels * modes,), np.float32)
    weight[:] = np.concatenate([part.ravel() for part in (step.a_re, step.a_im, step.c_re, step.c_im)])
    re, im = (aligned((context.batch, width), np.float32) for _ in range(2))
    arrays = {"weight": weight, "bias": padded(step.d, (channels,)), "state": re, "state2": im, "scratch": aligned((width,), np.float32)}
    slots = {(step.name, "re"): Padded(re, shape), (step.name, "im"): Padded(im, shape)}
    return Packed("SSM", step.name, sizes=(channels, modes, width), arrays=arrays, slots=slots)
