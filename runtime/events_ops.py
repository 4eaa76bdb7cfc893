"""Per step kind, how its parameters and states are laid out for the compiled kernels. One table, `PACK`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import events_conv as conv
from spikedeploy.runtime.events_pack import (
    aligned,
    padded,
    panel_major,
    panel_pairs,
    panels,
    stays_silent,
    up,
)  # fmt: skip
from spikedeploy.runtime.events_plan import Group, uniform_amplitude
from spikedeploy.runtime.events_quant import Quantised
from spikedeploy.runtime.events_state import Padded, Ring, Slot
from spikedeploy.steps import Array, Step

KINDS = (
    "EVENTS",
    "LAYER",
    "CONV",
    "POOL",
    "SCALE",
    "ADD",
    "MUL",
    "ACTIVATION",
    "DELAY",
    "MEMORY",
    "DELTA",
    "MATMUL",
    "NORM",
    "L2",
    "SSM",
    "SLICE",
    "TOPK",
    "NEAREST",
    "EMBEDDING",
)
"""The order of the enumeration in `native/events_common.inc`."""


NEURONS = ("none", "leak", "plain", "subtract", "zero", "subtract now", "zero now", "value", "threshold")
FUNCTIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "exp")


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One operation without its wires: kind, sizes, arrays by field of `sd_event_op`, states, and which wires it writes."""

    kind: str
    out: str | None
    mem: str | None = None
    current: str | None = None
    mode: int = 0
    strict: bool = True
    sizes: tuple[int, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    slots: Mapping[tuple[str, str], Slot] = field(default_factory=dict)
    silent: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What packing needs to know besides the step."""

    program: Program
    batch: int
    quantised: Mapping[str, Quantised]

    def shape(self, wire: str) -> tuple[int, ...]:
        return self.program.wires[wire]


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """The neuron part of an operation: its mode, its arrays in the order of the operation, and its wires."""

    mode: str
    strict: bool
    arrays: dict[str, Array]
    slots: dict[tuple[str, str], Slot]
    out: str
    mem: str | None


def _mode(step: S.LIF) -> str:
    if step.reset == "value":
        return "value"
    return step.reset if step.reset_delay else f"{step.reset} now"


def _firing(step: S.Threshold | S.LIF, shape: tuple[int, ...], **layout: Any) -> dict[str, Array]:
    """Lanes without a neuron never fire, whatever falls into them: nothing is above NaN."""
    return {"theta": padded(step.threshold, shape, np.nan, **layout), "amplitude": padded(step.amplitude, shape, 1.0, **layout)}


def _neurons(context: Context, group: Group, order: Array | None = None, width: int | None = None) -> Neurons:
    lif, integrator = group.find(S.LIF), group.find(S.Integrator)
    threshold = group.find(S.Threshold)
    last = group.steps[-1]
    shape = context.shape(last.name)
    layout: dict[str, Any] = {"order": order, "width": width}
    arrays: dict[str, Array] = {}
    slots: dict[tuple[str, str], Slot] = {}
    keeper = lif or integrator
    if isinstance(keeper, S.LIF | S.Integrator):
        arrays["decay"] = padded(keeper.decay, shape, 0.0, **layout)
        arrays["state"] = aligned((context.batch, len(arrays["decay"])), np.float32)
        slots[(keeper.name, "u")] = Padded(arrays["state"], shape, order)
    if isinstance(lif, S.LIF):
        arrays |= _firing(lif, shape, **layout) | {"reset": padded(lif.reset_value, shape, 0.0, **layout)}
        return Neurons(_mode(lif), lif.strict, arrays, slots, lif.name, lif.outputs[1])
    if isinstance(threshold, S.Threshold):
        arrays |= _firing(threshold, shape, **layout)
        mode = "threshold" if integrator is None else "plain"
        return Neurons(mode, threshold.strict, arrays, slots, threshold.name, None if integrator is None else integrator.name)
    if integrator is not None:
        return Neurons("leak", True, arrays, slots, integrator.name, integrator.name)
    return Neurons("none", True, arrays, slots, last.name, None)


def _integers(context: Context, step: Step, layout: Callable[[Array], Array], spread: Callable[[Array], Array]) -> dict[str, Array]:
    """Integer weights and what turns their sums into currents; empty for float32."""
    found = context.quantised.get(step.name)
    if found is None:
        return {}
    amplitude = uniform_amplitude(context.program, step.inputs[0])
    scale = found.scale * (np.float32(1) if amplitude is None else amplitude)
    return {"integer": layout(found.q), "scale": spread(scale)}


def _silent(neurons: Neurons, bias: Array) -> Array | None:
    """Per panel whether a quiet step without events provably stays quiet; None where no such proof is made."""
    if neurons.mode not in ("plain", "subtract", "zero", "value"):
        return None
    theta = neurons.arrays["theta"]
    quiet = stays_silent(neurons.arrays["decay"], theta, bias, strict=neurons.strict) & (theta >= 0 if neurons.strict else theta > 0)
    quiet |= np.isnan(theta)
    return np.array([quiet[first : first + count].all() for first, count in panels(len(bias))], np.uint8)


def _skipping(context: Context, count: int) -> dict[str, Array]:
    """What skipped panels remember."""
    return {"pending": np.zeros((context.batch, count), np.int32), "loud": np.zeros((context.batch, count), np.uint8)}


def _bias(bias: Array | None, out: int) -> Array:
    return padded(np.zeros(out, np.float32) if bias is None else bias, (out,))


def pack_affine(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Affine)
    out, wide = step.weight.shape
    neurons, bias = _neurons(context, group), _bias(step.bias, out)
    integers = _integers(context, step, panel_pairs, lambda scale: padded(scale, scale.shape))
    arrays = neurons.arrays | {"weight": panel_major(step.weight), "bias": bias} | integers
    silent, count = _silent(neurons, bias), len(list(panels(len(bias))))
    if silent is not None:
        arrays |= _skipping(context, count)
    return Packed(
        "LAYER", neurons.out, neurons.mem, step.name if len(group.steps) > 1 else None, NEURONS.index(neurons.mode), neurons.strict,
        (wide, up(out), integers["integer"].itemsize if integers else 0, count), arrays, neurons.slots, silent,
    )  # fmt: skip


def pack_neurons(context: Context, group: Group) -> Packed:
    neurons = _neurons(context, group)
    width = len(neurons.arrays.get("decay", neurons.arrays.get("theta", ())))
    sizes = (0, width, 0, len(list(panels(width))))
    return Packed(
        "LAYER", neurons.out, neurons.mem, None, NEURONS.index(neurons.mode), neurons.strict, sizes, neurons.arrays, neurons.slots
    )


def pack_conv(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Conv2d)
    seen, shape = context.shape(step.inputs[0]), context.shape(step.name)
    place = conv.layout(step, seen, shape)
    neurons = _neurons(context, group, place.order, place.width)
    start = np.zeros((shape[0], 1, 1), np.float32) if step.bias is None else step.bias[:, None, None]
    bias = padded(start, shape, order=place.order, width=place.width)
    arrays = neurons.arrays | {
        "weight": conv.weights(step, step.weight, place),
        "bias": bias,
        "scratch": conv.scratch(place, context.batch, bias),
        "taps": conv.tables(step, seen, place),
        **_integers(
            context, step, lambda q: conv.weights(step, q.astype(np.int32), place),
            lambda scale: padded(scale[:, None, None], shape, order=place.order, width=place.width),
        ),
    }  # fmt: skip
    silent = _silent(neurons, bias)
    if silent is not None:
        arrays |= _skipping(context, len(silent))
        silent += silent & conv.settles_once(bias).reshape(len(silent), -1).all(axis=1)
    current = step.name if len(group.steps) > 1 else None
    return Packed(
        "CONV", neurons.out, neurons.mem, current, NEURONS.index(neurons.mode), neurons.strict, conv.sizes(step, seen, place), arrays,
        neurons.slots, silent,
    )  # fmt: skip


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
    ring = Ring(aligned((step.steps, context.batch, up(prod(shape))), np.float32), (step.steps, *shape), np.zeros(1, np.int32))
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


def pack_memory(context: Context, group: Group) -> Packed:
    step, threshold = group.head, group.find(S.Threshold)
    d, n = shape = context.shape(step.name)
    size, gate = up(d * n), up(n)
    arrays = {"state": aligned((context.batch, size), np.float32)}
    slots: dict[tuple[str, str], Slot] = {(step.name, "S"): Padded(arrays["state"], shape)}
    careful = isinstance(step, S.MatrixMemory) and step.semantics == "snntorch-1.0.0"
    if careful:
        arrays |= {"state2": aligned((context.batch, gate), np.float32), "scratch": aligned((2, gate), np.float32)}
        slots[(step.name, "log_p")] = Padded(arrays["state2"], (n,))
    strict = True
    if isinstance(threshold, S.Threshold):
        arrays |= _firing(threshold, shape)
        strict = threshold.strict
    kind = "MEMORY" if isinstance(step, S.MatrixMemory) else "DELTA"
    spikes = None if threshold is None else threshold.name
    return Packed(kind, step.name, spikes, None, int(careful), strict, (d, n, size, gate), arrays, slots)


def pack_matmul(context: Context, group: Group) -> Packed:
    (d, n), (_, m) = (context.shape(wire) for wire in group.head.inputs)
    return Packed("MATMUL", group.head.name, sizes=(d, n, m))


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


PACK: Mapping[type[Step], Callable[[Context, Group], Packed]] = {
    S.Affine: pack_affine,
    S.Conv2d: pack_conv,
    S.SumPool2d: pack_pool,
    S.Scale: pack_scale,
    S.Slice: pack_slice,
    S.TopK: pack_topk,
    S.Nearest: pack_nearest,
    S.Embedding: pack_embedding,
    S.Add: pack_elementwise,
    S.Mul: pack_elementwise,
    S.MatMul: pack_matmul,
    S.Delay: pack_delay,
    S.Activation: pack_activation,
    S.LayerNorm: pack_layer_norm,
    S.L2Normalize: pack_l2,
    S.Integrator: pack_neurons,
    S.Threshold: pack_neurons,
    S.LIF: pack_neurons,
    S.MatrixMemory: pack_memory,
    S.DeltaMemory: pack_memory,
    S.DiagonalSSM: pack_ssm,
}
"""Per kind of a group's first step: its packing. A kind that is not here runs its NumPy function."""
