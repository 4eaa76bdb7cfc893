"""From a program to the engine's plan: which steps run fused in one operation, in which order, and what each wire must hold.

linear + Integrator + Threshold      one operation: sum the active rows, leak, compare (also without the linear part, or with LIF)
MatrixMemory + Threshold             one operation on the state
Reshape                              no operation: another name for the same wire
any step without a compiled form     its NumPy function, between two compiled segments
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import INPUT, Program
from spikedeploy.steps import Step

LINEAR = (S.Affine, S.Conv2d)
LISTENERS = (S.Affine, S.Conv2d, S.SumPool2d, S.MatMul)
"""Kinds that read their first input as a list of events."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One operation: the steps it runs, in program order; `compiled` tells whether C runs it."""

    steps: tuple[Step, ...]
    compiled: bool

    @property
    def head(self) -> Step:
        return self.steps[0]

    def find(self, *kinds: type[Step]) -> Step | None:
        """The group's step of one of these kinds."""
        return next((step for step in self.steps if isinstance(step, kinds)), None)


def roots(program: Program) -> dict[str, str]:
    """Every wire by the wire whose memory it shares."""
    found = {INPUT: INPUT}
    for step in program.steps:
        for wire in step.outputs:
            found[wire] = found[step.inputs[0]] if isinstance(step, S.Reshape) else wire
    return found


def uniform_amplitude(program: Program, wire: str) -> np.float32 | None:
    """The one value that all spikes on this wire have; None where the wire holds anything else."""
    writer = program.writer(wire)
    while isinstance(writer, S.Reshape):
        wire = writer.inputs[0]
        writer = program.writer(wire)
    if not isinstance(writer, S.Firing) or wire != writer.name:
        return None
    values = np.unique(writer.amplitude.astype(np.float32))
    return np.float32(values[0]) if len(values) == 1 and values[0] != 0 else None


def _follower(program: Program, wire: str, kind: type[Step] | tuple[type[Step], ...], taken: Collection[str]) -> Step | None:
    return next((s for s in program.readers(wire) if isinstance(s, kind) and s.name not in taken), None)


def _chain(program: Program, step: Step, taken: Collection[str]) -> Iterator[Step]:
    """The step and what can run in the same operation."""
    yield step
    last = step
    if isinstance(step, LINEAR) and not over_rows(program, step):
        following = _follower(program, step.name, (S.Integrator, S.LIF), taken)
        if following is None:
            return
        yield following
        last = following
    if isinstance(last, S.Integrator | S.MatrixMemory | S.DeltaMemory):
        threshold = _follower(program, last.name, S.Threshold, taken)
        if threshold is not None:
            yield threshold


def over_rows(program: Program, step: Step) -> bool:
    """Whether it is a linear map of each of several rows, which share their weights."""
    return isinstance(step, S.Affine) and prod(program.wires[step.inputs[0]]) != step.weight.shape[1]


def groups(program: Program, kinds: Container[type[Step]]) -> list[Group]:
    """The operations in the order they run; kinds: those that have a compiled form."""
    taken: set[str] = set()
    found: list[Group] = []
    for step in program.steps:
        if step.name in taken or isinstance(step, S.Reshape):
            continue
        compiled = type(step) in kinds
        chain = tuple(_chain(program, step, taken)) if compiled else (step,)
        taken.update(s.name for s in chain)
        found.append(Group(chain, compiled))
    return found


def inner_wires(plan: list[Group]) -> set[str]:
    """Wires that an operation keeps to itself unless somebody else reads them: currents, membranes, matrix states."""
    inner = {wire for group in plan for step in group.steps[:-1] for wire in step.outputs}
    return inner | {step.outputs[1] for group in plan for step in group.steps if group.compiled and isinstance(step, S.LIF)}


@dataclass(frozen=True, slots=True)
class Need:
    """What the readers of a wire want: its numbers, its events."""

    dense: bool
    events: bool


def needs(program: Program, plan: list[Group], kept: Collection[str]) -> dict[str, Need]:
    """Per root wire. `kept`: wires whose numbers the caller wants."""
    root = roots(program)
    dense = {root[wire] for wire in kept}
    events: set[str] = set()
    for group in plan:
        inside = {wire for step in group.steps[:-1] for wire in step.outputs}
        for step in group.steps:
            for place, wire in enumerate(step.inputs):
                if wire in inside and step is not group.head:
                    continue
                listens = group.compiled and place == 0 and isinstance(step, LISTENERS)
                (events if listens else dense).add(root[wire])
    return {wire: Need(wire in dense, wire in events) for wire in set(root.values())}
