"""A whole sequence in one model: `Scan` over time with the cell as its body, for offline work.

    inputs   input (time, batch, *shape)    past_state.{layer}.{name} (batch, *shape)
    outputs  output (time, batch, *shape), or (batch, *shape) where the model reduces over time; present_state: after the last step

The body's nodes are the cell's nodes, so every output equals the loop over the cell, bit for bit.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from spikedeploy.exporters.onnx_cell import document, finished, input_info, output_names, result_infos, state_infos
from spikedeploy.exporters.onnx_graph import TIME, Graph
from spikedeploy.program import INPUT, Reduce
from spikedeploy.steps import Shape


def scan_model(graph: Graph, *, spikes: bool) -> onnx.ModelProto:
    """The sequence model around the nodes of one step."""
    past, present = state_infos(graph, "past"), state_infos(graph, "present")
    results = [info.name for info in result_infos(graph, spikes)]
    series = {name: f"{name}/series" for name in results}
    scan = helper.make_node(
        "Scan",
        [*(info.name for info in past), INPUT],
        [*(info.name for info in present), *series.values()],
        name="sequence",
        doc_string="the cell at every step",
        body=_body(graph, spikes),
        num_scan_inputs=1,
    )
    kinds = dict(zip(output_names(graph.program), (output.reduce for output in graph.program.outputs), strict=True))
    shapes = dict(zip(output_names(graph.program), (graph.shape(output.wire) for output in graph.program.outputs), strict=True))
    tail = [node for name in results for node in _tail(graph, name, series[name], kinds.get(name, "none"), shapes.get(name, ()))]
    used = {name for node in tail for name in node.input}
    body = helper.make_graph(
        [scan, *tail],
        "sequence",
        [input_info(graph, TIME, graph.size()), *past],
        [*_declared(graph, spikes), *present],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used],
        doc_string="whole sequences",
    )
    return finished(graph, body, document(graph, "sequence", spikes=spikes))


CONSTANTS = {name: np.array(value, np.int64) for name, value in {"time_axis": [0], "last": -1, "first": 0, "axis1": [1]}.items()}


def _body(graph: Graph, spikes: bool) -> onnx.GraphProto:
    """The cell as a Scan body: states first, then what is scanned; its values are named apart from the outer graph's."""
    inputs = [*state_infos(graph, "past"), input_info(graph, graph.size())]
    outputs = [*state_infos(graph, "present"), *result_infos(graph, spikes, graph.size())]
    return inner(helper.make_graph(graph.nodes, "cell", inputs, outputs, list(graph.constants.values()), doc_string="one time step"))


def inner(body: onnx.GraphProto) -> onnx.GraphProto:
    """Every value of a body under `step/`: a subgraph may not reuse the names of the graph around it."""
    for info in (*body.input, *body.output, *body.initializer):
        info.name = f"step/{info.name}"
    for node in body.node:
        node.name = f"step/{node.name}"
        for names in (node.input, node.output):
            names[:] = [f"step/{name}" if name else "" for name in names]
    return body


def _declared(graph: Graph, spikes: bool) -> list[onnx.ValueInfoProto]:
    """Outputs and spikes of a whole sequence; a reduced output has no time axis."""
    infos = result_infos(graph, spikes, TIME, graph.size())
    short = result_infos(graph, spikes, graph.size())
    kinds: list[Reduce] = [output.reduce for output in graph.program.outputs]
    kinds += ["none"] * (len(infos) - len(kinds))
    return [long if kind == "none" else flat for long, flat, kind in zip(infos, short, kinds, strict=True)]


def _tail(graph: Graph, name: str, series: str, kind: Reduce, shape: Shape) -> list[onnx.NodeProto]:
    """The nodes that make an output of its series.

    Sums over time run row by row, as a loop adds them; but a series of single numbers is one long vector, which runtimes add in another
    order. So such a series is added twice over, side by side, and one of the two sums is taken.
    """
    if kind not in ("mean", "sum") or prod(shape) > 1:
        return [_reduced(graph, name, series, kind)]
    lone, twin, sums = (f"{name}/{part}" for part in ("lone", "twin", "sums"))
    return [
        helper.make_node("Unsqueeze", [series, "axis1"], [lone], name=lone, doc_string="one number at every step"),
        helper.make_node("Concat", [lone, lone], [twin], name=twin, axis=1, doc_string="twice"),
        _reduced(graph, sums, twin, kind),
        helper.make_node("Gather", [sums, "first"], [name], name=name, axis=0, doc_string="once"),
    ]


def _reduced(graph: Graph, name: str, series: str, kind: Reduce) -> onnx.NodeProto:
    """One node that makes an output of its series: a reduction over time, or a second name."""
    doc = f"{kind} over time"
    if kind == "none":
        return helper.make_node("Identity", [series], [name], name=name, doc_string="every step")
    if kind == "last":
        return helper.make_node("Gather", [series, "last"], [name], name=name, axis=0, doc_string=doc)
    op = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax"}[kind]
    if op == "ReduceSum" or graph.opset >= 18:
        return helper.make_node(op, [series, "time_axis"], [name], name=name, keepdims=0, doc_string=doc)
    return helper.make_node(op, [series], [name], name=name, axes=[0], keepdims=0, doc_string=doc)
