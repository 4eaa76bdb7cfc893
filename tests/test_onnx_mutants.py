"""Faults planted into Gen2 cells by surgery on the file: verify must see every one of them, and pass the cell as it was written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_zoo import Builder, program

from spikedeploy.exporters.onnx_cell import export
from spikedeploy.program import Output, Program
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.verify import verify

Fault = Callable[[onnx.GraphProto], None]
STATE = "past_state.mem1.S.S"


def square(semantics: str, *, dyadic: bool = False, layers: int = 1) -> Program:
    """d = n, so that a transposed product still has the right shape."""
    b = Builder(8, dyadic=dyadic)
    steps = b.memory("mem1", "input", 5, 4, 4, semantics=semantics)
    for index in range(2, layers + 1):
        steps += b.memory(f"mem{index}", f"mem{index - 1}", 16, 4, 4, semantics=semantics)
    return program((5,), steps, Output("out", f"mem{layers}"))


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(item for item in graph.node if item.name == name)


def half_state(graph: onnx.GraphProto) -> None:
    for item in graph.node:
        item.input[:] = ["coarse" if name == STATE else name for name in item.input]
    graph.node.insert(0, helper.make_node("Cast", [STATE], ["half"], name="half", to=TensorProto.FLOAT16))
    graph.node.insert(1, helper.make_node("Cast", ["half"], ["coarse"], name="coarse", to=TensorProto.FLOAT))


def half_border(graph: onnx.GraphProto) -> None:
    """The state leaves and enters the cell as float16; inside it stays float32."""
    half_state(graph)
    graph.node.remove(node(graph, "half"))
    node(graph, "coarse").input[0] = STATE
    last = STATE.replace("past", "present")
    for item in graph.node:
        item.input[:] = ["fine" if name == last else name for name in item.input]
        item.output[:] = ["fine" if name == last else name for name in item.output]
        item.name = "fine" if item.name == last else item.name
    graph.node.append(helper.make_node("Cast", ["fine"], [last], name=last, to=TensorProto.FLOAT16))
    for info in (*graph.input, *graph.output):
        if info.name in (STATE, last):
            info.type.tensor_type.elem_type = TensorProto.FLOAT16


def transposed(graph: onnx.GraphProto) -> None:
    v, k = node(graph, "mem1.S/v"), node(graph, "mem1.S/k")
    v.input[1], k.input[1] = k.input[1], v.input[1]


def wrong_axis(graph: onnx.GraphProto) -> None:
    node(graph, "mem1.S/alpha").input[1] = node(graph, "mem1.S/v").input[1]


def last_state(graph: onnx.GraphProto) -> None:
    node(graph, "mem1.spk/fires").input[0] = STATE


def hard_sigmoid(graph: onnx.GraphProto) -> None:
    node(graph, "mem1.alpha").op_type = "HardSigmoid"


def also_equal(graph: onnx.GraphProto) -> None:
    node(graph, "mem1.spk/fires").op_type = "GreaterOrEqual"


def forgotten_bias(graph: onnx.GraphProto) -> None:
    del node(graph, "mem1.k").input[2]


def nudged_threshold(graph: onnx.GraphProto, theta: float = 1.05) -> None:
    tensor = next(item for item in graph.initializer if item.name == "mem1.spk.threshold")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(theta, np.float32), tensor.name))


def threshold_off_by_a_bit(graph: onnx.GraphProto) -> None:
    """No decision of a random input lies between 1 and the next number: only the probe of the neighbours sees it."""
    nudged_threshold(graph, float(np.nextafter(np.float32(1), np.float32(2))))


def lost_state(graph: onnx.GraphProto) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 4, 4), np.float32), "nothing"))
    node(graph, "mem1.S/kept").input[0] = "nothing"


FAULTS: dict[str, Fault] = {
    "fp16 state": half_state,
    "fp16 state, seen from outside": half_border,
    "transposed outer product": transposed,
    "decay on the wrong axis": wrong_axis,
    "spikes of the last state": last_state,
    "hard sigmoid": hard_sigmoid,
    ">= in place of >": also_equal,
    "a bias forgotten": forgotten_bias,
    "another threshold": nudged_threshold,
    "a threshold off by one bit": threshold_off_by_a_bit,
    "the state not read": lost_state,
}


@pytest.mark.parametrize("semantics", ["recurrence", "snntorch-1.0.0"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, semantics: str) -> None:
    model = square(semantics)
    changed = onnx.load_from_string(export(model))
    FAULTS[fault](changed.graph)
    certificate = verify(model, OnnxRunner(changed.SerializeToString()), steps=48, batch=4)
    assert not certificate.passed, str(certificate)


@pytest.mark.parametrize("semantics", ["recurrence", "snntorch-1.0.0"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_cell_as_written_passes(semantics: str, layers: int) -> None:
    model = square(semantics, layers=layers)
    certificate = verify(model, OnnxRunner(export(model)), steps=48, batch=4)
    assert certificate.passed, str(certificate)


def test_the_fault_of_one_layer_is_blamed_on_it() -> None:
    model = square("recurrence", layers=3)
    changed = onnx.load_from_string(export(model))
    node(changed.graph, "mem2.alpha").op_type = "HardSigmoid"
    certificate = verify(model, OnnxRunner(changed.SerializeToString()), steps=48, batch=4)
    assert not certificate.passed
    wrong = {check.layer for check in certificate.layers if check.mismatches}
    assert wrong == {"mem2.spk"}
