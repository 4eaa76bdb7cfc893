"""Where the two meanings of a Gen2 layer part: the recurrence, and what snnTorch 1.0.0's parallel forward computes instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import reference

VISIBLE = 1e-3


@dataclass(frozen=True, slots=True)
class Difference:
    """One matrix memory under its own and under the other semantics, on the same input to the layer.

    first_step  the first step at which an entry of S differs by more than `visible`; None where none does
    largest     the largest difference of an entry of S; spikes: the share of spikes on S that differ, 0 to 1
    """

    layer: str
    semantics: str
    first_step: int | None
    largest: float
    spikes: float
    steps: int
    visible: float = VISIBLE

    def __str__(self) -> str:
        if self.first_step is None:
            return f"{self.layer}: on no step of {self.steps} do the two semantics differ by more than {self.visible:g}"
        return (
            f"{self.layer} ({self.semantics}): the other semantics differs from step {self.first_step} on, "
            f"by up to {self.largest:.3g}, in {self.spikes:.2%} of spikes over {self.steps} steps"
        )


def semantics_difference(program: Program, x: npt.ArrayLike, *, visible: float = VISIBLE) -> list[Difference]:
    """Per matrix memory, from which step and by how much its two semantics differ on input `x (T, B, *input_shape)`, in float64.

    Every layer is judged on the inputs that it gets in `program` itself, so that one layer's difference is not counted in the next.
    Raises `BadInput` on an input of another shape.
    """
    memories = [step for step in program.steps if isinstance(step, S.MatrixMemory)]
    wires = {wire for step in memories for wire in (step.name, *step.inputs)}
    run = reference.run(program, x, record=wires)
    return [_judge(program, step, run, visible) for step in memories]


def _judge(program: Program, step: S.MatrixMemory, run: reference.Run, visible: float) -> Difference:
    other = replace(step, semantics="recurrence" if step.semantics == "snntorch-1.0.0" else "snntorch-1.0.0")
    mine, theirs = run.wires[step.name], _states(other, [run.wires[name] for name in step.inputs])
    gap = np.abs(mine - theirs).reshape(len(mine), -1).max(axis=1)
    apart = np.flatnonzero(gap > visible)
    spikes = [float(np.mean((mine > t.threshold) != (theirs > t.threshold))) for t in _thresholds(program, step.name)]
    first = int(apart[0]) if len(apart) else None
    return Difference(step.name, step.semantics, first, float(gap.max()), max(spikes, default=0.0), len(mine), visible)


def _states(step: S.MatrixMemory, inputs: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """S at every step, by the reference's own step."""
    first_v, first_k = inputs[0][0], inputs[1][0]
    state: reference.State = {"S": np.zeros((*first_v.shape, first_k.shape[-1])), "log_p": np.zeros_like(first_k)}
    return np.stack([reference.matrix_memory(step, v, k, alpha, state) for v, k, alpha in zip(*inputs, strict=True)])


def _thresholds(program: Program, wire: str) -> Iterator[S.Threshold]:
    return (step for step in program.readers(wire) if isinstance(step, S.Threshold))
