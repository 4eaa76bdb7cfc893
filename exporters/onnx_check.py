"""What an ONNX file must pass before it is written: the checker, two runtimes, and the reference runtime beside them.

Every step starts from the reference's states, and every layer reads the reference's spikes; so rounding stays one step's rounding, a spike
that flips disturbs nobody else, and what differs by more than that is an error of the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from spikedeploy.errors import NotEquivalent, message
from spikedeploy.program import Program
from spikedeploy.readers.onnx_info import CellInfo, read_cell
from spikedeploy.runtime import reference
from spikedeploy.runtime.onnx_probe import Probe
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.onnx_sequence import SequenceRunner
from spikedeploy.steps import Array

STEPS, BATCH = 6, 2
TOLERANCE = 2.0**-13
"""Of a value, relative to the largest of its wire: a thousand roundings; a wrong equation is off by far more."""
STRAYS = 1e-4
"""The share of a wire that may be off by more: where rounding decides (the nearest level, the k-th largest), one value may jump."""

Now = dict[str, Array]


def check_cell(data: bytes, program: Program) -> None:
    """Raises `NotEquivalent` when ONNX Runtime or onnx.reference disagree with the reference runtime, `BadInput` when they refuse it."""
    _, model, info = read_cell(data)
    xs = samples(program, info.batch or BATCH)
    expected = list(_expected(program, info, xs))
    layers = tuple(s.layer for s in info.spikes)
    for name, session in SESSIONS.items():
        party = Probe(model, info, layers, session)
        for t, (x, (past, wanted)) in enumerate(zip(xs, expected, strict=True)):
            forced = {layer: wanted[f"wire.{layer}"] for layer in layers}
            with np.errstate(all="ignore"):  # onnx.reference computes softplus as log(exp(x) + 1)
                found = party.step(x, past, forced)
            _compare(f"{name}, step {t}", info, wanted, found)


def check_sequence_model(cell: bytes, sequence: bytes, program: Program) -> None:
    """Raises `NotEquivalent` when the sequence model does not give what the loop over the cell gives.

    ONNX Runtime gave equal bits wherever this was tried; only a difference beyond rounding is a fault of ours.
    """
    runner = OnnxRunner(cell)
    xs = samples(program, runner.info.batch or BATCH)
    loop, whole = runner.run(xs), SequenceRunner(sequence).run(xs)
    for name, value in loop.outputs.items():
        if not np.allclose(whole.outputs[name], value, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(value).max())), equal_nan=True):
            raise NotEquivalent(message(f"output '{name}'", "the sequence model differs from the loop over the cell", "they must be equal"))


def samples(program: Program, batch: int) -> Array:
    """A fixed random input `(T, B, *input_shape)`: tokens, or numbers around zero."""
    rng, shape = np.random.default_rng(20), (STEPS, batch, *program.input_shape)
    if program.input_kind == "index":
        return rng.integers(0, _rows(program), shape)
    return rng.normal(size=shape).astype(np.float32)


def _rows(program: Program) -> int:
    from spikedeploy import steps as S

    return min((step.table.shape[0] for step in program.steps if isinstance(step, S.Embedding)), default=1)


def _expected(program: Program, info: CellInfo, xs: Array) -> Any:
    """Per step: the states before it, and what the reference's float32 loop makes of them."""
    wires = [*(s.layer for s in info.spikes), *(s.membrane for s in info.spikes), *(o.wire for o in info.outputs)]
    states: Mapping[str, Mapping[str, Array]] = reference.zeros(program, xs.shape[1], np.float32)
    for x in xs:
        past = {s.past: states[s.layer][s.name] for s in info.states}
        with np.errstate(all="ignore"):  # what overflows here must overflow there too
            run = reference.run(program, x[None], dtype=np.float32, record=wires, states=states)
        states = run.states
        yield past, {f"wire.{wire}": run.wires[wire][0] for wire in wires} | {s.present: states[s.layer][s.name] for s in info.states}


def _compare(where: str, info: CellInfo, wanted: Now, found: Now) -> None:
    """Values to rounding; spikes, and what a spike resets, where the membrane is not within rounding of the threshold."""
    doubts = _doubts(info, found)
    for name, value in wanted.items():
        near = (
            (found[name] == value)
            | (np.isnan(found[name]) & np.isnan(value))
            | (np.abs(found[name] - value) <= TOLERANCE * max(1.0, float(np.abs(value).max())))
        )
        wrong = ~near & ~doubts.get(name, np.False_)
        if np.count_nonzero(wrong) > STRAYS * wrong.size:
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            text = f"{where}: {found[name][index]} in place of {value[index]} at {list(index)}"
            do = "This is a bug of the exporter."
            raise NotEquivalent(message(f"'{name}' of the ONNX cell", text, "it must equal the reference runtime", do))


def _doubts(info: CellInfo, found: Now) -> Mapping[str, Array]:
    """Per output of the cell that a threshold decides: where the membrane is too close to it to tell."""
    masks: dict[str, Array] = {}
    resetting = {state.layer for state in info.states}
    for s in info.spikes:
        u, (low, high) = found[f"decision.{s.layer}"], s.threshold
        margin = TOLERANCE * (np.abs(u).max() + max(abs(low), abs(high)))
        close = (u > low - margin) & (u < high + margin)
        names = {f"wire.{s.layer}"} | {o.value for o in info.outputs if o.wire == s.layer}
        resets = {f"wire.{s.membrane}", f"present_state.{s.layer}.u"} if s.layer in resetting else set()
        masks |= dict.fromkeys(names | resets, close)
    return masks


def _reference_session(model: onnx.ModelProto) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model)


def _ort_session(model: onnx.ModelProto) -> Any:
    from spikedeploy.runtime.onnx_session import open_session

    return open_session(model.SerializeToString())


SESSIONS: Mapping[str, Callable[[onnx.ModelProto], Any]] = {"ONNX Runtime": _ort_session, "onnx.reference": _reference_session}
"""The runtimes that a cell must agree in before it is written."""
