"""The certificate for people."""

from __future__ import annotations

import io
from typing import Any

from spikedeploy.verify.certificate import Certificate, LayerCheck, OutputCheck

COLOURS = {"equivalent": "green", "inconclusive": "yellow", "different": "red", "fail": "red", "warn": "yellow", "note": "dim"}


def table(certificate: Certificate) -> Any:
    """The certificate as something that rich prints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [_layers(certificate.layers)]
    if certificate.outputs:
        parts.append(_outputs(certificate.outputs))
    parts += [Text(f"{f.level}: {f.text}", style=COLOURS[f.level]) for f in certificate.findings]
    failure = certificate.first_failure()
    if failure and not any(f.level == "fail" for f in certificate.findings):
        parts.append(Text(failure, style="red"))
    parts.append(Text(_origin(certificate), style="dim"))
    parts.append(Text(_verdict(certificate), style=f"bold {COLOURS[certificate.verdict]}"))
    return Group(*parts)


def _verdict(certificate: Certificate) -> str:
    total = sum(check.decisions for check in certificate.layers)
    return f"{certificate.verdict}: {certificate.mismatches} spike mismatches in {total:,} decisions"


def _origin(certificate: Certificate) -> str:
    lines = [f"program {certificate.program_digest[:16]}, {certificate.steps} steps, batch {certificate.batch}, {certificate.input_source}"]
    if certificate.artifact:
        lines.append(f"artifact {certificate.artifact}, sha256 {(certificate.artifact_sha256 or '')[:16]}")
    return "\n".join(lines)


def _layers(checks: tuple[LayerCheck, ...]) -> Any:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("layer", no_wrap=True)
    grid.add_column("form")
    for name in ("decisions", "undecided", "mismatches", "first step", "membrane error", "of bound", "rate"):
        grid.add_column(name, justify="right")
    previous = None
    for check in sorted(checks, key=lambda check: [c.layer for c in checks].index(check.layer)):
        bad = check.mismatches or (check.membrane_of_bound or 0) > 1
        grid.add_row(
            "" if check.layer == previous else check.layer,
            check.party,
            f"{check.decisions:,}",
            "exact" if check.exact else f"{check.undecided:,}",
            f"{check.mismatches:,}" + (f" (+{check.excused} undecided)" if check.excused else ""),
            "-" if check.first_divergence is None else str(check.first_divergence),
            "-" if check.membrane_error is None else f"{check.membrane_error:.1e}",
            "-" if check.membrane_of_bound is None else f"{check.membrane_of_bound:.2f}",
            f"{check.rate:.1%}",
            style="red" if bad else None,
        )
        previous = check.layer
    return grid


def _outputs(checks: tuple[OutputCheck, ...]) -> Any:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("output", no_wrap=True)
    grid.add_column("form")
    for name in ("error", "of bound", "end to end: differ", "largest", "same answer"):
        grid.add_column(name, justify="right")
    for check in checks:
        grid.add_row(
            check.output,
            check.party,
            f"{check.error:.1e}",
            f"{check.of_bound:.2f}",
            f"{check.different:,} of {check.values:,}",
            f"{check.max_difference:.1e}",
            "-" if check.agreement is None else f"{check.agreement:.2%}",
            style="red" if check.of_bound > 1 else None,
        )
    return grid


def text(certificate: Certificate, width: int = 140) -> str:
    """The table as plain text."""
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(table(certificate))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
