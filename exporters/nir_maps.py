"""Linear maps and wiring as NIR nodes: one row per step kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.exporters.nir_build import Builder, Wire, per_channel
from spikedeploy.exporters.nir_neurons import put_integrator, put_lif, put_threshold
from spikedeploy.steps import Array, Step


def put_affine(build: Builder, step: S.Affine) -> None:
    source = build.wires[step.inputs[0]]
    if len(source.shape) != 1:
        raise build.refuse(f"it acts on a wire of shape {source.shape}", "NIR's Affine reads a vector", "Use --target onnx.")
    weight: Array = step.weight
    if source.factor is not None:
        weight = weight.astype(np.float64) * np.broadcast_to(source.factor, source.shape)
    bias = np.zeros(len(weight), weight.dtype) if step.bias is None else step.bias
    build.put(step, "Affine", source, weight=weight, bias=bias)


_ELSE = "Use --profile generic."


def put_conv2d(build: Builder, step: S.Conv2d) -> None:
    source = build.wires[step.inputs[0]]
    if build.profile.channels_last and step.dilation != (1, 1):
        raise build.refuse(f"a dilation of {step.dilation}", f"the reader of profile '{build.profile.name}' ignores it", _ELSE)
    weight = dense_groups(step)
    if source.factor is not None:
        channel = per_channel(source.factor, (source.shape[0], 1, 1))
        if channel is None:
            source = build.plain(step.inputs[0])
        else:
            weight = weight.astype(np.float64) * channel.reshape(1, -1, 1, 1)
    weight, padding = square(build, step, weight, source.shape)
    bias = np.zeros(len(weight), weight.dtype) if step.bias is None else step.bias
    whole = {"stride": step.stride, "padding": padding, "dilation": step.dilation, "input_shape": source.shape[1:]}
    build.put(step, "Conv2d", source, None, weight=weight, bias=bias, groups=1, **whole)


def dense_groups(step: S.Conv2d) -> Array:
    """Grouped weights with their zeros written out: NIR's type rules and several readers know one group only."""
    if step.groups == 1:
        return step.weight
    out, per_group, kh, kw = step.weight.shape
    dense = np.zeros((out, per_group * step.groups, kh, kw), step.weight.dtype)
    rows = out // step.groups
    for g in range(step.groups):
        dense[g * rows : (g + 1) * rows, g * per_group : (g + 1) * per_group] = step.weight[g * rows : (g + 1) * rows]
    return dense


def square(build: Builder, step: S.Conv2d, weight: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, int]]:
    """The kernel in a square frame of zeros: nir infers shapes from its height alone and would refuse other kernels."""
    kernel = weight.shape[2:]
    side = max(kernel)
    if kernel[0] == kernel[1]:
        return weight, step.padding
    before = []
    for axis in (0, 1):
        spare = side - kernel[axis]
        fits = [
            a for a in {spare // 2, (spare + 1) // 2} if _count(step, shape, axis, side, a) == _count(step, shape, axis, kernel[axis], 0)
        ]
        if not fits:
            raise build.refuse(
                f"a kernel of {kernel[0]} x {kernel[1]}",
                "sides that differ by an even number",
                "nir 1.0.8 infers shapes for square ones only.",
            )
        before.append(min(fits))
    framed = np.zeros((*weight.shape[:2], side, side), weight.dtype)
    framed[:, :, before[0] : before[0] + kernel[0], before[1] : before[1] + kernel[1]] = weight
    padding = tuple(step.padding[i] + before[i] * step.dilation[i] for i in (0, 1))
    return framed, (padding[0], padding[1])


def _count(step: S.Conv2d, shape: tuple[int, ...], axis: int, kernel: int, before: int) -> int:
    """Output positions along an axis with a kernel of this size and `before` zero taps in front."""
    reach = step.dilation[axis] * (kernel - 1)
    return (shape[axis + 1] + 2 * (step.padding[axis] + before * step.dilation[axis]) - reach - 1) // step.stride[axis] + 1


def mean_of(build: Builder, step: S.SumPool2d) -> S.Scale | None:
    """The Scale that makes the sum a mean, when that is all that reads the sum."""
    readers = build.program.readers(step.name)
    shown = any(output.wire == step.name for output in build.program.outputs)
    if len(readers) != 1 or shown or not isinstance(readers[0], S.Scale) or readers[0].offset is not None:
        return None
    area = step.kernel[0] * step.kernel[1]
    return readers[0] if np.allclose(readers[0].scale, 1 / area, rtol=1e-7, atol=0) else None


def put_pool(build: Builder, step: S.SumPool2d) -> None:
    source = build.wires[step.inputs[0]]
    factor = None
    if source.factor is not None:
        factor = per_channel(source.factor, (source.shape[0], 1, 1))
        source = build.plain(step.inputs[0]) if factor is None else source
    mean = mean_of(build, step)
    pool = {"kernel_size": np.array(step.kernel), "stride": np.array(step.stride), "padding": np.array(step.padding)}
    if any(step.padding) and not build.profile.padded_pool:
        raise build.refuse("a pool with padding", f"the reader of profile '{build.profile.name}' ignores it", _ELSE)
    if "SumPool2d" in build.profile.nodes and not ("AvgPool2d" in build.profile.nodes and (any(step.padding) or build.profile.mean_pool)):
        build.put(step, "SumPool2d", source, factor, **pool)
        return
    area = float(step.kernel[0] * step.kernel[1])
    shown = mean if mean is not None else step
    name = build.add(shown.name, "AvgPool2d", source.nodes, **pool)
    left = factor if mean is not None else (np.array(area) if factor is None else factor * area)
    build.wires[shown.name] = Wire((name,), build.program.wires[step.name], left)


def put_scale(build: Builder, step: S.Scale) -> None:
    if step.name in build.wires:  # it went into an AvgPool2d
        return
    source = build.wires[step.inputs[0]]
    factor = np.asarray(step.scale, np.float64)
    if source.factor is not None:
        factor = factor * source.factor
    if step.offset is None or not np.any(step.offset):
        build.wires[step.name] = Wire(source.nodes, source.shape, factor)
        return
    if len(source.shape) != 1:
        raise build.refuse(f"an offset on a wire of shape {source.shape}", "a bias of the layer before it", "Use --target onnx.")
    weight, bias = np.diag(np.broadcast_to(factor, source.shape)), np.broadcast_to(step.offset, source.shape).astype(np.float64)
    build.put(step, "Affine", source, weight=weight, bias=bias)


def put_reshape(build: Builder, step: S.Reshape) -> None:
    source = build.wires[step.inputs[0]]
    if step.shape == source.shape:
        build.wires[step.name] = source
        return
    if len(step.shape) != 1:
        raise build.refuse(f"{source.shape} becomes {step.shape}", "NIR can only flatten to a vector", "Use --target onnx.")
    if build.profile.channels_last and len(source.shape) == 3 and source.shape[0] > 1 and source.shape[1] * source.shape[2] > 1:
        raise build.refuse(f"it flattens {source.shape}", f"the reader of profile '{build.profile.name}' does so channels-last", _ELSE)
    factor = None if source.factor is None else np.broadcast_to(source.factor, source.shape).reshape(-1)
    # counted from the end: readers that hold a batch axis in front flatten the same axes
    build.put(step, "Flatten", source, factor, shape=np.array(source.shape), start_dim=-len(source.shape), end_dim=-1)


def put_add(build: Builder, step: S.Add) -> None:
    wires = [build.wires[name] for name in step.inputs]
    if len({wire.shape for wire in wires}) != 1:
        raise build.refuse(f"it adds shapes {[wire.shape for wire in wires]}", "equal shapes", "Use --target onnx.")
    same = all(_same(wire.factor, wires[0].factor) for wire in wires)
    if not same:
        wires = [build.plain(name) for name in step.inputs]
    nodes = build.distinct(wires, step.name)
    build.wires[step.name] = Wire(nodes, wires[0].shape, wires[0].factor if same else None)


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def put_delay(build: Builder, step: S.Delay) -> None:
    source = build.wires[step.inputs[0]]
    build.put(step, "Delay", source, source.factor, delay=np.full(source.shape, step.steps * build.dt))


STEPS: Mapping[type[Step], Callable[..., None]] = {
    S.Affine: put_affine,
    S.Conv2d: put_conv2d,
    S.SumPool2d: put_pool,
    S.Scale: put_scale,
    S.Reshape: put_reshape,
    S.Add: put_add,
    S.Delay: put_delay,
    S.Integrator: put_integrator,
    S.Threshold: put_threshold,
    S.LIF: put_lif,
}
"""Per step kind: how it enters the graph. A kind that is not here has no NIR node."""

WORDS: Mapping[type[Step], str] = {
    S.Nearest: "state_quant (a membrane rounded to levels)",
    S.MatrixMemory: "a matrix-valued memory",
    S.DeltaMemory: "a delta-rule memory",
    S.DiagonalSSM: "a complex state-space layer",
    S.Activation: "an activation function",
    S.LayerNorm: "LayerNorm",
    S.L2Normalize: "a normalisation",
    S.Embedding: "an embedding",
    S.TopK: "a top-k selection",
    S.Slice: "a slice of a wire",
    S.Mul: "a product of two wires",
    S.MatMul: "a product of two wires",
}
"""What a refusal calls the kinds that have no row above."""
