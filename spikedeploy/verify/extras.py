"""Findings beyond rounding: where two meanings of one model part, and what a chosen change of meaning costs. One function per question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np

from spikedeploy import steps as S
from spikedeploy.semantics import semantics_difference
from spikedeploy.verify.bounds import Bounds, bound
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import Real
from spikedeploy.verify.rules import Doubt
from spikedeploy.verify.sides import Sides

Extra = Callable[[Sides, Real, Bounds], Iterator[Finding]]


def extras(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Everything the table below finds."""
    for extra in EXTRAS:
        yield from extra(sides, x, bounds)


def two_semantics(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Gen2: from which step the mathematics (`recurrence`) and the library's own forward (`snntorch-1.0.0`) part, and by how much."""
    for found in semantics_difference(sides.program, x):
        yield Finding("warn" if found.spikes else "note", f"{SEMANTICS[found.semantics]} {found}", asdict(found))


SEMANTICS = {
    "recurrence": "deployed as the recurrence;",
    "snntorch-1.0.0": "deployed as what snnTorch's forward computes;",
}


def _first(hits: Real) -> int | None:
    found = np.flatnonzero(hits)
    return int(found[0]) if len(found) else None


def chosen_change(sides: Sides, x: Real, bounds: Bounds) -> Iterator[Finding]:
    """Deployed otherwise than trained by choice (no truncation, another semantics, top-k): what that does to the spikes and the outputs."""
    if sides.trained is sides.program:
        return
    yield from (Finding("note", note) for note in sides.program.notes if note not in sides.trained.notes)
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
