"""An ONNX step cell as a party: the file alone, in ONNX Runtime, its spikes replaced and its membranes shown by surgery on a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime.reference import REDUCE
from spikedeploy.verify.bounds import membrane_wire
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import Observation, Real
from spikedeploy.verify.probes import fires_near, near
from spikedeploy.verify.rules import Doubt

FLOOR = 2.0**-103
"""States below this may settle at zero: cells keep their states off the denormals."""
LIBRARY = 8.0
"""ONNX Runtime's own exp, sigmoid and erf, in units of 2^-24 of absolute error."""


class OnnxParty:
    """A cell in the runner, judged as `source`."""

    def __init__(self, runner: Any, source: Program, name: str = "artifact") -> None:
        self.runner, self.source, self.name = runner, source, f"{name} (ONNX Runtime)"
        same = runner.info.digest == source.digest
        self.doubt = Doubt(functions=LIBRARY, floor=FLOOR) if same else Doubt(parameters=16, decay=8, functions=LIBRARY, floor=FLOOR)
        self.batch: int | None = runner.info.batch

    def _shown(self) -> Mapping[str, Any]:
        return {info.layer: info for info in self.runner.info.spikes}

    def missing(self) -> Mapping[str, str]:
        shown = self._shown()
        found = {step.name: self.source.wires[step.name] for step in self.source.spiking}
        return {
            name: "it has no such layer" if name not in shown else f"shape {shown[name].shape} in place of {shape}"
            for name, shape in found.items()
            if name not in shown or tuple(shown[name].shape) != shape
        }

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        absent = self.missing()
        wires = self.runner.run_forced(x, {name: values for name, values in (forced or {}).items() if name not in absent})
        layers = [step for step in self.source.spiking if step.name not in absent]
        membranes = {step.name: membrane_wire(step) for step in layers}
        outputs = {output.name: output for output in self.runner.info.outputs}
        return Observation(
            fired={step.name: wires[step.name] != 0 for step in layers},
            membranes={name: wires[wire] for name, wire in membranes.items() if wire in wires},
            outputs={o.name: REDUCE[o.reduce](wires[outputs[o.name].wire]) for o in self.source.outputs if o.name in outputs},
        )


def onnx_findings(runner: Any, source: Program) -> Iterator[Finding]:
    """What the file says and does apart from the runs: another program's digest, an exact tie decided otherwise."""
    if runner.info.digest != source.digest:
        text = f"the artifact says it was made from program {runner.info.digest[:16]}, this model converts to {source.digest[:16]}"
        yield Finding(
            "warn", f"{text}: other weights, or other conversion options", {"artifact": runner.info.digest, "model": source.digest}
        )
    for step in source.spiking:
        yield from _tie(runner, source, step)


def _tie(runner: Any, source: Program, step: S.Step) -> Iterator[Finding]:
    info = next((s for s in runner.info.spikes if s.layer == step.name), None)
    if info is None or not isinstance(step, S.Firing):
        return
    for side, name in SIDES.items():
        there = fires_near(source, step, side)
        here = _fires_on(runner, info, near(step.threshold, info.shape, side))
        if here is not None and here.shape == there.shape and (here != there).any():
            count = int((here != there).sum())
            yield Finding(
                "fail",
                f"layer '{step.name}' of the artifact: {count} of {here.size} neurons decide {name} otherwise "
                f"(the model fires on {'>' if step.strict else '>='} {_thresholds(step)})",
                {"layer": step.name, "neurons": count, "side": side},
            )


SIDES: Mapping[int, str] = {
    -1: "on the number next below their threshold",
    0: "an exact tie",
    1: "on the number next above their threshold",
}
"""Where a neuron is tried, and how that is called."""


def _thresholds(step: S.Firing) -> str:
    low, high = float(step.threshold.min()), float(step.threshold.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _fires_on(runner: Any, info: Any, decided: Real) -> Real | None:
    """Which neurons fire when the graph compares `decided (*shape)` with its threshold."""
    import onnx

    from spikedeploy.runtime.onnx_probe import Probe

    changed = onnx.ModelProto()
    changed.CopyFrom(runner.model)
    batch = runner.info.batch or 1
    value = np.broadcast_to(decided, (batch, *info.shape))
    name = f"tie.{info.layer}"
    changed.graph.node.insert(0, onnx.helper.make_node("Identity", [f"{name}.value"], [name], name=name))
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), f"{name}.value"))
    for node in changed.graph.node:
        for index, read in enumerate(node.input):
            if read == info.decision and node.op_type in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
                node.input[index] = name
    probe = Probe(changed, runner.info)
    kind = np.int64 if runner.info.input_kind == "index" else np.float32
    result = probe.step(np.zeros((batch, *runner.info.input_shape), kind), probe.zeros(batch), {})
    return np.asarray(result[f"wire.{info.layer}"][0] != 0)


__all__ = ["LIBRARY", "OnnxParty", "onnx_findings"]
