"""The engine without a compiler: every step's NumPy function, one time step after another, to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import INPUT, Program
from spikedeploy.runtime.events_numpy import STEP, integer_affine, integer_conv2d
from spikedeploy.runtime.events_plan import uniform_amplitude
from spikedeploy.runtime.events_quant import Quantised
from spikedeploy.runtime.events_state import Plain, Slot
from spikedeploy.runtime.reference import Real, State, zeros
from spikedeploy.steps import Step

Function = Callable[..., object]


def function_of(program: Program, step: Step, quantised: Mapping[str, Quantised]) -> Function:
    """The step as a call `(*inputs, state)`, with its integer weights where it has them."""
    weights = quantised.get(step.name)
    if weights is None:
        return partial(STEP[type(step)], step)
    amplitude = uniform_amplitude(program, step.inputs[0])
    if isinstance(step, S.Affine):
        return lambda x, state: integer_affine(step, x, weights, amplitude)
    assert isinstance(step, S.Conv2d)  # nothing else has integer weights
    return lambda x, state: integer_conv2d(step, x, weights, amplitude)


class Loop:
    """States and functions of one engine that runs in NumPy."""

    def __init__(self, program: Program, batch: int, quantised: Mapping[str, Quantised]) -> None:
        self.program, self.batch = program, batch
        self.states: dict[str, State] = zeros(program, batch, np.float32)
        self.functions = [(step, function_of(program, step, quantised)) for step in program.steps]

    @property
    def slots(self) -> dict[tuple[str, str], Slot]:
        """All states by step and name."""
        return {(step, name): Plain(state, name) for step, state in self.states.items() for name in state}

    def step(self, x: Real) -> dict[str, Real]:
        """All wires of one step, `(B, *shape)`; beyond float32 lies infinity, as in the compiled kernels."""
        wires = {INPUT: x}
        with np.errstate(all="ignore"):
            for step, function in self.functions:
                result = function(*(wires[name] for name in step.inputs), self.states.get(step.name, {}))
                wires |= zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=True)
        return wires

    def run(self, x: Real, kept: Collection[str]) -> tuple[dict[str, Real], dict[str, int]]:
        """The kept wires of a chunk `(T, B, *shape)` and the spikes per spiking wire."""
        found: dict[str, list[Real]] = {wire: [] for wire in kept}
        spikes = {step.name: 0 for step in self.program.spiking}
        for now in x:
            wires = self.step(now)
            for wire in kept:
                found[wire].append(wires[wire])
            for wire in spikes:
                spikes[wire] += int(np.count_nonzero(wires[wire]))
        return {wire: np.stack(values) for wire, values in found.items()}, spikes
