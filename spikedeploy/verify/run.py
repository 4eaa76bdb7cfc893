"""One verification from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.artifact import refuse_idle
from spikedeploy.errors import BadInput, NotEquivalent, message
from spikedeploy.inputs import Data, as_data, fitted
from spikedeploy.program import Program
from spikedeploy.verify import judge
from spikedeploy.verify.bounds import Bounds, bound, membrane_wire
from spikedeploy.verify.certificate import Certificate, Finding, LayerCheck, OutputCheck
from spikedeploy.verify.extras import extras
from spikedeploy.verify.inputs import lively_input
from spikedeploy.verify.parties import Party, ProgramParty, Real
from spikedeploy.verify.rules import Doubt
from spikedeploy.verify.sides import Sides, artifact_parties, opened_artifact, sides_of
from spikedeploy.verify.versions import versions

Progress = Callable[[str], None]
BATCH = 8
"""Of random input, where nobody says another."""
RESTORED = Doubt(parameters=16, decay=8)
"""An artifact whose parameters went through time constants and gains and back, each rounded to float32."""


def verify(
    model: Any,
    artifact: Any = None,
    x: npt.ArrayLike | Data | None = None,
    *,
    steps: int = 64,
    batch: int | None = None,
    seed: int = 0,
    rate: float = 0.25,
    options: Mapping[str, Any] | None = None,
    input_source: str | None = None,
    progress: Progress = lambda text: None,
) -> Certificate:
    """Hold `model` (a path, a torch module with `x`, or a Program) against `artifact` (a path, a Program, a runner, a Party, or None).

    x        input `(T, B, *shape)`, or data from a file (`spikedeploy.inputs.load`); random when not given, by `seed`, `rate`, `steps` and
             `batch`: 8, or the artifact's own where that is fixed
    options  how the two are taken (`artifact.TAKES`): `semantics`, `truncation`, `topk_k`, `topk_v` of the model, `dt` of a .nir, ...

    With another meaning than the trained one (`semantics`, `truncation`, top-k) the trained form is held against the program as it was
    trained, the artifact against the program as it is deployed, and the certificate says by how much the two differ.
    Every form is run in float32, layer by layer on the float64 reference's spikes, and on its own. Criteria (A) to (D): see
    `certificate.CRITERIA`.
    Raises `BadInput` on a file, an input or an option that cannot be used, `ModelRefused` on a model that cannot be converted; a
    difference is no exception but a certificate whose `passed` is False (`require` raises).
    """
    given = None if x is None else as_data(x)
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    refuse_idle(chosen, *(thing for thing in (model, artifact) if thing is not None))
    artifact, made_from = opened_artifact(artifact, chosen)
    sides = sides_of(model, None if given is None else given.example, chosen, made_from)
    parties, about = artifact_parties(sides, artifact)
    fixed = next((own for party in parties if (own := getattr(party, "batch", None)) is not None), None)
    if given is None:
        samples = batch if batch is not None else fixed or BATCH
        data, source = lively_input(sides.program, steps, samples, seed, rate), f"random input, seed {seed}"
    else:
        source = "given input"
        data = np.ascontiguousarray(fitted(sides.program, given), np.float32)
    if fixed is not None and data.shape[1] != fixed:
        where, do = ("--batch", "Leave it out.") if given is None else (f"{given.where}", "")
        raise BadInput(message(where, f"a batch of {data.shape[1]}", f"the artifact was built for a batch of {fixed}", do))
    trial = Trial(sides, data, progress)
    trial.run(parties)
    findings = (*trial.findings, *about.findings, *extras(sides, data, trial.bounds(sides.program, Doubt())))
    return Certificate(
        verdict=judge.verdict(trial.layers, trial.outputs, findings),
        layers=tuple(trial.layers),
        outputs=tuple(trial.outputs),
        findings=tuple(findings),
        program_digest=sides.program.digest,
        artifact=about.name,
        artifact_sha256=about.sha256,
        steps=data.shape[0],
        batch=data.shape[1],
        input_source=input_source or source,
        seed=seed if given is None else None,
        versions=versions(),
    )


def require(certificate: Certificate) -> Certificate:
    """The certificate itself when it passed; raises `NotEquivalent` with the first thing that is wrong otherwise."""
    if certificate.passed:
        return certificate
    raise NotEquivalent(
        certificate.first_failure() or f"verification is {certificate.verdict}: too many decisions lie within the rounding bound"
    )


@dataclass(slots=True)
class Trial:
    """The parties one after another on one input; bounds are computed once per kind of doubt."""

    sides: Sides
    x: Real
    progress: Progress
    layers: list[LayerCheck]
    outputs: list[OutputCheck]
    findings: list[Finding]
    known: dict[tuple[str, Doubt], Bounds]

    def __init__(self, sides: Sides, x: Real, progress: Progress) -> None:
        self.sides, self.x, self.progress = sides, x, progress
        self.layers, self.outputs, self.findings, self.known = [], [], [], {}

    def bounds(self, program: Program, doubt: Doubt) -> Bounds:
        key = (program.digest, doubt)
        if key not in self.known:
            self.known[key] = bound(program, self.x, doubt)
        return self.known[key]

    def run(self, artifact: Sequence[Party]) -> None:
        program = self.sides.program
        for party in self.sides.parties():
            self.progress(f"verifying {party.name}")
            self.judge(self.sides.trained, party, party.doubt)
        self.progress("verifying reference (float32)")
        self.judge(program, ProgramParty("reference (float32)", program, program), Doubt())
        for party in artifact:
            self.progress(f"verifying {party.name}")
            self.judge(program, party, party.doubt)
        rates = {name: float((values != 0).mean()) for name, values in self.bounds(program, Doubt()).spikes.items()}
        self.findings += judge.observations(self.layers, rates)

    def judge(self, program: Program, party: Party, doubt: Doubt) -> None:
        if isinstance(party, ProgramParty) and party.program.digest != program.digest:
            doubt = self._doubt(program, party)
        bounds = self.bounds(program, doubt)
        on_reference, alone = party.observe(self.x, bounds.spikes), party.observe(self.x, None)
        self.layers += judge.layer_checks(program, bounds, party, on_reference, alone)
        self.outputs += judge.output_checks(program, bounds, party, on_reference, alone)
        self.findings += missing(party, program, on_reference.outputs)

    def _doubt(self, program: Program, party: ProgramParty) -> Doubt:
        """None where the artifact's float64 run is the model's bit for bit; else what storing the parameters may cost."""
        bounds = self.bounds(program, Doubt())
        wide = replace(party, dtype=np.float64).observe(self.x, bounds.spikes)
        same = all(np.array_equal(wide.membranes[name], bounds.membranes[name].value) for name in wide.membranes)
        return Doubt() if same and len(wide.membranes) == len(bounds.membranes) else RESTORED


def missing(party: Party, program: Program, outputs: Mapping[str, Real]) -> Iterator[Finding]:
    """A failure per layer or output that the party has not; a warning where no spike and no result depends on it."""
    live = needed(program)
    for name, why in party.missing().items():
        dead = name not in live
        text = f"layer '{name}' is missing in {party.name}: {why}" + ("; no output depends on it" if dead else "")
        yield Finding("note" if dead else "fail", text, {"layer": name})
    membranes = {membrane_wire(step) for step in program.spiking}
    for output in program.outputs:
        if output.name not in outputs:
            shown = output.wire in membranes and len(program.outputs) > 1
            text = f"output '{output.name}' is missing in {party.name}" + (": membranes are not carried there" if shown else "")
            yield Finding("warn" if shown else "fail", text, {"output": output.name})


def needed(program: Program) -> set[str]:
    """The wires on which an output depends."""
    live = {output.wire for output in program.outputs}
    for step in reversed(program.steps):
        if live & set(step.outputs):
            live |= {*step.inputs, step.name}
    return live
