"""A graph under construction: nodes, parameters and states of one ONNX cell, with unique, stable names.

A value is named by the wire that it is, or `{step}/{part}` inside a step; at the end the values that leave the graph get their
public names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import INPUT, Program
from spikedeploy.steps import Array, Shape, Step

IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""Per opset the oldest file version that holds it: older readers stay able to read."""

BATCH, TIME = "batch", "time"
PREFIXES = ("past_state.", "present_state.", "spikes.", "output.", "forced.", "decision.", "wire.", "const.")
"""How public names begin; a wire that is called so gets another name inside the graph."""


class Graph:
    """Nodes in running order. `value[wire]` is the value that holds a wire; `past` and `keep` read and write states of the current step."""

    def __init__(self, program: Program, opset: int, batch: int | None) -> None:
        self.program, self.opset, self.batch = program, opset, batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.value: dict[str, str] = {INPUT: INPUT}
        self.present: dict[tuple[str, str], str] = {}
        self.decision: dict[str, str] = {}
        self._taken, self._public = {INPUT}, {INPUT}
        self._step = program.steps[0]

    def begin(self, step: Step) -> None:
        """What follows belongs to `step`."""
        self._step = step

    def unique(self, name: str) -> str:
        """`name`, or a variation of it that is not taken."""
        if name == "output" or name.startswith(PREFIXES):
            name = f"wire.{name}"
        while name in self._taken:
            name += "'"
        self._taken.add(name)
        return name

    def node(self, op: str, inputs: Sequence[str], part: str = "", doc: str = "", **attributes: Any) -> str:
        """Append one node and return its output: the wire of the current step, or its `part`."""
        step = self._step
        out = self.unique(f"{step.name}/{part}" if part else step.name)
        text = doc or f"{type(step).__name__} {step.name}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, doc_string=text, **attributes))
        return out

    def pair(self, op: str, inputs: Sequence[str], parts: tuple[str, str], **attributes: Any) -> tuple[str, str]:
        """Append one node of two outputs; it has the name of the second."""
        step = self._step
        first, second = (self.unique(f"{step.name}/{part}") for part in parts)
        text = f"{type(step).__name__} {step.name}"
        self.nodes.append(helper.make_node(op, list(inputs), [first, second], name=second, doc_string=text, **attributes))
        return first, second

    def constant(self, part: str, array: Array) -> str:
        """A parameter of the current step as float32, `{step}.{part}`."""
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
        if not np.isfinite(single).all():
            where = self.program.where(self.program.steps.index(self._step))
            raise ModelRefused(message(where, f"{part} holds {np.abs(array).max()}", "an ONNX cell computes in float32"))
        return self._store(self.unique(f"{self._step.name}.{part}"), single)

    def _store(self, name: str, array: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def integers(self, *values: int) -> str:
        """An int64 vector that steps share: axes, bounds, shapes."""
        return self._store(f"const.i64.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def zero_index(self) -> str:
        """The int64 scalar 0."""
        return self._store("const.i64.scalar0", np.array(0, np.int64))

    def real(self, value: float) -> str:
        """A float32 scalar that steps share."""
        return self._store(f"const.f32.{float(np.float32(value))!r}", np.array(value, np.float32))

    def unsqueeze(self, x: str, axis: int, part: str) -> str:
        """One more axis of length 1; the batch axis is 0."""
        return self.node("Unsqueeze", [x, self.integers(axis)], part)

    def reduce(self, op: str, x: str, axis: int, part: str, *, keep: bool) -> str:
        """A reduction over one axis; from opset 18 the axes are an input (ReduceSum: from 13)."""
        if op == "ReduceSum" or self.opset >= 18:
            return self.node(op, [x, self.integers(axis)], part, keepdims=int(keep))
        return self.node(op, [x], part, axes=[axis], keepdims=int(keep))

    def past(self, state: str) -> str:
        """The input that holds a state of the current step before it ran."""
        return f"past_state.{self._step.name}.{state}"

    def keep(self, state: str, value: str) -> None:
        """Say which value a state of the current step has after it ran."""
        self.present[self._step.name, state] = value

    def shape(self, wire: str) -> Shape:
        return self.program.wires[wire]

    def size(self) -> int | str:
        """The batch dimension: a number or a symbol."""
        return BATCH if self.batch is None else self.batch

    def publish(self, value: str, public: str) -> None:
        """Give `value` the name `public`: by renaming it, or by an Identity node where it has a public name already."""
        if value in self._public or value in self.constants or value.startswith("past_state."):
            self.nodes.append(helper.make_node("Identity", [value], [public], name=public, doc_string="a second name"))
            return
        self._public.add(public)
        for node in self.nodes:
            _rename(node, value, public)
        self.value = {wire: public if name == value else name for wire, name in self.value.items()}
        self.present = {state: public if name == value else name for state, name in self.present.items()}
        self.decision = {layer: public if name == value else name for layer, name in self.decision.items()}


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name == old:
                names[index] = new
    if node.name == old:
        node.name = new


def tensor(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """The declaration of a graph input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))
