"""What a step cell says about itself: the JSON document in its metadata, checked against the graph that it describes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import onnx

from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT, Reduce
from spikedeploy.readers.onnx_guard import Source, read_model
from spikedeploy.steps import Shape

FORMAT, VERSION = "spikedeploy.onnx", 1
METADATA = "spikedeploy"
"""The one key of `metadata_props`; its value is a JSON document."""


@dataclass(frozen=True, slots=True)
class StateInfo:
    """One state of a cell: `past` and `present` are the names of its input and output, `shape` leaves out the batch axis."""

    layer: str
    name: str
    past: str
    present: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """One result: the graph output `value`, the program's `wire`, and how it is reduced over time."""

    name: str
    value: str
    wire: str
    reduce: Reduce
    shape: Shape


@dataclass(frozen=True, slots=True)
class SpikeInfo:
    """One spiking layer: the values inside the graph that hold its spikes and what is compared with the threshold (least, greatest);
    `membrane` is the program's wire of its membrane."""

    layer: str
    value: str
    decision: str
    membrane: str
    threshold: tuple[float, float]
    strict: bool
    shape: Shape
    exposed: bool


@dataclass(frozen=True, slots=True)
class WireInfo:
    """One wire of the program: the value of the graph that holds it, and its shape without the batch axis."""

    value: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class CellInfo:
    """A cell (`kind` "step") or a Scan over whole sequences ("sequence").

    digest  of the program that it was made from;  intact  whether the graph is still the one that was written
    wires   every wire of the program (step cells only)
    """

    kind: str
    digest: str
    intact: bool
    batch: int | None
    input_shape: Shape
    input_kind: str
    rows: int | None
    outputs: tuple[OutputInfo, ...]
    states: tuple[StateInfo, ...]
    spikes: tuple[SpikeInfo, ...]
    semantics: Mapping[str, str]
    layers: tuple[Mapping[str, Any], ...]
    wires: Mapping[str, WireInfo]
    producer: Mapping[str, Any]


def read_cell(source: Source) -> tuple[bytes, onnx.ModelProto, CellInfo]:
    """A step cell or sequence model from a path or bytes: its bytes, the parsed model and what it says about itself. Raises `BadInput`."""
    data, model = read_model(source)
    return data, model, cell_info(model)


def cell_info(model: onnx.ModelProto) -> CellInfo:
    """The metadata of a model, checked against its graph. Raises `BadInput`."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA]
    if len(texts) != 1:
        raise BadInput(
            message("ONNX metadata", "no spikedeploy document", "a step cell written by `spikedeploy export --target onnx` is needed")
        )
    try:
        document = json.loads(texts[0])
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"format {document['format']} {document['version']}")
        info = _info(document, content_digest(model))
        _check_against(model.graph, info)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(
            message("ONNX metadata", f"unreadable ({type(error).__name__}: {error})"[:300], f"{FORMAT} version {VERSION} is needed")
        ) from None
    return info


def content_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of the graph: every node, parameter and name."""
    return sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def _info(document: dict[str, Any], content: str) -> CellInfo:
    given = document["input"]
    if not document["outputs"]:
        raise ValueError("no output")
    batch, rows = document["batch"], given["rows"]
    return CellInfo(
        kind=_one_of(document["kind"], "step", "sequence"),
        digest=_text(document["digest"]),
        intact=_text(document["content"]) == content,
        batch=None if batch is None else _count(batch),
        input_shape=_shape(given["shape"]),
        input_kind=_one_of(given["kind"], "float", "index"),
        rows=None if rows is None else _count(rows),
        outputs=tuple(_output(item) for item in document["outputs"]),
        states=tuple(_state(item) for item in document["states"]),
        spikes=tuple(_spikes(item) for item in document["spikes"]),
        semantics={_text(k): _text(v) for k, v in document["semantics"].items()},
        layers=tuple({"name": _text(i["name"]), "kind": _text(i["kind"]), "shape": _shape(i["shape"])} for i in document["layers"]),
        wires={_text(k): WireInfo(_text(v["value"]), _shape(v["shape"])) for k, v in document["wires"].items()},
        producer={_text(k): v if isinstance(v, int) else _text(v) for k, v in document["producer"].items()},
    )


def _output(item: dict[str, Any]) -> OutputInfo:
    kind: Any = _one_of(item["reduce"], "none", "mean", "sum", "last", "max")
    return OutputInfo(_text(item["name"]), _text(item["value"]), _text(item["wire"]), kind, _shape(item["shape"]))


def _state(item: dict[str, Any]) -> StateInfo:
    if item["initial"] != 0:
        raise ValueError(f"a state that starts at {item['initial']}")
    layer, name, past, present = (_text(item[key]) for key in ("layer", "name", "past", "present"))
    return StateInfo(layer, name, past, present, _shape(item["shape"]))


def _spikes(item: dict[str, Any]) -> SpikeInfo:
    low, high = (float(value) for value in item["threshold"])
    layer, value, decision, membrane = (_text(item[key]) for key in ("layer", "value", "decision", "membrane"))
    return SpikeInfo(layer, value, decision, membrane, (low, high), bool(item["strict"]), _shape(item["shape"]), bool(item["exposed"]))


def _text(value: object) -> str:
    return _typed(value, str)


def _count(value: object) -> int:
    number = _typed(value, int)
    if not 1 <= number < 1 << 40:
        raise ValueError(f"a size of {number}")
    return number


def _typed(value: Any, kind: Callable[..., Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:60]!r} where {kind.__name__} is needed")
    return value


def _one_of(value: object, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(f"{str(value)[:60]!r} is none of {', '.join(allowed)}")
    return str(value)


def _shape(value: object) -> Shape:
    return tuple(_count(size) for size in _typed(value, list))


def _check_against(graph: onnx.GraphProto, info: CellInfo) -> None:
    """What the document names exists, with the shapes that it gives; and the graph has no input that the document does not name."""
    inputs, outputs = _declared(graph.input), _declared(graph.output)
    lead = 1 if info.kind == "step" else 2
    wanted = {INPUT: (lead, info.input_shape)} | {state.past: (1, state.shape) for state in info.states}
    if set(inputs) != set(wanted):
        raise ValueError(f"inputs {sorted(set(inputs) ^ set(wanted))[:4]} are not both in the graph and in the document")
    for name, (skip, shape) in wanted.items():
        _same(name, inputs[name], skip, shape)
    for state in info.states:
        _same(state.present, outputs[state.present], 1, state.shape)
    for output in info.outputs:
        _same(output.value, outputs[output.value], lead if output.reduce == "none" else 1, output.shape)


def _same(name: str, sizes: list[int], lead: int, shape: Shape) -> None:
    if tuple(sizes[lead:]) != shape:
        raise ValueError(f"'{name[:80]}' has the shape {sizes} and the document says {list(shape)}")


def _declared(infos: Any) -> dict[str, list[int]]:
    """Names and sizes, 0 for a symbolic one."""
    return {info.name: [item.dim_value for item in info.type.tensor_type.shape.dim] for info in infos}


def describe(source: Source) -> dict[str, Any]:
    """What `spikedeploy inspect x.onnx` shows: plain data, ready for JSON. Raises `BadInput`."""
    data, model, info = read_cell(source)
    return {
        "format": f"ONNX {'step cell' if info.kind == 'step' else 'sequence (Scan)'}",
        "bytes": len(data),
        "digest": info.digest,
        "intact": info.intact,
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "producer": dict(info.producer),
        "batch": info.batch or "any",
        "input": {"shape": list(info.input_shape), "kind": info.input_kind},
        "outputs": [{"name": o.name, "shape": list(o.shape), "reduce": o.reduce} for o in info.outputs],
        "layers": [{**layer, "shape": list(layer["shape"])} for layer in info.layers],
        "states": [{"layer": s.layer, "name": s.name, "shape": list(s.shape), "initial": 0.0} for s in info.states],
        "spikes": [{"layer": s.layer, "shape": list(s.shape), "threshold": list(s.threshold), "strict": s.strict} for s in info.spikes],
        "semantics": dict(info.semantics),
        "nodes": len(model.graph.node),
        "parameters": sum(_elements(tensor) for tensor in model.graph.initializer),
    }


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count
