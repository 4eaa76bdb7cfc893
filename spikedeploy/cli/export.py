"""`spikedeploy export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from spikedeploy.cli.common import as_json, check_target, chosen, conversion, event_dt, read_data, show, single_thread, topk, working


@dataclass(frozen=True, slots=True)
class Target:
    """One row: the suffix of its files, the options that it understands, and what writes it (program, path, options) -> files."""

    suffix: str
    options: frozenset[str]
    write: Callable[[Any, Path, Mapping[str, Any]], list[Path]]


def _nir(program: Any, path: Path, options: Mapping[str, Any]) -> list[Path]:
    from spikedeploy.exporters.nir import write

    return [write(program, path, **options)]


def _onnx(program: Any, path: Path, options: Mapping[str, Any]) -> list[Path]:
    from spikedeploy.exporters.onnx_cell import write

    return list(write(program, path, **options))


TARGETS: Mapping[str, Target] = {
    "nir": Target(".nir", frozenset({"profile", "dt", "discretisation"}), _nir),
    "onnx": Target(".onnx", frozenset({"opset", "static_batch", "sequence", "spikes"}), _onnx),
}
"""Per `--target`: what it is."""


@click.command(
    epilog="Example: spikedeploy export model.pt --target nir -o model.nir", short_help="Write a trained model as a verified artifact."
)
@click.argument("model_file", metavar="MODEL")
@click.option("--target", type=click.Choice(list(TARGETS)), required=True, help="Kind of file to write.")
@click.option("-o", "--output", metavar="FILE", help="Where to; the model's name with the target's suffix by default.")
@click.option(
    "--profile",
    help="NIR: who will read it: generic (default), spec, norse, snntorch, spyx, spikingjelly, sinabs, rockpool, lava, nengo, lif.",
)
@click.option("--dt", type=float, help="NIR: the time step that the reader will use; the profile has one.")
@click.option("--discretisation", type=click.Choice(["euler", "exact"]), help="NIR, profile spec: decay 1 - dt/tau or exp(-dt/tau).")
@click.option("--opset", type=int, help="ONNX: 13 to 21; 17 by default.")
@click.option("--static-batch", is_flag=False, flag_value=1, type=int, help="ONNX: a fixed batch size (1 when no number is given).")
@click.option("--sequence", is_flag=True, default=None, help="ONNX: also a Scan model of whole sequences, in FILE.sequence.onnx.")
@click.option("--spikes", is_flag=True, default=None, help="ONNX: every layer's spikes as outputs too.")
@click.option(
    "--input", "input_file", metavar="FILE", help="Real data to verify on, dense (T, B, ...) or address events; random by default."
)
@event_dt
@conversion
@topk
@as_json
def command(
    model_file: str, target: str, output: str | None, input_file: str | None, event_dt: float | None, as_json: bool, **given: Any
) -> None:
    """Convert MODEL, write it, read it back, and verify it; only then the file appears under its name.

    MODEL is a file of spikedeploy.save, a bare state_dict (with --model), or a pickled nn.Sequential of known layers.
    """
    from spikedeploy.errors import BadInput, message

    single_thread()
    row = TARGETS[target]
    own = {option for other in TARGETS.values() for option in other.options}
    format_options = {key: value for key, value in chosen(**given).items() if key in own}
    foreign = sorted(set(format_options) - row.options)
    if foreign:
        raise BadInput(message(f"option --{foreign[0].replace('_', '-')}", f"it has no meaning for --target {target}", "leave it out"))
    meaning = {key: value for key, value in chosen(**given).items() if key not in own}
    path = Path(output) if output else Path(model_file).with_suffix(row.suffix)
    if path.suffix.lower() != row.suffix:
        raise BadInput(message(f"output {path}", f"its name does not end in {row.suffix}", f"--target {target} writes {row.suffix} files"))
    result = _export(model_file, row, path, lambda: read_data(input_file, event_dt), format_options, meaning)
    show(result, _text(result), as_json)


def _export(
    model_file: str, row: Target, path: Path, data: Callable[[], Any], format_options: Mapping[str, Any], meaning: dict[str, Any]
) -> dict[str, Any]:
    from spikedeploy.artifact import digest_of, open_artifact, program_of
    from spikedeploy.exporters.atomic import write_bytes
    from spikedeploy.verify.run import require, verify

    with working("loading") as progress, tempfile.TemporaryDirectory(prefix="spikedeploy-") as folder:
        check_target(path)
        x = data()
        opened = open_artifact(model_file, "model", **meaning)
        progress("converting")
        program = program_of(opened, None if x is None else x.example)
        progress("writing")
        files = row.write(program, Path(folder) / path.name, format_options)
        options = {name: value for name, value in meaning.items() if name != "model"}  # the module is made
        source = None if x is None else str(x.where)
        batch = format_options.get("static_batch", 4)
        certificate = verify(opened.model, files[0], x, steps=32, batch=batch, options=options, input_source=source, progress=progress)
        if _meant_to_be_equal(format_options):
            require(certificate)
        written = [write_bytes(path.with_name(file.name), file.read_bytes()) for file in files]
    return {
        "files": [{"path": str(file), "bytes": file.stat().st_size, "sha256": digest_of(file)} for file in written],
        "program": program.digest,
        "notes": list(program.notes),
        "certificate": certificate.as_dict(),
    }


def _meant_to_be_equal(options: Mapping[str, Any]) -> bool:
    """False for the profiles that are another model by design."""
    if "profile" not in options:
        return True
    from spikedeploy.exporters.nir import PROFILES

    return options["profile"] not in PROFILES or PROFILES[options["profile"]].exact


def _text(result: Mapping[str, Any]) -> str:
    certificate = result["certificate"]
    decisions = sum(layer["decisions"] for layer in certificate["layers"])
    mismatches = sum(layer["mismatches"] for layer in certificate["layers"])
    lines = [f"wrote {file['path']}: {file['bytes']:,} bytes, sha256 {file['sha256']}" for file in result["files"]]
    lines.append(
        f"{certificate['verdict']}: {mismatches:,} spike mismatches in {decisions:,} decisions "
        f"({certificate['input_source']}, {certificate['steps']} steps, batch {certificate['batch']})"
    )
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"{finding['level']}: {finding['text']}" for finding in certificate["findings"] if finding["level"] != "note"]
    return "\n".join(lines)
