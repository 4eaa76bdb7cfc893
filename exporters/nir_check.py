"""Before a graph is handed out: read back by the reader that knows only NIR's equations, run, and compared with the program.

Each layer is judged on the program's own spikes (so one undecided spike below cannot hide or feign a fault above), in float64. Spikes
must be equal wherever the membrane is not within `MARGIN` of its threshold; outputs must agree in value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import NotEquivalent, message
from spikedeploy.exporters.nir_relay import Parts
from spikedeploy.program import Program
from spikedeploy.runtime.reference import Real, Run, run
from spikedeploy.steps import Array

STEPS, MARGIN = 20, 1e-9
LEVELS = (0.3, 1.0, 3.0, 10.0)
"""One sample each: quiet to loud, so that some neurons fire and some do not whatever the weights are."""


def sample(program: Program, limit: float = 0.0) -> Array:
    """Random input `(T, B, *shape)` with values of many sizes, a third of them zero; always the same. `limit` bounds it, 0 does not."""
    rng = np.random.default_rng(20_240_926)
    x = rng.normal(size=(STEPS, len(LEVELS), *program.input_shape)) * (rng.random((STEPS, len(LEVELS), *program.input_shape)) < 2 / 3)
    x = x * np.reshape(LEVELS, (1, -1, *(1,) * len(program.input_shape)))
    return np.clip(x, -limit, limit) if limit else x


def compare(program: Program, artifact: Program, parts: Parts, x: Array) -> Mapping[str, int]:
    """Spikes that differ outside the margin, by wire. Raises `NotEquivalent` when a layer is missing or an output's values differ."""
    spiking = [step for step in program.spiking if isinstance(step, S.Firing)]
    for step in spiking:
        if step.name not in artifact.wires:
            raise NotEquivalent(message(f"NIR graph: layer '{step.name}'", "it is missing", "every layer must be in the graph"))
    known = {wire for step in spiking for wire in (step.name, step.inputs[0])} | {output.wire for output in program.outputs}
    want = run(program, x, record=known)
    forced = {step.name: fired(step, want.wires[step.name]) for step in spiking}
    wide = {name: np.concatenate([_vector(forced[wire]) for wire, *_ in held], axis=-1) for name, held in parts.items()}
    got = run(artifact, x, record=list(forced), forced={**forced, **wide})
    _outputs(program, artifact, want, got)
    return {step.name: _differing(step, want, got) for step in spiking}


def _vector(spikes: Real) -> Real:
    return spikes.reshape(*spikes.shape[:2], -1)


def fired(step: S.Firing, spikes: Real) -> Real:
    """0 or 1, whatever the amplitude."""
    amplitude = np.broadcast_to(step.amplitude, spikes.shape)
    return (spikes != 0).astype(np.float64) if np.all(amplitude != 0) else np.where(amplitude != 0, spikes != 0, False).astype(np.float64)


def _differing(step: S.Firing, want: Run, got: Run) -> int:
    wrong = fired(step, want.wires[step.name]) != (got.wires[step.name].reshape(want.wires[step.name].shape) != 0)
    if isinstance(step, S.Threshold):
        u = want.wires[step.inputs[0]]
        wrong &= np.abs(u - step.threshold) > MARGIN * np.maximum(np.abs(u), np.abs(step.threshold))
    return int(np.count_nonzero(wrong))


def _outputs(program: Program, artifact: Program, want: Run, got: Run) -> None:
    names = {output.name for output in artifact.outputs}
    for output in program.outputs:
        if output.name not in names or isinstance(program.writer(output.wire), S.Firing):
            continue  # spikes are judged by decision; what was left out stands in the notes
        a, b = want.outputs[output.name], got.outputs[output.name]
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(a).max()))):
            raise NotEquivalent(
                message(f"NIR graph: output '{output.name}'", "its values differ from the program's", "nothing was written")
            )


def check(program: Program, artifact: Program, parts: Parts, left_out: Collection[str], limit: float = 0.0) -> None:
    """Raises `NotEquivalent` naming the layer whose spikes differ."""
    missing = {o.name for o in program.outputs} - {o.name for o in artifact.outputs} - set(left_out)
    if missing:
        raise NotEquivalent(
            message(f"NIR graph: output '{min(missing)}'", "it is missing", "every output must be in the graph or be noted")
        )
    wrong = {wire: count for wire, count in compare(program, artifact, parts, sample(program, limit)).items() if count}
    if wrong:
        wire, count = next(iter(wrong.items()))
        raise NotEquivalent(message(f"NIR graph: layer '{wire}'", f"{count} spikes differ from the program's", "nothing was written"))


def spikes_apart(program: Program, artifact: Program) -> tuple[int, int]:
    """How many decisions of all layers differ end to end, and of how many, on the sample: for forms that change the model."""
    x, names = sample(program), [step.name for step in program.spiking]
    want, got = (run(form, x, record=names) for form in (program, artifact))
    wrong = [np.count_nonzero((want.wires[name] != 0) != (got.wires[name] != 0)) for name in names]
    return int(sum(wrong)), sum(want.decisions.values())
