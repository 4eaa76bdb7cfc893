"""`spikedeploy run`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from spikedeploy.cli.common import as_json, check_target, conversion, event_dt, read_data, reading, show, topk, working


@click.command(epilog="Example: spikedeploy run model.nir --input x.npy -o spikes.npz", short_help="Run a file on input, step by step.")
@click.argument("file")
@click.option("--input", "input_file", required=True, metavar="FILE", help="Input as .npy or .npz, dense (T, B, ...) or address events.")
@click.option("-o", "--output", metavar="FILE", help="Where the outputs and spikes go, as .npz.")
@click.option("--engine", type=click.Choice(["reference", "events", "onnxruntime"]), help="Default: reference; ONNX Runtime for .onnx.")
@event_dt
@conversion
@topk
@reading
@as_json
def command(file: str, input_file: str, event_dt: float | None, output: str | None, engine: str | None, as_json: bool, **how: Any) -> None:
    """Run FILE (.pt, .nir or .onnx) on input and say how much each layer fired.

    The .npz holds `output.NAME` for every output of the model and `spikes.LAYER` for every spiking layer.
    """
    from spikedeploy.artifact import open_artifact
    from spikedeploy.errors import BadInput, message
    from spikedeploy.exporters.atomic import write_bytes

    if output is not None and Path(output).suffix != ".npz":
        raise BadInput(message(f"output {output}", "its name does not end in .npz", "an .npz holds the outputs and the spikes"))
    if output is not None:
        check_target(Path(output))
    with working("reading"):
        opened = open_artifact(file, "model", "nir", "onnx", **how)
    kind = engine or ("onnxruntime" if opened.kind == "onnx" else "reference")
    with working(f"running ({kind})"):
        shown, result = ENGINES[kind](opened, read_data(input_file, event_dt), output is not None)
    written = write_bytes(output, _npz(result)) if output is not None else None
    rates = {name: {"rate": spikes / result.decisions[name], "spikes": spikes} for name, spikes in result.spikes.items()}
    lines = [f"{name:30s} {item['rate']:8.2%} of {result.decisions[name]:,} fired" for name, item in rates.items()]
    lines += [f"{name:30s} {value.shape} {value.dtype}" for name, value in result.outputs.items()]
    lines += [f"wrote {written}"] if written else []
    data = {
        "engine": shown,
        "layers": rates,
        "outputs": {name: list(value.shape) for name, value in result.outputs.items()},
        "written": written,
    }
    show(data, "\n".join(lines), as_json)


def _npz(result: Any) -> bytes:
    arrays = {f"output.{name}": value for name, value in result.outputs.items()}
    arrays |= {f"spikes.{name}": value for name, value in result.wires.items() if name in result.spikes}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _reference(opened: Any, data: Any, keep: bool) -> tuple[str, Any]:
    from spikedeploy.artifact import program_of
    from spikedeploy.inputs import fitted
    from spikedeploy.runtime import reference

    program = program_of(opened, data.example)
    return "reference (float32)", reference.run(program, fitted(program, data), dtype=np.float32, record=_kept(program, keep))


def _events(opened: Any, data: Any, keep: bool) -> tuple[str, Any]:
    from spikedeploy.artifact import program_of
    from spikedeploy.errors import BadInput
    from spikedeploy.inputs import Recording, for_engine, said_of
    from spikedeploy.runtime.events import EventEngine

    program = program_of(opened, data.example)
    source, batch = for_engine(program, data)
    record = _kept(program, keep)
    if isinstance(data, Recording):
        wires = {*record, *(output.wire for output in program.outputs if output.reduce == "none")}
        size = sum(int(np.prod(program.wires[wire])) for wire in wires)
        data.check_room(size, "are the result", f"Take longer steps (--event-dt) or fewer samples{', or leave -o out' if keep else ''}.")
    try:
        return "events", EventEngine(program, batch=batch).run(source, record=record)
    except BadInput as error:
        raise BadInput(said_of(data, error)) from None


def _kept(program: Any, keep: bool) -> list[str]:
    """Spikes over time are kept for a file only; they are counted anyway."""
    return [step.name for step in program.spiking] if keep else []


def _onnx(opened: Any, data: Any, keep: bool) -> tuple[str, Any]:
    from spikedeploy.errors import BadInput, message
    from spikedeploy.inputs import said_of

    if opened.runner is None:
        raise BadInput(message(f"{opened.path}", "it is not an ONNX cell", "--engine onnxruntime needs an .onnx file"))
    try:
        return "ONNX Runtime", opened.runner.run(data.dense(opened.runner.info))
    except BadInput as error:
        raise BadInput(said_of(data, error)) from None


ENGINES: Mapping[str, Callable[[Any, Any, bool], tuple[str, Any]]] = {"reference": _reference, "events": _events, "onnxruntime": _onnx}
"""Per engine: what to call it, and the run of what was opened on data; whether spikes over time are wanted."""
