"""The sides of `benchmarks/events.py`: each function gives a call without arguments that runs a whole input once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import EventEngine, Events

Side = Callable[[], object]


# --- ONNX Runtime ----------------------------------------------------------------------------------------------


def lean(program: Program, *, scan: bool) -> bytes:
    """The cell with five nodes a layer, or a Scan over it."""
    nodes, constants, past, present = [], [], [], []
    wire = "input"
    for step in program.steps:
        name, out = step.name, program.wires[step.name][0]
        if isinstance(step, S.Affine):
            constants += [
                numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((step.weight.T.copy(), f"{name}.w"), (step.bias, f"{name}.b"))
            ]
            nodes.append(helper.make_node("Gemm", [wire, f"{name}.w", f"{name}.b"], [name]))
        elif isinstance(step, S.Integrator):
            constants.append(numpy_helper.from_array(step.decay.astype(np.float32), f"{name}.d"))
            past.append(helper.make_tensor_value_info(f"past.{name}", TensorProto.FLOAT, [1, out]))
            present.append(helper.make_tensor_value_info(f"present.{name}", TensorProto.FLOAT, [1, out]))
            nodes.append(helper.make_node("Mul", [f"past.{name}", f"{name}.d"], [f"{name}.leak"]))
            nodes.append(helper.make_node("Add", [f"{name}.leak", wire], [f"present.{name}"]))
        else:
            constants.append(numpy_helper.from_array(step.threshold.astype(np.float32), f"{name}.t"))
            nodes.append(helper.make_node("Greater", [f"present.{step.inputs[0]}", f"{name}.t"], [f"{name}.fires"]))
            nodes.append(helper.make_node("Cast", [f"{name}.fires"], [name], to=TensorProto.FLOAT))
        wire = name
    size = program.wires[wire][0]
    row_in, row_out = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("input", program.input_shape[0]), (wire, size))
    )
    body = helper.make_graph(nodes, "cell", [*past, row_in], [*present, row_out], [] if scan else constants)
    if scan:
        inner = {i.name: f"{i.name}.start" for i in past}
        node = helper.make_node(
            "Scan", [*inner.values(), "sequence"], [*(p.name + ".end" for p in present), "output"], body=body, num_scan_inputs=1
        )
        starts = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None]) for name in inner.values()]
        ends = [helper.make_tensor_value_info(p.name + ".end", TensorProto.FLOAT, [1, None]) for p in present]
        whole = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["t", 1, s])
            for n, s in (("sequence", program.input_shape[0]), ("output", size))
        ]
        body = helper.make_graph([node], "sequence", [*starts, whole[0]], [*ends, whole[1]], constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def session(data: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def bound_loop(data: bytes, x: np.ndarray) -> Side:
    """Two bindings whose states point at each other's, as the exporter's runner has them; each step copies its input in."""
    runner, model = session(data), onnx.load_from_string(data)
    states = [i for i in model.graph.input if i.name != "input"]
    results = list(model.graph.output)
    buffers = [[np.zeros([1, *(d.dim_value for d in s.type.tensor_type.shape.dim[1:])], np.float32) for s in states] for _ in range(2)]
    first = np.zeros_like(x[0])
    outs = {o.name: np.zeros([1, *(d.dim_value for d in o.type.tensor_type.shape.dim[1:])], np.float32) for o in results}
    bindings = []
    for now in (0, 1):
        binding = runner.io_binding()
        binding.bind_input("input", "cpu", 0, np.float32, first.shape, first.ctypes.data)
        targets = dict(outs)
        for place, state in enumerate(states):
            binding.bind_input(state.name, "cpu", 0, np.float32, buffers[now][place].shape, buffers[now][place].ctypes.data)
            targets[state.name.replace("past", "present", 1)] = buffers[1 - now][place]
        for name, array in targets.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        bindings.append(binding)

    def run(keep: tuple[Any, ...] = (buffers, outs)) -> None:
        for t in range(len(x)):
            first[:] = x[t]
            runner.run_with_iobinding(bindings[t % 2])

    return run


def scan(data: bytes, x: np.ndarray) -> Side:
    """A sequence model; its states start at zero, in the shapes that the body of its Scan declares."""
    runner, model = session(data), onnx.load_from_string(data)
    node = next(node for node in model.graph.node if node.op_type == "Scan")
    body = node.attribute[0].g
    shapes = {name: [d.dim_value or 1 for d in info.type.tensor_type.shape.dim] for name, info in zip(node.input, body.input, strict=False)}
    names = [info.name for info in model.graph.input]
    feed = {name: x if name in ("input", "sequence") else np.zeros(shapes[name], np.float32) for name in names}
    return lambda: runner.run(None, feed)


def snntorch_loop(program: Program, x: np.ndarray) -> Side:
    import snntorch as snn

    linears, cells = [], []
    for step in program.steps:
        if isinstance(step, S.Affine):
            linear = torch.nn.Linear(step.weight.shape[1], step.weight.shape[0])
            with torch.no_grad():
                linear.weight.copy_(torch.tensor(step.weight))
                linear.bias.copy_(torch.tensor(step.bias))
            linears.append(linear)
        elif isinstance(step, S.Threshold):
            cells.append(
                snn.Leaky(
                    beta=float(next(s for s in program.steps if isinstance(s, S.Integrator)).decay),
                    threshold=float(step.threshold),
                    reset_mechanism="none",
                )
            )
    inputs = torch.tensor(x)

    def run() -> None:
        with torch.no_grad():
            mems = [cell.init_leaky() for cell in cells]
            for now in inputs:
                for place, (linear, cell) in enumerate(zip(linears, cells, strict=True)):
                    now, mems[place] = cell(linear(now), mems[place])

    return run


# --- the engine ------------------------------------------------------------------------------------------------


def whole(program: Program, x: np.ndarray, **options: Any) -> Side:
    engine = EventEngine(program, **options)
    return lambda: engine.run(x)


def streamed(program: Program, x: np.ndarray, **options: Any) -> Side:
    stream = EventEngine(program, **options).stream()
    into, step = stream.input, stream.step

    def run() -> None:
        for now in x:
            into[:] = now
            step()

    return run


def on_events(program: Program, x: np.ndarray[Any, Any]) -> Callable[[], object]:
    """One call with the address events of `x (T, 1, ...)`."""
    time_, index = np.nonzero(x.reshape(len(x), -1))
    return partial(EventEngine(program).run, Events(index, time_, len(x)))
