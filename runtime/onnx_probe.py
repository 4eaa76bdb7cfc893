"""A cell made observable: what each spiking layer decides on given inputs, from the file alone.

Consumers of a layer's spikes read a new graph input `forced.{layer}` instead; what the layer itself computes, its membrane and what is
compared with the threshold become outputs. All by the names in the file's metadata, so it works on any cell that spikedeploy wrote, and on
one that somebody has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT
from spikedeploy.readers.onnx_info import CellInfo, SpikeInfo, cell_info
from spikedeploy.runtime.onnx_session import failed, open_session, with_outputs
from spikedeploy.steps import Array


def probe(model: onnx.ModelProto, layers: tuple[str, ...], info: CellInfo | None = None) -> onnx.ModelProto:
    """A copy of a cell with inputs `forced.{layer}` for `layers`, and outputs `wire.{wire}` and `decision.{layer}` for every spiking layer.

    Raises `BadInput` for a layer that the cell does not have.
    """
    info = info or cell_info(model)
    known = {s.layer: s for s in info.spikes}
    for layer in layers:
        if layer not in known:
            raise BadInput(message("ONNX cell", f"no spiking layer '{layer}'", f"one of {', '.join(known) or 'none'} is needed"))
    changed = with_outputs(model, _watched(info))
    for layer in layers:
        _force(changed, known[layer], info.batch)
    return changed


def _watched(info: CellInfo) -> dict[str, str]:
    """Public name -> value: spikes, membranes and outputs by wire, and what decides."""
    wires = dict.fromkeys([*(s.layer for s in info.spikes), *(s.membrane for s in info.spikes), *(o.wire for o in info.outputs)])
    return {f"wire.{wire}": info.wires[wire].value for wire in wires} | {f"decision.{s.layer}": s.decision for s in info.spikes}


def _force(model: onnx.ModelProto, spikes: SpikeInfo, batch: int | None) -> None:
    public = {info.name for info in model.graph.output}
    name = f"forced.{spikes.layer}"
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0] in public:
            continue  # an output shows what was computed
        for index, value in enumerate(node.input):
            if value == spikes.value:
                node.input[index] = name
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch or "batch", *spikes.shape]))


class Probe:
    """A probed cell in a runtime: `session` is anything with ONNX Runtime's `run(names, feeds)`; its own by default."""

    def __init__(self, model: onnx.ModelProto, info: CellInfo, layers: tuple[str, ...] = (), session: Any = None) -> None:
        probed = probe(model, layers, info)
        self.info = info
        self.session = open_session(probed.SerializeToString(deterministic=True)) if session is None else session(probed)
        self.names = [item.name for item in probed.graph.output]
        self._kinds = {item.name: onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type) for item in probed.graph.input}

    def step(self, x: Array, states: Mapping[str, Array], forced: Mapping[str, Array]) -> dict[str, Array]:
        """One step from given states (by the names of their inputs): every output of the probed graph by name."""
        feeds = {INPUT: x, **states, **{f"forced.{layer}": value for layer, value in forced.items()}}
        ready = {name: np.ascontiguousarray(value, self._kinds[name]) for name, value in feeds.items()}
        try:
            return dict(zip(self.names, self.session.run(self.names, ready), strict=True))
        except Exception as error:  # the runtime's errors have no common base but Exception
            raise failed(error) from None

    def zeros(self, batch: int) -> dict[str, Array]:
        """The states before the first step, by the names of their inputs."""
        return {s.past: np.zeros((batch, *s.shape), self._kinds[s.past]) for s in self.info.states}

    def run(self, x: Array, forced: Mapping[str, Array], states: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """A sequence `(T, B, *input_shape)`: per wire, and per `{layer}.decision`, `(T, B, *shape)`."""
        now, series = dict(states or self.zeros(x.shape[1])), []
        for t in range(len(x)):
            series.append(self.step(x[t], now, {layer: value[t] for layer, value in forced.items()}))
            now = {s.past: series[-1][s.present] for s in self.info.states}
        return {_key(name): np.stack([item[name] for item in series]) for name in self.names if name.startswith(("wire.", "decision."))}


def _key(name: str) -> str:
    return name.removeprefix("wire.") if name.startswith("wire.") else f"{name.removeprefix('decision.')}.decision"
