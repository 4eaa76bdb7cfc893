"""Hostile and broken `.onnx` files: each is refused with a clear error, quickly, and before a runtime sees it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_zoo import ZOO, Builder, samples

from spikedeploy.errors import BadInput
from spikedeploy.exporters.onnx_cell import export
from spikedeploy.readers import onnx_guard, onnx_wire
from spikedeploy.readers.onnx_info import describe
from spikedeploy.runtime.onnx_runner import OnnxRunner

CELL = export(ZOO["gen2"](Builder(0)))


def refused(data: bytes, text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(BadInput, match=text):
        OnnxRunner(data)
    assert time.perf_counter() - start < 2


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(CELL)
    change(model)
    return model.SerializeToString()


def test_the_cell_itself_is_read() -> None:
    assert OnnxRunner(CELL).info.intact


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "it is empty; an ONNX file is needed"),
        (b"\0" * 1000, "not an ONNX file|not parse|onnx"),
        (b"\x89HDF\r\n\x1a\n" + bytes(200), "not an ONNX file"),
        (b"PK\x03\x04" + bytes(range(256)), "not an ONNX file"),
        (CELL[: len(CELL) // 2], "not an ONNX file"),
        (CELL[:-1], "not an ONNX file"),
    ],
)
def test_bytes_that_are_no_model(data: bytes, text: str) -> None:
    refused(data, text)


def test_random_bytes_and_random_changes_give_no_traceback() -> None:
    rng = np.random.default_rng(0)
    x = samples(ZOO["gen2"](Builder(0)), 1, 1)
    refusals = 0
    for _ in range(150):
        data = bytearray(CELL if rng.random() < 0.8 else rng.bytes(int(rng.integers(1, 3000))))
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(0, len(data)))
            data[place : place + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 4)))
            data = data or bytearray(b"x")
        try:
            runner = OnnxRunner(bytes(data))
            runner.run(x)
            assert (
                not runner.info.intact
                or bytes(data) == CELL
                or onnx.load_from_string(bytes(data)).graph == onnx.load_from_string(CELL).graph
            )
        except BadInput:
            refusals += 1
    assert refusals > 100


def test_a_changed_weight_shows() -> None:
    def nudge(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]

    assert describe(CELL)["intact"] is True
    assert describe(changed(nudge))["intact"] is False


def nested_functions(depth: int) -> bytes:
    model = onnx.load_from_string(CELL)
    for index in range(depth):
        op = f"f{index + 1}" if index + 1 < depth else "Identity"
        node = helper.make_node(op, ["x"], ["y"], domain="local" if index + 1 < depth else "")
        model.functions.append(
            helper.make_function("local", f"f{index}", ["x"], ["y"], [node], [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])
        )
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model.SerializeToString()


def test_three_thousand_nested_functions() -> None:
    refused(nested_functions(3000), "it holds a local function; plain tensors and standard operators in one file are read")


def nested_graphs(depth: int) -> onnx.GraphProto:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(depth):
        node = helper.make_node("Identity", ["x"], ["y"])
        node.attribute.append(helper.make_attribute("body", graph))
        graph = helper.make_graph([node], "g", [], [])
    return graph


@pytest.mark.parametrize("depth", [1, 2, 5, 25])
def test_nested_graphs(depth: int) -> None:
    refused(changed(lambda m: m.graph.node.append(nested_graphs(depth).node[0])), "holds a graph at depth|nest deeper than")


def test_a_bomb_of_empty_messages() -> None:
    inner = b"\x0a\x00" * 2_000_000  # four megabytes of empty nodes, some 300 MB as objects
    data = b"\x08\x08" + b"\x3a" + _varint(len(inner)) + inner
    refused(data, f"more than {onnx_wire.MAX_FIELDS} fields")


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def located(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = sizes

    return change


def loop(model: onnx.ModelProto) -> None:
    model.graph.node.add(op_type="Loop", name="loop", input=["", ""], output=["z"])


def contrib(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"x"]))


def giant_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40


def outer_product(model: onnx.ModelProto) -> None:
    """Two vectors of 60,000 in the file, 14 GB at the first step."""
    for name, shape in (("column", (60_000, 1)), ("row", (1, 60_000))):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    model.graph.node.append(helper.make_node("Mul", ["column", "row"], ["square"], name="square"))


def sparse(model: onnx.ModelProto) -> None:
    values, indices = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "output"


def opset(version: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def sequence_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1])))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (external, "it holds external data"),
        (located, "keeps its data in another file; the whole model must be in one file"),
        (dims(1 << 20, 1 << 20), r"declares 4398046511104 bytes and holds"),
        (dims(1 << 62, 4), "declares"),
        (dims(-1, 5), "of type 1 and shape"),
        (dims(5), "declares 20 bytes and holds 16"),
        (loop, r"node 'loop' is ai\.onnx\.Loop; only standard operators of step cells are read"),
        (contrib, r"is com\.microsoft\.Gemm; only standard operators"),
        (domain, "operator sets"),
        (strings, "tensor 'words' of type 8"),
        (giant_input, "elements are read"),
        (outer_product, r"value 'square' of shape \[60000, 60000\]; at most"),
        (sparse, "it holds a sparse tensor"),
        (sequence_type, "it holds a sequence"),
        (cycle, r"onnx\.checker refuses it"),
        (opset(7), r"operator sets \[\('', 7\)\]; one standard set from 13 to 23 is read"),
        (opset(1 << 40), "operator sets"),
        (lambda m: m.ClearField("graph"), r"onnx\.checker refuses it"),
        (lambda m: m.ClearField("metadata_props"), "no spikedeploy document; a step cell written by `spikedeploy export"),
        (lambda m: m.graph.input.add(name="more", type=m.graph.input[0].type), r"inputs \['more'\] are not both"),
        (lambda m: setattr(m, "ir_version", 3), "ONNX IR version 3; 7 to 13 are read"),
    ],
)  # fmt: skip
def test_hostile_models(change: Callable[[onnx.ModelProto], None], text: str) -> None:
    refused(changed(change), text)


def document(**items: object) -> bytes:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = json.dumps(json.loads(model.metadata_props[0].value) | items)

    return changed(change)


@pytest.mark.parametrize(
    "items",
    [
        {"format": "other"},
        {"version": 2},
        {"states": []},
        {"states": [{"layer": "a"}]},
        {"outputs": [{"name": "out", "value": "nothing", "wire": "w", "reduce": "none", "shape": [4]}]},
        {"outputs": [{"name": "out", "value": "output", "wire": "w", "reduce": "median", "shape": [16]}]},
        {"outputs": [{"name": "out", "value": "output", "wire": "w", "reduce": "none", "shape": [99]}]},
        {"outputs": []},
        {"input": {"shape": [-5], "kind": "float", "rows": None}},
        {"input": {"shape": [6], "kind": "float", "rows": None}},
        {"input": 3},
        {"batch": "many"},
        {"kind": "walk"},
        {"wires": {"x": {"value": 3, "shape": []}}},
    ],
)
def test_metadata_that_does_not_fit_the_graph(items: dict[str, object]) -> None:
    refused(document(**items), "ONNX metadata: unreadable")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_metadata_that_is_no_document(text: str) -> None:
    refused(changed(lambda m: setattr(m.metadata_props[0], "value", text)), "ONNX metadata: unreadable")


def test_a_wire_that_the_graph_does_not_hold() -> None:
    found = json.loads(onnx.load_from_string(CELL).metadata_props[0].value)["wires"]
    data = document(wires=found | {"ghost": {"value": "ghost", "shape": [3]}})
    with pytest.raises(BadInput, match="the value 'ghost' does not exist"):
        OnnxRunner(data, record=["ghost"])


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"net\.onnx: it cannot be read \(No such file or directory\)"):
        OnnxRunner(tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="it is not a regular file"):
        OnnxRunner(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(BadInput, match="it is not a regular file"):
        OnnxRunner(tmp_path / "pipe.onnx")
    (tmp_path / "net.onnx").write_bytes(CELL)
    monkeypatch.setattr(onnx_guard, "MAX_BYTES", 100)
    with pytest.raises(BadInput, match="bytes; at most 100 are read"):
        OnnxRunner(tmp_path / "net.onnx")
