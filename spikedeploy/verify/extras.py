"""Findings beyond rounding: where two meanings of one model part, and what a chosen change of meaning costs. One function per question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.verify.bounds import Bounds, bound
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import Real
from spikedeploy.verify.rules import Doubt
from spikedeploy.verify.sides import Sides

Extra = Callable[[Sides, Real, Bounds], Iterator[Finding]]
VISIBLE = 1e-3
"""Two states are said to differ where they are further apart than this."""


def extras(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Everything the table below finds."""
    for extra in EXTRAS:
        yield from extra(sides, x, bounds)


def two_semantics(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Gen2: the mathematics (`recurrence`) and the library's own forward (`snntorch-1.0.0`), each on its own from the input on."""
    other = other_semantics(sides.program)
    if other is None:
        return
    theirs = bound(other, x)
    for step in sides.program.steps:
        if isinstance(step, S.MatrixMemory):
            yield _parting(step, sides.program, bounds, theirs)


def other_semantics(program: Program) -> Program | None:
    """The program with every matrix memory under its other meaning; None when it has no such memory."""
    swapped = {"recurrence": "snntorch-1.0.0", "snntorch-1.0.0": "recurrence"}
    steps = tuple(S.MatrixMemory(s.name, s.inputs, swapped[s.semantics]) if isinstance(s, S.MatrixMemory) else s for s in program.steps)  # type: ignore[arg-type]
    if not any(isinstance(step, S.MatrixMemory) for step in steps):
        return None
    return Program(program.input_shape, steps, program.outputs, program.input_kind)


def _parting(step: S.MatrixMemory, program: Program, ours: Bounds, theirs: Bounds) -> Finding:
    layer = next(s.name for s in program.readers(step.name) if isinstance(s, S.Threshold))
    apart = np.abs(ours.decisions[layer].value - theirs.decisions[layer].value)
    by_step = apart.reshape(len(apart), -1).max(axis=1)
    flips = (ours.spikes[layer] != theirs.spikes[layer]).reshape(len(apart), -1)
    first, first_flip = (_first(by_step > VISIBLE), _first(flips.any(axis=1)))
    text = f"layer '{layer}': deployed as {step.semantics}; the other meaning "
    text += "stays within" if first is None else f"differs from step {first} on, by up to {by_step.max():.3g};"
    text += f" {VISIBLE:g} of it on these {len(apart)} steps," if first is None else ""
    text += " no spike differs" if first_flip is None else f" {flips.mean():.2%} of spikes differ, the first at step {first_flip}"
    data = {"first_step": first, "first_spike": first_flip, "largest": float(by_step.max()), "spikes": float(flips.mean())}
    return Finding("note" if first_flip is None else "warn", text, data)


def _first(hits: Real) -> int | None:
    found = np.flatnonzero(hits)
    return int(found[0]) if len(found) else None


def chosen_change(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Deployed otherwise than trained by choice (a dropped truncation, another semantics): what that does to the spikes and the outputs."""
    if sides.trained is sides.program:
        return
    trained = bound(sides.trained, x, Doubt())
    for layer in (name for name in bounds.spikes if name in trained.spikes):
        differs = (bounds.spikes[layer] != trained.spikes[layer]).reshape(len(x), -1)
        first = _first(differs.any(axis=1))
        if first is not None:
            text = f"layer '{layer}': by the chosen options {differs.mean():.2%} of spikes differ from the trained model's"
            yield Finding(
                "warn", f"{text}, the first at step {first}", {"layer": layer, "spikes": float(differs.mean()), "first_step": first}
            )
    for name, output in bounds.outputs.items():
        apart = float(np.abs(output.value - trained.outputs[name].value).max())
        yield Finding(
            "note", f"output '{name}': by the chosen options up to {apart:.3g} from the trained model's", {"output": name, "largest": apart}
        )


def surrogate(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """SpikingSSM: what the conversion costs (convolution against recurrence), and apart from that what the surrogate of training did."""
    if sides.model is None or not any(isinstance(step, S.DiagonalSSM) for step in sides.program.steps):
        return
    import torch

    from spikedeploy.nn.ssm_findings import surrogate_findings, surrogate_in_output

    given = torch.from_numpy(np.array(x, np.int64 if sides.program.input_kind == "index" else np.float32))
    moved = surrogate_in_output(sides.model, given)
    if moved:
        text = f"the surrogate of training moves the output by up to {moved:.3g} from that of the true neurons"
        yield Finding("warn", text, {"largest": moved})
    for found in surrogate_findings(sides.model, given):
        differs = found.surrogate is not None and (found.surrogate < 1 or found.outside > 0)
        yield Finding("warn" if differs else "note", str(found), asdict(found))


EXTRAS: tuple[Extra, ...] = (two_semantics, chosen_change, surrogate)
"""What is asked of every model."""
