"""A report as plain text: the same numbers as the JSON and the HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spikedeploy.report.counts import ADDITIVE, LayerCount, Report
from spikedeploy.report.evidence import Evidence
from spikedeploy.report.prices import Energy, Term

COLUMNS = (
    "layer", "kind", "spikes", "rate", "act. sparsity", "conn. sparsity", "ACs", "MACs", "dense MACs", "updates driven", "idle",
    "elements", "functions", "state bytes", "weight bytes",
)  # fmt: skip
DEFINITIONS = (
    "An effective operation is a nonzero input times a nonzero weight; AC where a layer's inputs of the step are all in {-1, 0, 1},"
    " MAC otherwise."
    " Counts are whole numbers over all steps and samples."
)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.4%}"


def number(value: int) -> str:
    return f"{value:,}" if value else "0"


def cells(layer: LayerCount) -> list[str]:
    """One row of the table."""
    spikes = f"{number(layer.spikes)} / {number(layer.decisions)}" if layer.decisions else ""
    counts = (layer.acs, layer.macs, layer.dense, layer.driven, layer.idle, layer.elements, layer.functions)
    moved = (layer.state_bytes, layer.weight_bytes)
    ratios = (layer.rate, layer.activation_sparsity, layer.connection_sparsity)
    return [layer.name, layer.kind, spikes, *map(percent, ratios), *map(number, counts + moved)]


def rows(report: Report) -> list[list[str]]:
    """All layers that cost something or spike, and the total."""
    shown = [layer for layer in report.layers if any(getattr(layer, name) for name in ADDITIVE)]
    return [cells(layer) for layer in (*shown, report.total)]


def averages(report: Report) -> list[str]:
    """What one step of the whole batch, and one sample of all steps, takes on average, and the least and the most."""
    found = []
    for what, (acs, macs) in {
        "step": (report.per_step["acs"], report.per_step["macs"]), "sample": (report.per_sample["acs"], report.per_sample["macs"])
    }.items():  # fmt: skip
        both, count = acs + macs, len(acs)
        found.append(
            f"per {what}: {report.total.spikes / count:,.2f} spikes, {int(both.sum()) / count:,.2f} effective operations"
            f" ({number(int(both.min()))} to {number(int(both.max()))})"
        )
    return found


def _table(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()


def joules(picojoules: float | None) -> str:
    """Picojoules in a readable unit."""
    if picojoules is None:
        return "refused"
    for unit, size in (("J", 1e12), ("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3)):
        if picojoules >= size:
            return f"{picojoules / size:.4g} {unit}"
    return f"{picojoules:.4g} pJ"


def headline(report: Report) -> str:
    """The one line that people quote."""
    total = report.total
    effective = total.acs + total.macs
    share = f", {effective / total.dense:.2%} of the dense network's {number(total.dense)}" if total.dense else ""
    return f"{number(effective)} effective operations ({number(total.acs)} ACs, {number(total.macs)} MACs){share}"


def energy_lines(found: Energy) -> Iterator[str]:
    """One table of prices."""
    yield f"{found.table}: {found.title}"
    total = joules(found.total) if found.total is not None else f"refused: no price for {', '.join(found.refused)}"
    if found.per_sample is not None:
        total += f" ({joules(found.per_sample)} per sample)"
    yield f"  total {total}; dense float32 network {joules(found.dense)}, dense int8 network {joules(found.quantised)}"
    if found.of_dense is not None:
        yield f"  {found.of_dense:.2%} of the dense network"
    yield from (f"  {term.name}: {_term(term)}" for term in found.terms if term.count)
    yield f"  source: {found.source}"
    yield f"  grade: {found.grade}"
    yield f"  {found.missing}"


def _term(term: Term) -> str:
    if term.price is None:
        return f"{number(term.count)}, no price"
    return f"{number(term.count)} x {term.price} pJ = {joules(term.total)}  [{term.source}; grade {term.grade[0]}]"


def verdict(evidence: Evidence | None) -> str:
    """What was verified."""
    if evidence is None:
        return "Equivalence: not verified in this report."
    found: Any = evidence.certificate
    return f"Equivalence: {found['verdict']}, on {found['input_source']} (decisions undecided within rounding: {undecided(evidence)})."


def warnings(evidence: Evidence | None) -> list[str]:
    """What the certificate warns of: a verdict is about the model as it is deployed, which may not be the one that was trained."""
    findings: Any = [] if evidence is None else evidence.certificate["findings"]
    return [f"{finding['level']}: {finding['text']}" for finding in findings if finding["level"] != "note"]


def undecided(evidence: Evidence) -> str:
    bands = evidence.bands.values()
    return f"{sum(band.undecided for band in bands)} of {number(sum(band.decisions for band in bands))}"


def text(report: Report, energies: Sequence[Energy], evidence: Evidence | None) -> str:
    """The whole report."""
    sparsity = 1 - report.input_events / report.input_values
    lines = [
        f"{report.steps:,} steps, batch {report.batch}; input {number(report.input_events)} events, {sparsity:.2%} zero;",
        headline(report),
        *averages(report),
        "",
        *_table([list(COLUMNS), *rows(report)]),
        "",
        DEFINITIONS,
        verdict(evidence),
        *warnings(evidence),
        "",
        "Energy of the whole input:",
        *(line for found in energies for line in energy_lines(found)),
    ]
    return "\n".join(lines)
