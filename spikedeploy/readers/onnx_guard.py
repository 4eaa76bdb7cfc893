"""Reading an `.onnx` file that nobody vouches for: what is refused, and in which order, before any runtime sees it.

    1. size         a regular file, not empty, within the limit
    2. wire scan    fields are counted and nesting is measured on the raw bytes, before the parser builds objects from them; local
                    functions, training graphs, sparse tensors and types other than tensors end the reading here
    3. structure    operators of the standard domain from a fixed list, opset and version in range, tensors whose declared size is the
                    size of their data, no external data, one level of subgraph
    4. checker      onnx.checker, full, with shape inference; every intermediate value must have a known and bounded size
    5. metadata     one JSON document of ours (`spikedeploy.readers.onnx_info`)

Known limits: the ONNX checker and the protobuf parser are C++ code that runs in this process, on what steps 1 to 3 let through.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from spikedeploy.errors import BadInput, message
from spikedeploy.readers.onnx_wire import Refused, scan

Source = str | os.PathLike[str] | bytes

MAX_BYTES = 1 << 30
"""Larger files are refused unread."""
MAX_ELEMENTS = 1 << 28
"""The most elements that one value of the graph may have at batch 1 and time 1."""
OPSETS = range(13, 24)

ITEM_SIZE: Mapping[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.BOOL: 1,
}
"""Element types of tensors and their sizes; others are refused."""

_WORDS = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv Cos Div Elu Equal Erf Exp Flatten Floor
Gather GatherElements Gelu Gemm Greater GreaterOrEqual HardSigmoid Identity LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max
MaxPool Mean Min Mul Neg Not Or Pow Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Round Scan
ScatterElements Sigmoid Sign Sin Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh TopK Transpose Unsqueeze Where Xor
"""
OPERATORS = frozenset(_WORDS.split())
"""What a cell may consist of: no loops but Scan, nothing random, nothing whose output size depends on values."""


def read_model(source: Source) -> tuple[bytes, onnx.ModelProto]:
    """The checked bytes of an ONNX file and the parsed model; `source` is a path or the bytes. Raises `BadInput` on everything else."""
    where = "model bytes" if isinstance(source, bytes) else os.fspath(source)
    try:
        data = source if isinstance(source, bytes) else _read(Path(source))
        return data, _checked(data)
    except Refused as error:
        raise BadInput(message(str(where), error.found, error.needed or "a step cell written by spikedeploy is needed")) from None


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise Refused("it is not a regular file")
        _size(info.st_size)
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise Refused(f"it cannot be read ({getattr(error, 'strerror', None) or error})", "an ONNX file is needed") from None
    return data


def _size(size: int) -> None:
    if not size:
        raise Refused("it is empty", "an ONNX file is needed")
    if size > MAX_BYTES:
        raise Refused(f"{size} bytes", f"at most {MAX_BYTES} are read")


def _checked(data: bytes) -> onnx.ModelProto:
    _size(len(data))
    scan(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # google.protobuf.message.DecodeError; the parser gives it several names
        raise Refused(f"not an ONNX file ({error})") from None
    check_structure(model)
    _check_semantics(data, model)
    return model


def check_structure(model: onnx.ModelProto) -> None:
    """Versions, operators, tensors and nesting. Raises `Refused`."""
    if not 7 <= model.ir_version <= 13:
        raise Refused(f"ONNX IR version {model.ir_version}", "7 to 13 are read")
    opsets = [(item.domain, item.version) for item in model.opset_import]
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx") or opsets[0][1] not in OPSETS:
        raise Refused(f"operator sets {opsets}", f"one standard set from {OPSETS[0]} to {OPSETS[-1]} is read")
    _check_graph(model.graph, depth=0)


def _check_graph(graph: onnx.GraphProto, depth: int) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise Refused(
                f"node '{node.name[:80]}' is {node.domain[:80] or 'ai.onnx'}.{node.op_type[:80]}",
                "only standard operators of step cells are read",
            )
        for attribute in node.attribute:
            _check_attribute(node, attribute, depth)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _check_declared(info)


def _check_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, depth: int) -> None:
    if attribute.HasField("g"):
        if node.op_type != "Scan" or depth:
            raise Refused(f"node '{node.name[:80]}' holds a graph at depth {depth + 1}", "only one Scan body is read")
        _check_graph(attribute.g, depth + 1)
    if attribute.HasField("t"):
        _check_tensor(attribute.t)
    if attribute.ref_attr_name or attribute.graphs or attribute.tensors:
        raise Refused(
            f"node '{node.name[:80]}' has the attribute '{attribute.name[:80]}'", "lists of graphs, of tensors and references are not read"
        )


def _check_tensor(tensor: onnx.TensorProto) -> None:
    name = tensor.name[:80]
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise Refused(f"tensor '{name}' keeps its data in another file", "the whole model must be in one file")
    size = ITEM_SIZE.get(tensor.data_type)
    if size is None or any(n < 0 for n in tensor.dims):
        raise Refused(f"tensor '{name}' of type {tensor.data_type} and shape {list(tensor.dims)[:8]}")
    count = prod(tensor.dims)
    listed = max(map(len, (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data)))
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else listed * size
    if held != count * size:
        raise Refused(f"tensor '{name}' of shape {list(tensor.dims)[:8]} declares {count * size} bytes and holds {held}")


def _check_declared(info: onnx.ValueInfoProto) -> None:
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or kind.elem_type not in ITEM_SIZE:
        raise Refused(f"value '{info.name[:80]}' is not a tensor of numbers")
    sizes = [item.dim_value if item.HasField("dim_value") else 1 for item in kind.shape.dim]
    if any(n < 0 for n in sizes) or prod(sizes) > MAX_ELEMENTS:
        raise Refused(f"value '{info.name[:80]}' of shape {sizes[:8]}", f"at most {MAX_ELEMENTS} elements are read")


def _check_semantics(data: bytes, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(data, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # ValidationError, InferenceError and, from C++, plain ValueError or RuntimeError
        text = " ".join(str(error).split())
        raise Refused(f"onnx.checker refuses it ({text[:300]})", "a valid model is needed") from None
    for graph in _graphs(inferred.graph):
        _check_sizes(graph)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        yield from (attribute.g for attribute in node.attribute if attribute.HasField("g"))


def _check_sizes(graph: onnx.GraphProto) -> None:
    """Every value that a node writes has a known size, so that nothing can ask for terabytes at the first step."""
    known = {info.name: info for info in (*graph.value_info, *graph.output)}
    for node in graph.node:
        for name in filter(None, node.output):
            if name not in known or not known[name].type.tensor_type.HasField("shape"):
                raise Refused(f"the size of the value '{name[:80]}' is not known", "shapes that follow from the inputs are needed")
            _check_declared(known[name])
