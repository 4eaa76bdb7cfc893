"""An ONNX Runtime session on a checked cell: one thread, no logging, states and results in buffers of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from spikedeploy.errors import BadInput, message
from spikedeploy.steps import Array

DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}


def open_session(data: bytes, threads: int = 1) -> Any:
    """A session on the CPU; `data` must have passed `spikedeploy.readers.onnx_guard`. Raises `BadInput` when the runtime refuses it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no common base but Exception
        raise BadInput(
            message("model", f"ONNX Runtime refuses it ({' '.join(str(error).split())[:300]})", "a model that it can run is needed")
        ) from None


def with_outputs(model: onnx.ModelProto, values: Mapping[str, str]) -> onnx.ModelProto:
    """A copy with further outputs: public name -> value inside the graph. A name that is an output already stays. Raises `BadInput`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kinds = _types(model)
    present = {info.name for info in model.graph.output}
    for public, value in values.items():
        if value not in kinds:
            raise BadInput(message("ONNX cell", f"the value '{value}' does not exist", "the graph must hold what its metadata names"))
        if public not in present:
            changed.graph.node.append(onnx.helper.make_node("Identity", [value], [public], name=public))
            changed.graph.output.append(onnx.helper.make_tensor_value_info(public, kinds[value], None))
    return changed


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value of the graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {info.name: info.type.tensor_type.elem_type for info in (*graph.input, *graph.output, *graph.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


class Binding:
    """One IOBinding whose inputs and outputs are NumPy arrays; the runtime reads and writes them in place."""

    __slots__ = ("_arrays", "_binding", "_session")

    def __init__(self, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        self._session, self._binding, self._arrays = session, session.io_binding(), (dict(inputs), dict(outputs))
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        """One run. Raises `BadInput` when the runtime gives up, as it may on a file that somebody changed."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the runtime's errors have no common base but Exception
            raise failed(error) from None


def failed(error: Exception) -> BadInput:
    """What a runtime's failure is to the user."""
    text = " ".join(str(error).split())[:300]
    return BadInput(message("ONNX model", f"it fails at run time ({text})", "a model that runs is needed"))
