"""Which neurons receive an event: through nonzero weights, whatever the bias, and value by value through wiring and pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.runtime.reference import Real
from spikedeploy.steps import Step

Mask = npt.NDArray[np.bool_]


def reached(program: Program, wires: Mapping[str, Real], wire: str) -> Mask:
    """Where `wire` received an event in that step, `(T, B, *shape)`; `wires` holds every wire that a linear map reads or that
    another kind of step writes.

    A linear map passes an event on through each nonzero weight, wiring and pooling pass on what they received; anything else is an event
    where its value is not zero.
    """
    step = program.writer(wire)
    if step is None:
        return wires[wire] != 0
    if type(step) in LINEAR:
        return LINEAR[type(step)](step, wires[step.inputs[0]] != 0)
    if type(step) in PASSED:
        return PASSED[type(step)](step, *(reached(program, wires, source) for source in step.inputs))
    return wires[wire] != 0


def _affine(step: Any, events: Mask) -> Mask:
    connected = step.weight != 0
    if connected.all():
        return np.repeat(events.any(axis=-1, keepdims=True), len(connected), axis=-1)
    return np.asarray(events.astype(np.float32) @ connected.T.astype(np.float32) > 0)


def _conv2d(step: Any, events: Mask) -> Mask:
    ones = (step.weight != 0).astype(np.float32)
    binary = S.Conv2d(step.name, step.inputs, ones, None, step.stride, step.padding, step.dilation, step.groups)
    return _windows(reference.conv2d, binary, events)


def _windows(function: Callable[..., Real], step: Step, events: Mask) -> Mask:
    seen = function(step, events.astype(np.float32).reshape(-1, *events.shape[2:]), {})
    return np.asarray(seen.reshape(*events.shape[:2], *seen.shape[1:]) > 0.5)


def _any(step: Any, *masks: Mask) -> Mask:
    """Broadcast as the sum is: a shorter wire needs ones after its time and batch axes."""
    longest = max(mask.ndim for mask in masks)
    total = np.zeros((), bool)
    for mask in masks:
        total = total | mask.reshape(*mask.shape[:2], *(1,) * (longest - mask.ndim), *mask.shape[2:])
    return total


LINEAR: Mapping[type[Step], Callable[[Any, Mask], Mask]] = {S.Affine: _affine, S.Conv2d: _conv2d}

PASSED: Mapping[type[Step], Callable[..., Mask]] = {
    S.Reshape: lambda step, mask: mask.reshape(*mask.shape[:2], *step.shape),
    S.Slice: lambda step, mask: mask[..., step.start : step.stop],
    S.Scale: lambda step, mask: mask,
    S.Add: _any,
    S.SumPool2d: lambda step, mask: _windows(reference.sum_pool2d, step, mask),
}
