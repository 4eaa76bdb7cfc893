"""`spikedeploy sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikedeploy.cli.common import as_json, check_target, conversion, event_dt, read_data, show, single_thread, working
from spikedeploy.errors import BadInput, message


@click.command(
    epilog="Example: spikedeploy sweep model.pt --data test.npz --topk-k 1.0,0.5,0.25,0.1 --topk-v 1.0,0.5 --jobs 2 --figure sweep.png",
    short_help="Accuracy, sparsity, operations and divergence by top-k.",
)
@click.argument("model_file", metavar="MODEL")
@click.option(
    "--data",
    "data_file",
    metavar="FILE",
    required=True,
    help="Real data: .npz with `input` (T, B, ...) or address events, and `labels` (B).",
)
@event_dt
@click.option(
    "--topk-k", "for_k", metavar="LIST", default="1.0", show_default=True, help="Of the keys: fractions (1.0 is all) or counts (1 is one)."
)
@click.option("--topk-v", "for_v", metavar="LIST", default="1.0", show_default=True, help="Of the values, likewise.")
@click.option("--jobs", type=int, help="Processes, -1 for one per core; the numbers do not depend on it.  [default: 1]")
@click.option("--figure", metavar="FILE", help="Also draw accuracy and divergence against operations, as .png.")
@conversion
@as_json
def command(
    model_file: str,
    data_file: str,
    event_dt: float | None,
    for_k: str,
    for_v: str,
    jobs: int | None,
    figure: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Run MODEL (.pt, with Gen2 or Gen3 layers) on data at every combination of two lists of top-k.

    Without labels, accuracy is agreement with the full model.
    """
    from spikedeploy.artifact import open_artifact, program_of
    from spikedeploy.inputs import fitted
    from spikedeploy.sweep.grid import sweep
    from spikedeploy.topk import parse_keep

    single_thread()
    _check(figure, jobs)
    topk_k, topk_v = parse_keep(for_k, "--topk-k"), parse_keep(for_v, "--topk-v")
    with working("reading") as progress:
        opened = open_artifact(model_file, "model", **given)
        data = read_data(data_file, event_dt)
        program = program_of(opened, data.example)
        result = sweep(program, fitted(program, data), data.labels(), topk_k=topk_k, topk_v=topk_v, jobs=jobs, progress=progress)
    written = _draw(figure, result, Path(model_file).name)
    from spikedeploy.sweep.show import text

    document = result.as_dict() | {"model_sha256": opened.sha256, "written": written}
    show(document, text(result) + (f"\nwrote {written}" if written else ""), as_json)


def _check(figure: str | None, jobs: int | None) -> None:
    """What can be known to be wrong before the work."""
    if jobs == 0:
        raise BadInput(message("--jobs", "it is 0", "at least 1, or -1 for one per core, is needed"))
    if figure is not None and Path(figure).suffix.lower() != ".png":
        raise BadInput(message(f"figure {figure}", "its name does not end in .png", "the figure is a PNG"))
    if figure is not None:
        check_target(Path(figure))


def _draw(figure: str | None, result: Any, title: str) -> str | None:
    if figure is None:
        return None
    from spikedeploy.exporters.atomic import write_bytes
    from spikedeploy.sweep.show import png

    return str(write_bytes(figure, png(result, title)))
