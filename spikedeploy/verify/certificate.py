"""The certificate: one frozen object that says what was compared, how, and what came out. It prints as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["equivalent", "inconclusive", "different"]

FORMAT, VERSION = "spikedeploy.certificate", 1

CRITERIA: Mapping[str, str] = {
    "A": "spikes are equal wherever |u - threshold| > E, the running rounding bound on the float64 membrane u",
    "B": "membranes and outputs are within E of the float64 reference everywhere",
    "C": "undecided decisions (|u - threshold| <= E) are at most 1e-4 of all, or at most 1e-5 of all (and two) differ",
    "D": "where all arithmetic is proven exact (E = 0), everything is bit-equal, ties included",
}


@dataclass(frozen=True, slots=True)
class LayerCheck:
    """One spiking layer of one party, on the reference's inputs to that layer.

    decisions         neurons x steps x batch
    undecided         decisions within the rounding bound of the threshold, or after a neuron's reset took another turn
    mismatches        spikes that differ outside the bound: any one fails (A, D)
    excused           spikes that differ inside the bound
    followed          spikes that differ because a reset took another turn at an excused one
    first_divergence  the first time step at which any spike differs; None when none does
    membrane_error    the largest |u - u_reference|; None where the party does not show its membrane
    membrane_of_bound the largest |u - u_reference| / E; above 1 fails (B)
    exact             every bound of the layer is 0: bit-equality was demanded (D)
    rate              the reference's spikes per neuron and step
    downstream        spikes that differ when the party runs on its own, flips of earlier layers included
    """

    party: str
    layer: str
    decisions: int
    undecided: int
    mismatches: int
    excused: int
    followed: int
    first_divergence: int | None
    membrane_error: float | None
    membrane_of_bound: float | None
    exact: bool
    rate: float
    downstream: int


@dataclass(frozen=True, slots=True)
class OutputCheck:
    """One output of one party: `error` and `of_bound` on the reference's spikes (B); the rest when the party runs on its own.

    different       values beyond their bound, `values` in all
    max_difference  the largest one
    agreement       share of rows whose largest entry is at the same place (what a classifier answers); None for scalars
    """

    party: str
    output: str
    error: float
    of_bound: float
    values: int
    different: int
    max_difference: float
    agreement: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a reader must know: `level` is `fail`, `warn` or `note`; `data` holds its numbers."""

    level: Literal["fail", "warn", "note"]
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of `spikedeploy.verify.verify`."""

    verdict: Verdict
    layers: tuple[LayerCheck, ...]
    outputs: tuple[OutputCheck, ...]
    findings: tuple[Finding, ...]
    program_digest: str
    artifact: str | None
    artifact_sha256: str | None
    steps: int
    batch: int
    input_source: str
    seed: int | None
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether the artifact may be used."""
        return self.verdict == "equivalent"

    @property
    def mismatches(self) -> int:
        """Spikes that differ outside the bound, over all parties and layers."""
        return sum(check.mismatches for check in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, in a fixed order."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "criteria": dict(CRITERIA)}

    def to_json(self) -> str:
        """The certificate as JSON text."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False, default=str)

    def __rich__(self) -> Any:
        from spikedeploy.verify.table import table

        return table(self)

    def __str__(self) -> str:
        from spikedeploy.verify.table import text

        return text(self)

    def first_failure(self) -> str:
        """In one sentence, what is wrong; empty when nothing is."""
        for finding in self.findings:
            if finding.level == "fail":
                return finding.text
        for check in self.layers:
            where, ratio = f"layer '{check.layer}' of {check.party}", check.membrane_of_bound or 0
            if check.mismatches:
                count = f"{check.mismatches} of {check.decisions} spikes differ outside the rounding bound"
                return f"{where}: {count}, first at step {check.first_divergence}"
            if ratio > 1:
                return f"{where}: a membrane is off by {check.membrane_error:.3g}, {ratio:.3g} times its bound"
        for output in self.outputs:
            if output.of_bound > 1:
                return f"output '{output.output}' of {output.party}: off by {output.error:.3g}, {output.of_bound:.3g} times its bound"
        return ""
