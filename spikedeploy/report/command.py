"""`spikedeploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikedeploy.cli.common import as_json, check_target, chosen, conversion, reading, show, single_thread, working


@click.command(
    epilog="Example: spikedeploy report model.pt --input test.npy --html report.html",
    short_help="Sparsity, operations, energy and equivalence of a model.",
)
@click.argument("model_file", metavar="MODEL")
@click.option("--input", "input_file", metavar="FILE", required=True, help="Real data (T, B, ...) as .npy or .npz.")
@click.option("--html", "page", metavar="FILE", help="Also write one self-contained HTML file.")
@click.option("--prices", metavar="NAME", multiple=True, help="Energy tables to use; all by default.")
@click.option("--price-file", metavar="FILE", help="A file of energy tables instead of the package's own.")
@click.option("--topk-k", "k", metavar="NUMBER", help="Keep so much of Gen2 and Gen3 keys: a fraction (0.5) or a count (8).")
@click.option("--topk-v", "v", metavar="NUMBER", help="Of the values, likewise. A model that was made sparse here is not verified.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Verify equivalence on the beginning of the data.")
@conversion
@reading
@as_json
def command(
    model_file: str,
    input_file: str,
    page: str | None,
    prices: tuple[str, ...],
    price_file: str | None,
    k: str | None,
    v: str | None,
    verify: bool,
    as_json: bool,
    dt: float | None,
    discretisation: str | None,
    **given: Any,
) -> None:
    """Run MODEL (.pt or .nir) on data with the event-driven engine and count what it does.

    Per layer and in total: spikes, sparsity, accumulates and multiply-accumulates, neuron updates, bytes; beside a dense network of
    the same shape; and what that costs at published prices.
    """
    from spikedeploy.artifact import open_artifact, program_of
    from spikedeploy.report.evidence import gather
    from spikedeploy.report.measuring import measure
    from spikedeploy.report.prices import energy, prices_named
    from spikedeploy.report.text import text
    from spikedeploy.sweep.sparse import parse_one, with_topk
    from spikedeploy.verify.inputs import fitted, load_input

    single_thread()
    options, file = chosen(**given), chosen(dt=dt, discretisation=discretisation)
    names, keep = prices_named(prices, price_file), {"k": parse_one(k, "--topk-k"), "v": parse_one(v, "--topk-v")}
    if page is not None:
        check_target(Path(page))
    with working("reading") as progress:
        opened = open_artifact(model_file, "model", "nir", **chosen(model=options.get("model")), **file)
        x = load_input(input_file)
        program = program_of(opened, x, **{key: value for key, value in options.items() if key != "model"})
        if sparse := chosen(**keep):
            program = with_topk(program, **sparse)
        data = fitted(program, x, input_file)
        progress("counting")
        report = measure(program, data)
        energies = [energy(report, name, path=price_file) for name in names]
        progress("verifying")
        evidence = gather(model_file, program, data, options | file) if verify and not sparse else None
    written = _write(page, report, energies, evidence, Path(model_file).name)
    document = report.as_dict() | {
        "energy": [found.as_dict() for found in energies],
        "equivalence": None if evidence is None else _plain(evidence),
        "topk": keep,
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
