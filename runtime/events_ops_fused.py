"""Operations that end in a neuron, and how they lie in memory for the compiled kernels: linear maps and convolutions fused with the neuron
behind them, neurons on their own, matrix memories fused with the threshold on their state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.runtime import events_conv as conv
from spikedeploy.runtime.events_numpy import TINY
from spikedeploy.runtime.events_op import Context, Packed, integers
from spikedeploy.runtime.events_pack import (
    PANELS,
    aligned,
    padded,
    panel_major,
    panel_pairs,
    panels,
    stays_silent,
    up,
    widest_panel,
    width_of,
)
from spikedeploy.runtime.events_plan import Group
from spikedeploy.runtime.events_state import Padded, Slot
from spikedeploy.steps import Array

NEURONS = ("none", "leak", "plain", "subtract", "zero", "subtract now", "zero now", "value", "threshold")
"""The order of the enumeration in `native/events_common.inc`."""


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


def _firing(step: S.Firing, shape: tuple[int, ...], **layout: Any) -> dict[str, Array]:
    """Lanes without a neuron never fire, whatever falls into them: nothing is above NaN."""
    return {"theta": padded(step.threshold, shape, np.nan, **layout), "amplitude": padded(step.amplitude, shape, 1.0, **layout)}


def _limit(step: S.Threshold) -> Array:
    """The greatest number that does not fire: `u > limit` says the same of every state, whether or not it was settled yet (set to zero
    where it is below the normal range, see `events_numpy.settle`), and also to a processor that takes such numbers for zero."""
    theta = step.threshold.astype(np.float32)
    below = theta if step.strict else np.nextafter(theta, np.float32(-np.inf))
    rest = theta < 0 if step.strict else theta <= 0  # whether zero fires
    return np.where(np.abs(below) < TINY, np.where(rest, -TINY, np.nextafter(TINY, np.float32(0))), below).astype(np.float32)


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
        if integrator is None:
            return Neurons("threshold", threshold.strict, arrays, slots, threshold.name, None)
        arrays["theta"] = padded(_limit(threshold), shape, np.nan, **layout)
        return Neurons("plain", True, arrays, slots, threshold.name, integrator.name)
    if integrator is not None:
        return Neurons("leak", True, arrays, slots, integrator.name, integrator.name)
    return Neurons("none", True, arrays, slots, last.name, None)


def _silent(neurons: Neurons, bias: Array, widest: int = PANELS[0]) -> Array | None:
    """Per panel whether a quiet step without events provably stays quiet; None where no such proof is made."""
    if neurons.mode not in ("plain", "subtract", "zero", "value"):
        return None
    theta = neurons.arrays["theta"]
    quiet = stays_silent(neurons.arrays["decay"], theta, bias, strict=neurons.strict) & (theta >= 0 if neurons.strict else theta > 0)
    quiet |= np.isnan(theta)
    return np.array([quiet[first : first + count].all() for first, count in panels(len(bias), widest)], np.uint8)


def _skipping(context: Context, count: int) -> dict[str, Array]:
    """What skipped panels remember."""
    return {"pending": np.zeros((context.batch, count), np.int32), "loud": np.zeros((context.batch, count), np.uint8)}


def _bias(bias: Array | None, out: int) -> Array:
    return padded(np.zeros(out, np.float32) if bias is None else bias, (out,))


FOLD = np.float32(2.0**-16)


def folded_scales(scale: Array) -> Array:
    """The scales, then the scales of sums times 65,536: those need not be moved down, see `native/events_sums.inc`."""
    both = aligned((2, width_of(len(scale))), np.float32)
    both[0, : len(scale)] = scale
    both[1] = both[0] * FOLD
    return both


def folds(scales: Array) -> bool:
    """Whether both give the same products: where the second are in the normal range they are exact."""
    return bool(((np.abs(scales[1]) >= TINY) | (scales[0] == 0)).all())


def pack_affine(context: Context, group: Group) -> Packed:
    step = group.head
    assert isinstance(step, S.Affine)
    out, wide = step.weight.shape
    neurons, bias = _neurons(context, group), _bias(step.bias, out)
    quantised = context.quantised.get(step.name)
    widest = widest_panel(wide, 4 if quantised is None else quantised.q.itemsize)
    whole = integers(context, step, lambda q: panel_pairs(q, widest), folded_scales)
    arrays = neurons.arrays | {"weight": panel_major(step.weight, widest), "bias": bias} | whole
    silent, count = _silent(neurons, bias, widest), len(list(panels(len(bias), widest)))
    if silent is not None:
        arrays |= _skipping(context, count)
    bytes_each, folded = (whole["integer"].itemsize, int(folds(whole["scale"]))) if whole else (0, 0)
    return Packed(
        "LAYER", neurons.out, neurons.mem, step.name if len(group.steps) > 1 else None, NEURONS.index(neurons.mode), neurons.strict,
        (wide, len(bias), bytes_each, count, 0, folded, int(bias.any())), arrays, neurons.slots, silent, widest,
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
    whole = integers(
        context, step, lambda q: conv.weights(step, q.astype(np.int32), place),
        lambda scale: padded(scale[:, None, None], shape, order=place.order, width=place.width),
    )  # fmt: skip
    given = {"weight": conv.weights(step, step.weight, place), "bias": bias, "taps": conv.tables(step, seen, place)}
    arrays = neurons.arrays | whole | given
    names = ("decay", "theta", "amplitude", "reset", "bias", "scale")
    alike = conv.made_alike([arrays[name] for name in names if name in arrays], place)
    silent, late = _silent(neurons, bias), False
    if silent is not None:
        arrays |= _skipping(context, len(silent))
        silent += silent & conv.settles_once(bias).reshape(len(silent), -1).all(axis=1)
        late = conv.settles_late([whole["scale"] if whole else step.weight, bias], arrays["decay"], arrays["theta"])
    arrays["scratch"] = conv.scratch(place, context.batch, bias, integers=bool(whole))
    current, sizes = step.name if len(group.steps) > 1 else None, conv.sizes(step, seen, place, late=late, alike=alike)
    return Packed(
        "CONV", neurons.out, neurons.mem, current, NEURONS.index(neurons.mode), neurons.strict, sizes, arrays, neurons.slots, silent
    )


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
