"""Program -> one ONNX step cell: a self-contained file that computes one time step, with every state an input and an output.

    inputs   input (batch, *shape)    past_state.{layer}.{name}      float32, zero at the start; a token input is int64
    outputs  output (batch, *shape)   present_state.{layer}.{name}   spikes.{layer} on request; further outputs are output.{name}

Standard operators only, no local functions, no external data. The same program gives the same bytes. docs/onnx.md is the format's page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import spikedeploy
from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.exporters.onnx_graph import IR_VERSION, Graph, tensor
from spikedeploy.exporters.onnx_neurons import NODES
from spikedeploy.program import INPUT, Program
from spikedeploy.readers.onnx_info import FORMAT, METADATA, VERSION, content_digest

DEFAULT_OPSET = 17
MAX_PARAMETERS = 1_000_000_000
"""Bytes: a protobuf file ends at 2 GiB, our reader at 1 GiB, and external data is no option."""


def export(
    program: Program, *, opset: int = DEFAULT_OPSET, static_batch: int | None = None, spikes: bool = False, sequence: bool = False
) -> bytes:
    """The cell of `program` as the bytes of an ONNX file.

    opset         13 to 21
    static_batch  a fixed batch size instead of a symbolic one (microcontrollers)
    spikes        also give `spikes.{layer} (batch, *shape)` for every spiking layer
    sequence      instead of the cell, a `Scan` over whole sequences with the cell as its body: `input (time, batch, *shape)`

    Raises `ModelRefused` for a step kind that has no ONNX form, `BadInput` for an opset or batch out of range.
    """
    graph = build(program, opset=opset, static_batch=static_batch, spikes=spikes)
    if sequence:
        from spikedeploy.exporters.onnx_scan import scan_model

        return serialize(scan_model(graph, spikes=spikes))
    return serialize(cell_model(graph, spikes=spikes))


def write(
    program: Program,
    path: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    static_batch: int | None = None,
    spikes: bool = False,
    sequence: bool = False,
) -> list[Path]:
    """Write the cell to `path`, and with `sequence` the sequence model to `{stem}.sequence.onnx` beside it; returns the paths.

    Every file is complete, checked by onnx.checker, and compared with the reference runtime in ONNX Runtime and onnx.reference before the
    first byte is written; then each replaces its target in one step. Raises what `export` raises, `NotEquivalent` when a comparison fails,
    `BadInput` when a target cannot be written.
    """
    from spikedeploy.exporters.atomic import write_bytes
    from spikedeploy.exporters.onnx_check import check_cell, check_sequence_model

    target = Path(path)
    cell = export(program, opset=opset, static_batch=static_batch, spikes=spikes)
    check_cell(cell, program)
    files = {target: cell}
    if sequence:
        whole = export(program, opset=opset, static_batch=static_batch, spikes=spikes, sequence=True)
        check_sequence_model(cell, whole, program)
        files[target.with_name(f"{target.stem}.sequence.onnx")] = whole
    return [write_bytes(where, data) for where, data in files.items()]


def serialize(model: onnx.ModelProto) -> bytes:
    """The bytes of a model; the same on every run."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def build(program: Program, *, opset: int, static_batch: int | None, spikes: bool) -> Graph:
    """All nodes, with the values that leave the cell under their public names."""
    if opset not in IR_VERSION:
        raise BadInput(message("opset", f"{opset}", f"{min(IR_VERSION)} to {max(IR_VERSION)} are supported"))
    if static_batch is not None and static_batch < 1:
        raise BadInput(message("static batch", f"{static_batch}", "at least 1 is needed"))
    graph = Graph(program, opset, static_batch)
    for index, step in enumerate(program.steps):
        row = NODES.get(type(step))
        if row is None:
            raise ModelRefused(message(program.where(index), f"{type(step).__name__} has no ONNX form", "an ONNX cell cannot hold it"))
        graph.begin(step)
        result = row(graph, step, *(_read(graph, step, wire) for wire in step.inputs))
        graph.value.update(zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=True))
    _publish(graph, spikes=spikes)
    size = sum(len(tensor.raw_data) for tensor in graph.constants.values())
    if size > MAX_PARAMETERS:
        raise ModelRefused(message("model", f"parameters of {size} bytes", f"one ONNX file holds at most {MAX_PARAMETERS}"))
    return graph


def _read(graph: Graph, step: S.Step, wire: str) -> str:
    """The value of a wire; tokens become float32 for whoever is not a lookup."""
    value = graph.value[wire]
    if value != INPUT or graph.program.input_kind != "index" or isinstance(step, S.Embedding):
        return value
    return graph.node("Cast", [value], "tokens", to=TensorProto.FLOAT)


def _publish(graph: Graph, *, spikes: bool) -> None:
    for layer, name in list(graph.present):
        graph.publish(graph.present[layer, name], f"present_state.{layer}.{name}")
    for wire, public in zip((o.wire for o in graph.program.outputs), output_names(graph.program), strict=True):
        graph.publish(graph.value[wire], public)
    for step in graph.program.spiking if spikes else ():
        graph.publish(graph.value[step.name], f"spikes.{step.name}")


def output_names(program: Program) -> list[str]:
    """The first output is called `output`, every further one `output.{name}`."""
    names = ["output", *(f"output.{o.name}" for o in program.outputs[1:])]
    if len(set(names)) < len(names):
        raise ModelRefused(
            message("model", f"outputs named {', '.join(o.name for o in program.outputs)}", "every output needs its own name")
        )
    return names


def input_info(graph: Graph, *lead: int | str) -> onnx.ValueInfoProto:
    """The declaration of `input`, after the leading axes (batch, or time and batch)."""
    kind = TensorProto.INT64 if graph.program.input_kind == "index" else TensorProto.FLOAT
    return tensor(INPUT, (*lead, *graph.program.input_shape), kind)


def state_infos(graph: Graph, tense: str) -> list[onnx.ValueInfoProto]:
    """The declarations of all states, `past` or `present`."""
    states = ((layer, name, shape) for layer, held in graph.program.states.items() for name, shape in held.items())
    return [tensor(f"{tense}_state.{layer}.{name}", (graph.size(), *shape)) for layer, name, shape in states]


def result_infos(graph: Graph, spikes: bool, *lead: int | str) -> list[onnx.ValueInfoProto]:
    """The declarations of outputs and spikes, with `lead` before their own shape."""
    program = graph.program
    outputs = [(public, output.wire) for public, output in zip(output_names(program), program.outputs, strict=True)]
    spiking = [(f"spikes.{step.name}", step.name) for step in program.spiking] if spikes else []
    return [tensor(public, (*lead, *program.wires[wire])) for public, wire in outputs + spiking]


def cell_model(graph: Graph, *, spikes: bool) -> onnx.ModelProto:
    """The model around the nodes of one step."""
    inputs = [input_info(graph, graph.size()), *state_infos(graph, "past")]
    results = result_infos(graph, spikes, graph.size())
    outputs = [*results[: len(graph.program.outputs)], *state_infos(graph, "present"), *results[len(graph.program.outputs) :]]
    body = helper.make_graph(graph.nodes, "cell", inputs, outputs, list(graph.constants.values()), doc_string="one time step")
    return finished(graph, body, document(graph, "step", spikes=spikes))


def finished(graph: Graph, body: onnx.GraphProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """The model of a graph: versions, producer, metadata."""
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=IR_VERSION[graph.opset])
    metadata = {**metadata, "content": content_digest(model)}
    model.producer_name, model.producer_version = "spikedeploy", spikedeploy.__version__
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    return model


def document(graph: Graph, kind: str, *, spikes: bool) -> dict[str, Any]:
    """What the file says about itself: everything that a runner or a verifier needs, and nothing that changes from run to run."""
    program = graph.program
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "digest": program.digest,
        "producer": {"spikedeploy": spikedeploy.__version__, "onnx": onnx.__version__, "opset": graph.opset},
        "batch": graph.batch,
        "input": {"shape": list(program.input_shape), "kind": program.input_kind, "rows": _rows(program)},
        "outputs": [
            {"name": o.name, "value": public, "wire": o.wire, "reduce": o.reduce, "shape": list(program.wires[o.wire])}
            for o, public in zip(program.outputs, output_names(program), strict=True)
        ],
        "states": [
            {
                "layer": layer,
                "name": name,
                "past": f"past_state.{layer}.{name}",
                "present": f"present_state.{layer}.{name}",
                "shape": list(shape),
                "initial": 0.0,
            }
            for layer, held in program.states.items()
            for name, shape in held.items()
        ],
        "spikes": [_spiking(graph, step, exposed=spikes) for step in program.spiking],
        "semantics": {step.name: step.semantics for step in program.steps if isinstance(step, S.MatrixMemory)},
        "layers": [{"name": s.name, "kind": type(s).__name__, "shape": list(program.wires[s.name])} for s in program.steps],
        "wires": {w: {"value": value, "shape": list(program.wires[w])} for w, value in graph.value.items()} if kind == "step" else {},
    }


def _rows(program: Program) -> int | None:
    tables = [s.table.shape[0] for s in program.steps if isinstance(s, S.Embedding)]
    return min(tables, default=None) if program.input_kind == "index" else None


def _spiking(graph: Graph, step: S.Step, *, exposed: bool) -> dict[str, Any]:
    assert isinstance(step, S.Firing)  # what `Program.spiking` gives
    theta = step.threshold.astype(np.float32)
    return {
        "layer": step.name,
        "value": graph.value[step.name],
        "exposed": exposed,
        "decision": graph.decision[step.name],
        "membrane": step.inputs[0] if isinstance(step, S.Threshold) else f"{step.name}.mem",
        "threshold": [float(theta.min()), float(theta.max())],
        "strict": step.strict,
        "shape": list(graph.program.wires[step.name]),
    }
