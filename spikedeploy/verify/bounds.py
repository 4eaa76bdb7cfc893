"""The float64 reference with a rigorous error beside every wire: what any float32 evaluation may be off by, step after step.

Spike wires carry exact values on (each layer is judged on the reference's inputs to that layer), so an error starts at zero behind every
spiking layer and grows only through what lies between two of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import INPUT, Program
from spikedeploy.runtime import reference
from spikedeploy.verify.parallel import PARALLEL
from spikedeploy.verify.rounding import SLACK, UNIT, Bounded, Real, gamma
from spikedeploy.verify.rules import RULES, Doubt, Moment, Rule
from spikedeploy.verify.rules_neurons import NEURONS


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """The reference run with its bounds, all arrays `(T, B, *shape)`.

    spikes      per spiking layer: the wire's values
    decisions   per spiking layer: what is compared with the threshold, and its bound
    outputs     per output of the program: its value after the time reduction, and its bound
    membranes   per spiking layer: the membrane wire (after an immediate reset), and its bound
    """

    spikes: Mapping[str, Real]
    decisions: Mapping[str, Bounded]
    membranes: Mapping[str, Bounded]
    outputs: Mapping[str, Bounded]


def membrane_wire(step: S.Step) -> str:
    """The wire that shows a spiking layer's membrane."""
    return step.outputs[1] if isinstance(step, S.LIF) else step.inputs[0]


def bound(program: Program, x: Real, doubt: Doubt = Doubt()) -> Bounds:  # noqa: B008  (frozen)
    """Run `x (T, B, *input_shape)` through the reference in float64, with the error that `doubt` allows a float32 party."""
    keep = {output.wire for output in program.outputs} | {membrane_wire(step) for step in program.spiking if isinstance(step, S.LIF)}
    trail = _Trail(program, x, doubt, keep)
    for time in range(len(x)):
        trail.advance(time, x[time])
    wires = {name: Bounded(*map(np.stack, zip(*trail.wires[name], strict=True))) for name in trail.wires}
    decisions = {name: _widened(Bounded(*map(np.stack, zip(*trail.decisions[name], strict=True)))) for name in trail.decisions}
    return Bounds(
        spikes={name: np.stack(values) for name, values in trail.spikes.items()},
        decisions=decisions,
        membranes={s.name: _widened(wires[membrane_wire(s)]) if isinstance(s, S.LIF) else decisions[s.name] for s in program.spiking},
        outputs={output.name: _widened(REDUCED[output.reduce](wires[output.wire])) for output in program.outputs},
    )


def _widened(wire: Bounded) -> Bounded:
    return Bounded(wire.value, wire.error * SLACK)


class _Trail:
    """The run, one time step at a time."""

    def __init__(self, program: Program, x: Real, doubt: Doubt, keep: Collection[str]) -> None:
        self.steps = [reference.cast(step, np.float64) for step in program.steps]
        self.rules = [_rule(program, index, doubt) for index in range(len(program.steps))]
        self.states = reference.zeros(program, x.shape[1])
        self.memory = _memories(program, x, doubt)
        self.doubt, self.length = doubt, len(x)
        self.wires: dict[str, list[Bounded]] = {name: [] for name in keep}
        spiking = [step.name for step in program.spiking]
        self.decisions: dict[str, list[Bounded]] = {name: [] for name in spiking}
        self.spikes: dict[str, list[Real]] = {name: [] for name in spiking}

    def advance(self, time: int, x: Real) -> None:
        seen = {INPUT: Bounded(x.astype(np.float64), np.zeros(x.shape))}
        for step, rule, memory in zip(self.steps, self.rules, self.memory, strict=True):
            inputs = [seen[name] for name in step.inputs]
            state = self.states.get(step.name, {})
            before = dict(state)
            result = reference.STEP[type(step)](step, *(wire.value for wire in inputs), state)
            results = result if isinstance(result, tuple) else (result,)
            moment = Moment(step, time, self.length, before, state, results, memory, self.doubt)
            error = rule(moment, *inputs)
            for name, value, off in zip(step.outputs, results, error if isinstance(error, tuple) else (error,), strict=True):
                seen[name] = Bounded(value, np.broadcast_to(off, value.shape))
            if moment.decision is not None:
                self.decisions[step.name].append(Bounded(moment.decision.value, np.broadcast_to(moment.decision.error, results[0].shape)))
                self.spikes[step.name].append(results[0])
        for name in self.wires:
            self.wires[name].append(seen[name])


def _memories(program: Program, x: Real, doubt: Doubt) -> list[dict[str, Any]]:
    """Empty, but for transforms: they spread their rounding over all steps, so their bound needs the energy of the whole signal."""
    transforms = {step.name: step.inputs[0] for step in program.steps if isinstance(step, S.DiagonalSSM) and doubt.parallel}
    signals = reference.run(program, x, record=transforms.values()).wires if transforms else {}
    energy = {name: (signals[wire] ** 2).sum(axis=0) for name, wire in transforms.items()}
    return [{"energy": energy[step.name]} if step.name in energy else {} for step in program.steps]


def _rule(program: Program, index: int, doubt: Doubt) -> Rule:
    kind = type(program.steps[index])
    rule = (PARALLEL.get(kind) if doubt.parallel else None) or RULES.get(kind) or NEURONS.get(kind)
    if rule is None:
        raise ModelRefused(message(program.where(index), "no error bound is known for it", "verify needs one per step kind"))
    return rule


def _summed(wire: Bounded, count: float) -> Bounded:
    magnitude = np.abs(wire.value).sum(axis=0)
    passed = wire.error.sum(axis=0)
    error = passed + gamma(len(wire.value)) * (magnitude + passed)
    return Bounded(wire.value.sum(axis=0) / count, (error + (UNIT * magnitude if count != 1 else 0.0)) / count)


REDUCED: Mapping[str, Any] = {
    "none": lambda wire: wire,
    "sum": lambda wire: _summed(wire, 1),
    "mean": lambda wire: _summed(wire, len(wire.value)),
    "last": lambda wire: Bounded(wire.value[-1], wire.error[-1]),
    "max": lambda wire: Bounded(wire.value.max(axis=0), wire.error.max(axis=0)),
}
"""Per time reduction: the reduced value and its bound."""
