"""A report as one self-contained HTML file: no script, no network, the same numbers as the text and the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from spikedeploy import __version__
from spikedeploy.report import pictures
from spikedeploy.report.counts import Report
from spikedeploy.report.evidence import Evidence
from spikedeploy.report.prices import Energy
from spikedeploy.report.text import COLUMNS, DEFINITIONS, averages, headline, joules, number, percent, rows, undecided, verdict


def html(report: Report, energies: Sequence[Energy], evidence: Evidence | None, title: str) -> str:
    """The page. `title` names the model; everything shown is escaped."""
    from jinja2 import Environment

    source = files("spikedeploy").joinpath("data/report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return page.render(
        title=title, version=__version__, report=report, headline=headline(report), averages=averages(report), definitions=DEFINITIONS,
        columns=COLUMNS, rows=rows(report), layers=_layers(report, evidence), operations=_operations(report),
        energies=[_energy(found) for found in energies], verdict=verdict(evidence), passed=_passed(evidence),
        certificate=None if evidence is None else evidence.certificate, undecided=None if evidence is None else undecided(evidence),
        input_sparsity=percent(1 - report.input_events / report.input_values),
    )  # fmt: skip


def _passed(evidence: Evidence | None) -> str:
    if evidence is None:
        return "unknown"
    return str(evidence.certificate["verdict"])


def _layers(report: Report, evidence: Evidence | None) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for layer in report.spiking:
        starts, spikes = report.binned(f"spikes {layer.name}")
        ends = [*starts[1:], report.steps]
        width = layer.decisions // report.steps
        sparsity = [1 - s / (width * (end - start)) for s, start, end in zip(spikes, starts, ends, strict=True)]
        band = None if evidence is None else evidence.bands.get(layer.name)
        near = report.histograms[layer.name]
        found.append({
            "name": layer.name, "origin": layer.origin, "rate": percent(layer.rate), "spikes": number(layer.spikes),
            "raster": pictures.raster(report.rasters[layer.name]), "raster_shape": report.rasters[layer.name].shape,
            "sparsity": pictures.line(sparsity, 1.0), "low": percent(min(sparsity)), "high": percent(max(sparsity)),
            "histogram": pictures.histogram(near, band), "scale": f"{near.scale:.6g}", "below": number(near.below),
            "above": number(near.above),
            "band": None if band is None else f"{band.width:.3g}",
            "undecided": None if band is None else f"{band.undecided} of {number(band.decisions)}",
        })  # fmt: skip
    return found


def _operations(report: Report) -> str:
    total = report.total
    high = max(total.dense, total.acs + total.macs, 1)
    values = (("ACs", total.acs), ("MACs", total.macs), ("dense baseline, MACs", total.dense))
    return pictures.bars([(name, value / high, number(value)) for name, value in values])


def _energy(found: Energy) -> Mapping[str, Any]:
    values = (("this model", found.total), ("dense, float32", found.dense), ("dense, int8", found.quantised))
    high = max([value for _, value in values if value is not None] + [1e-12])
    picture = pictures.bars([(name, 0 if value is None else value / high, joules(value)) for name, value in values])
    lines = [
        (
            term.name,
            number(term.count),
            "none" if term.price is None else term.price,
            joules(term.total) if term.count or term.price is not None else "",
            f"{term.why} ({term.source}; {term.grade})",
        )
        for term in found.terms
    ]
    return {"found": found, "picture": picture, "lines": lines, "of_dense": percent(found.of_dense), "per_sample": joules(found.per_sample)}
