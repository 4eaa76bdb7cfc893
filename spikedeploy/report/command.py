"""`spikedeploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikedeploy.cli.common import (
    as_json,
    check_target,
    chosen,
    conversion,
    event_dt,
    read_data,
    reading,
    show,
    single_thread,
    topk,
    working,
)


@click.command(
    epilog="Example: spikedeploy report model.pt --input test.npy --html report.html",
    short_help="Sparsity, operations, energy and equivalence of a model.",
)
@click.argument("model_file", metavar="MODEL")
@click.option(
    "--input", "input_file", metavar="FILE", required=True, help="Real data as .npy or .npz, dense (T, B, ...) or address events."
)
@event_dt
@click.option("--html", "page", metavar="FILE", help="Also write one self-contained HTML file.")
@click.option("--prices", metavar="NAME", multiple=True, help="Energy tables to use; all by default.")
@click.option("--price-file", metavar="FILE", help="A file of energy tables instead of the package's own.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Verify equivalence on the beginning of the data.")
@conversion
@topk
@reading
@as_json
def command(
    model_file: str,
    input_file: str,
    event_dt: float | None,
    page: str | None,
    prices: tuple[str, ...],
    price_file: str | None,
    verify: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run MODEL (.pt or .nir) on data with the event-driven engine and count what it does.

    Per layer and in total: spikes, sparsity, accumulates and multiply-accumulates, neuron updates, bytes; beside a dense network of
    the same shape; and what that costs at published prices.
    """
    from spikedeploy.artifact import open_artifact, program_of
    from spikedeploy.inputs import fitted
    from spikedeploy.report.evidence import gather
    from spikedeploy.report.measuring import measure
    from spikedeploy.report.prices import energy, prices_named
    from spikedeploy.report.text import text

    single_thread()
    names = prices_named(prices, price_file)
    if page is not None:
        check_target(Path(page))
    with working("reading") as progress:
        opened = open_artifact(model_file, "model", "nir", **given)
        given_data = read_data(input_file, event_dt)
        program = program_of(opened, given_data.example)
        data = fitted(program, given_data)
        progress("counting")
        report = measure(program, data)
        energies = [energy(report, name, path=price_file) for name in names]
        progress("verifying")
        evidence = gather(model_file, program, data, chosen(**given)) if verify else None
    written = _write(page, report, energies, evidence, Path(model_file).name)
    document = report.as_dict() | {
        "energy": [found.as_dict() for found in energies],
        "equivalence": None if evidence is None else _plain(evidence),
        "topk": {"k": given["topk_k"], "v": given["topk_v"]},
        "written": written,
    }
    show(document, text(report, energies, evidence) + (f"\nwrote {written}" if written else ""), as_json)


def _plain(evidence: Any) -> dict[str, Any]:
    bands = {name: {"width": b.width, "undecided": b.undecided, "decisions": b.decisions} for name, b in evidence.bands.items()}
    return {"certificate": evidence.certificate, "bands": bands, "steps": evidence.steps, "batch": evidence.batch}


def _write(page: str | None, report: Any, energies: Any, evidence: Any, title: str) -> str | None:
    if page is None:
        return None
    from spikedeploy.exporters.atomic import write_bytes
    from spikedeploy.report.html import html

    return str(write_bytes(page, html(report, energies, evidence, title).encode()))
