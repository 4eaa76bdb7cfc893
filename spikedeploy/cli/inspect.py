"""`spikedeploy inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import numpy as np

from spikedeploy.cli.common import as_json, conversion, event_dt, read_data, reading, show, topk, working


@click.command(epilog="Example: spikedeploy inspect model.nir", short_help="Show what is in a .pt, .nir or .onnx file.")
@click.argument("file")
@click.option("--input", "input_file", metavar="FILE", help="Data that tells the shapes of a model saved without an example.")
@event_dt
@conversion
@topk
@reading
@as_json
def command(file: str, input_file: str | None, event_dt: float | None, as_json: bool, **how: Any) -> None:
    """Show layers, shapes, states, decays, thresholds, parameters and the program's digest of FILE (.pt, .nir or .onnx)."""
    from spikedeploy.artifact import open_artifact, program_of
    from spikedeploy.errors import BadInput, message

    with working("reading"):
        data = read_data(input_file, event_dt)
        example = None if data is None else data.example
        opened = open_artifact(file, "model", "nir", "onnx", **how)
        if data is not None and (opened.model is None or getattr(opened.model, "example", None)):
            raise BadInput(message("option --input", f"{file} knows its shapes", "it has no meaning here", "Leave it out."))
        head = {"file": file, "kind": opened.kind, "sha256": opened.sha256}
        facts = head | (_cell(file) if opened.kind == "onnx" else describe(program_of(opened, example)))
    show(facts, _text(facts), as_json)


def _cell(file: str) -> dict[str, Any]:
    from spikedeploy.readers.onnx_info import describe as describe_cell

    return describe_cell(file)


def describe(program: Any) -> dict[str, Any]:
    """A program as plain data: what people ask about it."""
    from spikedeploy.program import arrays_of

    layers: list[dict[str, Any]] = []
    for step in program.steps:
        arrays = dict(arrays_of(step))
        layers.append(
            {
                "name": step.name,
                "kind": type(step).__name__,
                "from": program.origin.get(step.name, ""),
                "inputs": list(step.inputs),
                "shape": list(program.wires[step.name]),
                "states": {name: list(shape) for name, shape in program.states.get(step.name, {}).items()},
                **{name: _range(arrays[name]) for name in ("decay", "threshold") if name in arrays},
                **({"strict": step.strict} if hasattr(step, "strict") else {}),
                **({"semantics": step.semantics} if hasattr(step, "semantics") else {}),
                "parameters": int(sum(array.size for array in arrays.values())),
            }
        )
    return {
        "digest": program.digest,
        "input": {"shape": list(program.input_shape), "kind": program.input_kind},
        "outputs": [{"name": o.name, "wire": o.wire, "reduce": o.reduce, "shape": list(program.wires[o.wire])} for o in program.outputs],
        "layers": layers,
        "parameters": sum(layer["parameters"] for layer in layers),
        "state values": int(sum(np.prod(shape) for states in program.states.values() for shape in states.values())),
        "notes": list(program.notes),
    }


def _range(array: Any) -> list[float]:
    """The one value of a parameter, or its least and greatest."""
    low, high = float(array.min()), float(array.max())
    return [low] if low == high else [low, high]


def _text(facts: Mapping[str, Any]) -> str:
    lines = [f"{facts['file']}: {facts.get('format', facts['kind'])}, program {facts['digest']}", f"sha256 {facts['sha256']}"]
    lines.append(f"input {_shape(facts['input']['shape'])} {facts['input']['kind']}, {facts['parameters']:,} parameters")
    lines.append(f"{'layer':24s} {'kind':16s} {'shape':>12s}  {'states':24s} {'decay':>17s} {'threshold':>13s}")
    for layer in facts["layers"]:
        states = layer["states"] if "states" in layer else _states(facts, layer["name"])
        shown = ", ".join(f"{name}{_shape(shape)}" for name, shape in states.items())
        threshold = layer["threshold"] if "threshold" in layer else _threshold(facts, layer["name"])
        sign = "" if not threshold else "> " if layer.get("strict", _strict(facts, layer["name"])) else ">= "
        row = f"{layer['name']:24s} {layer['kind']:16s} {_shape(layer['shape']):>12s}  {shown:24s}"
        lines.append(f"{row} {_numbers(layer.get('decay', [])):>17s} {sign + _numbers(threshold):>13s}".rstrip())
    for output in facts["outputs"]:
        lines.append(
            f"output {output['name']} {_shape(output['shape'])}" + (f", {output['reduce']} over time" if output["reduce"] != "none" else "")
        )
    lines += [f"{name}: {facts[name]}" for name in ("semantics", "opset", "ir_version", "batch", "nodes", "producer") if facts.get(name)]
    lines += [f"note: {note}" for note in facts.get("notes", [])]
    return "\n".join(lines)


def _states(facts: Mapping[str, Any], layer: str) -> dict[str, list[int]]:
    return {state["name"]: state["shape"] for state in facts.get("states", []) if state["layer"] == layer}


def _threshold(facts: Mapping[str, Any], layer: str) -> list[float]:
    found: list[float] = next((s["threshold"] for s in facts.get("spikes", []) if s["layer"] == layer), [])
    return sorted(set(found))


def _strict(facts: Mapping[str, Any], layer: str) -> bool:
    return next((bool(s["strict"]) for s in facts.get("spikes", []) if s["layer"] == layer), True)


def _shape(shape: Any) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _numbers(values: Any) -> str:
    return " .. ".join(f"{value:.5g}" for value in values)
