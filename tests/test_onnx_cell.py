"""ONNX cells against the reference runtime: every step kind, every opset, two runtimes, odd shapes, extreme decays, silence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from events_programs import random_input, random_program
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx_zoo import DYADIC, ZOO, Builder, gen2, program, samples

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.exporters.onnx_cell import export, write
from spikedeploy.exporters.onnx_check import check_cell
from spikedeploy.program import Output, Program
from spikedeploy.runtime.onnx_probe import Probe
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.onnx_sequence import SequenceRunner
from spikedeploy.runtime.reference import run

MARGIN = 1e-4
"""Of a membrane, relative to the largest: closer than that to the threshold, float32 may decide either way."""


def spikes_outside_the_margin(model: Program, data: bytes, x: np.ndarray) -> tuple[int, int]:
    """Layer by layer on the float64 reference's spikes: how many differ outside the margin, and how many decisions there are."""
    runner = OnnxRunner(data)
    layers = [s.layer for s in runner.info.spikes]
    reference = run(model, x, record=[*layers, *(s.membrane for s in runner.info.spikes)])
    found = runner.run_forced(x, {layer: reference.wires[layer] for layer in layers})
    wrong = total = 0
    for s in runner.info.spikes:
        u = found[f"{s.layer}.decision"].astype(np.float64)
        margin = MARGIN * max(1.0, np.abs(u).max())
        clear = (u < s.threshold[0] - margin) | (u > s.threshold[1] + margin)
        wrong += int(np.count_nonzero((found[s.layer] != reference.wires[s.layer]) & clear))
        total += clear.size
        assert clear.mean() > 0.98, "the test says nothing: nearly all decisions are undecided"
    return wrong, total


@pytest.mark.parametrize("name", ZOO)
def test_no_spike_differs_outside_the_margin(name: str) -> None:
    model = ZOO[name](Builder(3))
    wrong, total = spikes_outside_the_margin(model, export(model), samples(model, 40, 2))
    assert wrong == 0
    assert total > 200


@pytest.mark.parametrize("name", DYADIC)
def test_dyadic_models_are_bit_equal_on_every_wire(name: str) -> None:
    model = ZOO[name](Builder(5, dyadic=True))
    x = samples(model, 30, 3, dyadic=True)
    wires = list(model.wires)[1:]
    reference = run(model, x, dtype=np.float32, record=wires)
    found = OnnxRunner(export(model), record=wires).run(x)
    for wire in wires:
        assert found.wires[wire].tobytes() == reference.wires[wire].astype(np.float32).tobytes(), wire
    for output in model.outputs:
        np.testing.assert_array_equal(found.outputs[output.name], reference.outputs[output.name])
    assert any(np.count_nonzero(found.wires[s.name]) for s in model.spiking)


@pytest.mark.parametrize("opset", range(13, 22))
@pytest.mark.parametrize("name", ["mixture", "gen2-three", "resets", "ssm"])
def test_every_opset_gives_the_same_numbers(name: str, opset: int) -> None:
    model = ZOO[name](Builder(1))
    data = export(model, opset=opset)
    parsed = onnx.load_from_string(data)
    assert parsed.opset_import[0].version == opset
    assert onnx.helper.find_min_ir_version_for(parsed.opset_import) == parsed.ir_version
    x = samples(model, 5, 2)
    default, here = OnnxRunner(export(model)).run(x), OnnxRunner(data).run(x)
    for output in model.outputs:
        np.testing.assert_array_equal(here.outputs[output.name], default.outputs[output.name])


@pytest.mark.parametrize("name", ZOO)
def test_onnx_reference_agrees(name: str) -> None:
    model = ZOO[name](Builder(7))
    for opset in (13, 17, 21):
        check_cell(export(model, opset=opset, spikes=True), model)  # both runtimes against the reference loop, step by step


def test_a_wrong_cell_does_not_pass_the_check() -> None:
    from spikedeploy.errors import NotEquivalent

    right, other = gen2(Builder(1)), gen2(Builder(2))
    with pytest.raises(NotEquivalent, match="must equal the reference runtime"):
        check_cell(export(other), right)


@pytest.mark.parametrize("name", ZOO)
def test_the_sequence_model_equals_the_loop_exactly(name: str) -> None:
    model = ZOO[name](Builder(11))
    x = samples(model, 13, 2)
    loop = OnnxRunner(export(model), record=[s.name for s in model.spiking]).run(x)
    whole = SequenceRunner(export(model, sequence=True, spikes=True)).run(x)
    for output in model.outputs:
        assert loop.outputs[output.name].tobytes() == whole.outputs[output.name].tobytes()
    for layer, states in loop.states.items():
        for key, value in states.items():
            np.testing.assert_array_equal(value, whole.states[layer][key])
    assert loop.spikes == whole.spikes


@pytest.mark.parametrize("reduce", ["none", "mean", "sum", "last", "max"])
@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_time_is_reduced_after_the_scan(reduce: str, opset: int) -> None:
    base = ZOO["gen1"](Builder(2))
    model = Program(base.input_shape, base.steps, (Output("out", "lif2.mem", reduce),))  # type: ignore[arg-type]
    x = samples(model, 9, 4)
    loop = OnnxRunner(export(model, opset=opset)).run(x).outputs["out"]
    whole = SequenceRunner(export(model, opset=opset, sequence=True)).run(x).outputs["out"]
    assert loop.tobytes() == whole.tobytes()
    np.testing.assert_allclose(whole, run(model, x).outputs["out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("shape", "batch"), [((), 1), ((1,), 1), ((1, 1), 1), ((1,), 2), ((3,), 1), ((), 3)])
def test_sums_over_time_are_the_loops_to_the_bit(shape: tuple[int, ...], batch: int, opset: int, reduce: str) -> None:
    model = program(shape, [S.Scale("half", ("input",), np.array(0.3, np.float32))], Output("out", "half", reduce))  # type: ignore[arg-type]
    x = samples(model, 777, batch)
    loop = OnnxRunner(export(model, opset=opset)).run(x).outputs["out"]
    whole = SequenceRunner(export(model, opset=opset, sequence=True)).run(x).outputs["out"]
    assert loop.shape == (batch, *shape)
    assert loop.tobytes() == whole.tobytes()
    np.testing.assert_allclose(loop, run(model, x).outputs["out"], rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    m=st.integers(1, 9),
    d=st.integers(1, 7),
    n=st.integers(1, 7),
    t=st.sampled_from([1, 2, 17]),
    batch=st.sampled_from([1, 2, 7]),
    seed=st.integers(0, 99),
    semantics=st.sampled_from(["recurrence", "snntorch-1.0.0"]),
    query=st.booleans(),
)
def test_memories_of_any_shape(m: int, d: int, n: int, t: int, batch: int, seed: int, semantics: str, query: bool) -> None:
    model = program((m,), Builder(seed).memory("mem1", "input", m, d, n, semantics=semantics, query=query))
    x = samples(model, t, batch, seed)
    data = export(model)
    reference = run(model, x, dtype=np.float32, record=["mem1.S", "mem1.spk"])
    found = OnnxRunner(data, record=["mem1.S", "mem1.spk"]).run(x)
    scale = max(1.0, np.abs(reference.wires["mem1.S"]).max())
    np.testing.assert_allclose(found.wires["mem1.S"], reference.wires["mem1.S"], atol=1e-5 * scale)
    clear = np.abs(reference.wires["mem1.S"] - 1) > 1e-4 * scale
    assert not ((found.wires["mem1.spk"] != reference.wires["mem1.spk"]) & clear).any()


@pytest.mark.parametrize("semantics", ["recurrence", "snntorch-1.0.0"])
@pytest.mark.parametrize("alpha", [1e-6, 1 - 1e-6])
def test_extreme_decays(semantics: str, alpha: float) -> None:
    logit = np.log(alpha) - np.log1p(-alpha)
    steps = [
        replaced if (replaced := _constant_alpha(step, logit)) is not None else step
        for step in Builder(4).memory("mem1", "input", 5, 4, 3, semantics=semantics)
    ]
    model = program((5,), steps)
    x = samples(model, 60, 2) * 0.1
    reference = run(model, x, record=["mem1.S"]).wires["mem1.S"]
    found = OnnxRunner(export(model), record=["mem1.S"]).run(x).wires["mem1.S"]
    np.testing.assert_allclose(found, reference, atol=2e-5 * np.abs(reference).max())
    wrong, _ = spikes_outside_the_margin(model, export(model), x)
    assert wrong == 0


def _constant_alpha(step: S.Step, logit: float) -> S.Step | None:
    if not (isinstance(step, S.Affine) and step.name.endswith(".a")):
        return None
    return S.Affine(step.name, step.inputs, np.zeros_like(step.weight), np.full(len(step.weight), logit, np.float32))


@pytest.mark.parametrize("name", ["gen1", "gen2", "gen2-library", "gen3", "ssm"])
def test_five_thousand_silent_steps_stay_fast_and_finite(name: str) -> None:
    model = _without_biases(ZOO[name](Builder(2)))
    runner = OnnxRunner(export(model))
    loud, silent = samples(model, 50, 1), np.zeros((5000, 1, *model.input_shape), np.float32)
    runner.run(loud)
    result = runner.run(silent, reset=False)
    for states in result.states.values():
        for key, value in states.items():
            assert np.isfinite(value).all()
            if key != "log_p":
                assert not ((value != 0) & (np.abs(value) < np.finfo(np.float32).tiny)).any(), "a denormal is left in a state"


def test_silence_costs_no_more_than_noise() -> None:
    model = _without_biases(program((4,), Builder(2).memory("mem1", "input", 4, 96, 96, query=False)))
    rng = np.random.default_rng(0)
    inputs = {"loud": rng.normal(size=(200, 1, 4)).astype(np.float32), "silent": np.zeros((200, 1, 4), np.float32)}
    runners = {name: OnnxRunner(export(model)) for name in inputs}
    for runner in runners.values():
        runner.run(inputs["loud"])
    for _ in range(10):
        runners["silent"].run(inputs["silent"], reset=False)  # long enough for what is left to decay below every normal number
    times: dict[str, list[float]] = {name: [] for name in inputs}
    for _ in range(15):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(inputs[name], reset=False)
            times[name].append(time.perf_counter() - start)
    assert min(times["silent"]) < 2 * min(times["loud"])


def _without_biases(model: Program) -> Program:
    """So that silence in means silence inside; and memories that forget by 0.9 a step."""
    steps = []
    for step in model.steps:
        if isinstance(step, S.Affine) and step.bias is not None:
            bias = np.full(step.bias.shape, np.log(9.0) if step.name.endswith(".a") else 0.0, np.float32)
            step = S.Affine(step.name, step.inputs, step.weight, bias)
        steps.append(step)
    return Program(model.input_shape, tuple(steps), model.outputs, model.input_kind)


def test_one_associative_layer_is_sixteen_nodes_and_two_against_denormals() -> None:
    graph = onnx.load_from_string(export(gen2(Builder(0)))).graph
    assert len(graph.node) == 18
    assert sum("denormals" in node.doc_string or node.name.endswith("/lifted") for node in graph.node) == 2


def test_names_are_the_contract() -> None:
    model = ZOO["gen2-library"](Builder(0))
    parsed = onnx.load_from_string(export(model, spikes=True))
    assert [i.name for i in parsed.graph.input] == ["input", "past_state.mem1.S.S", "past_state.mem1.S.log_p"]
    assert [o.name for o in parsed.graph.output] == ["output", "present_state.mem1.S.S", "present_state.mem1.S.log_p", "spikes.mem1.spk"]
    for node in parsed.graph.node:
        assert node.name in node.output
        assert node.doc_string
        assert node.domain == ""
    assert not parsed.functions
    symbols = {d.dim_param for v in (*parsed.graph.input, *parsed.graph.output) for d in v.type.tensor_type.shape.dim if d.dim_param}
    assert symbols == {"batch"}


def test_wires_may_have_the_names_of_the_border() -> None:
    steps: list[S.Step] = [
        S.Affine("output", ("input",), np.eye(3, dtype=np.float32)),
        S.Integrator("past_state.x.u", ("output",), np.array(0.5, np.float32)),
        S.Threshold("spikes.a", ("past_state.x.u",), np.array(1, np.float32)),
        S.Affine("output.b", ("spikes.a",), np.eye(3, dtype=np.float32)),
    ]
    wires = ("output", "past_state.x.u", "spikes.a", "input", "output.b", "spikes.a")
    outputs = [Output(name, wire) for name, wire in zip("abcdef", wires, strict=True)]
    model = program((3,), steps, *outputs)
    x = samples(model, 6, 2)
    reference = run(model, x, dtype=np.float32)
    for data in (export(model, spikes=True), export(model)):
        found = OnnxRunner(data).run(x)
        for output in outputs:
            np.testing.assert_array_equal(found.outputs[output.name], reference.outputs[output.name])
    forced = {"spikes.a": np.ones((6, 2, 3), np.float32)}
    probed = OnnxRunner(export(model, spikes=True)).run_forced(x, forced)
    np.testing.assert_array_equal(probed["spikes.a"], reference.wires["spikes.a"])
    np.testing.assert_array_equal(probed["output.b"], forced["spikes.a"])


@pytest.mark.parametrize("shape", [(2,), (5,), (4, 9), (2, 3, 4)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_top_k_of_any_shape_in_both_runtimes(shape: tuple[int, ...], batch: int) -> None:
    model = program(shape, [S.TopK("top", ("input",), max(1, shape[-1] // 2))])
    x = samples(model, 2, batch, dyadic=True)
    data = export(model)
    expected = run(model, x).outputs["out"]
    np.testing.assert_array_equal(OnnxRunner(data).run(x).outputs["out"], expected)
    evaluator = ReferenceEvaluator(onnx.load_from_string(data))
    np.testing.assert_array_equal(evaluator.run(None, {"input": x[1]})[0], expected[1])


def test_equal_magnitudes_keep_the_lowest_index_in_both_runtimes() -> None:
    model = program((6,), [S.TopK("top", ("input",), 3)])
    x = np.array([[[1, -1, 1, 1, -1, 0.5]], [[0, 0, 0, 0, 0, 0]], [[0.5, 2, -2, 0.5, 0.5, 0.5]]], np.float32)
    data = export(model)
    np.testing.assert_array_equal(OnnxRunner(data).run(x).outputs["out"], run(model, x).outputs["out"])
    evaluator = ReferenceEvaluator(onnx.load_from_string(data))
    for t in range(3):
        np.testing.assert_array_equal(evaluator.run(None, {"input": x[t]})[0], run(model, x).outputs["out"][t])


@pytest.mark.parametrize("strict", [True, False])
def test_an_exact_tie(strict: bool) -> None:
    """The state is an input, so the membrane can be put on the threshold to the bit."""
    steps: list[S.Step] = [
        S.Integrator("lif.mem", ("input",), np.array(0.5, np.float32)),
        S.Threshold("lif", ("lif.mem",), np.array(0.7, np.float32), strict=strict),
        S.LIF("hard", ("input",), np.array(0.5, np.float32), np.array(0.7, np.float32), "zero", strict=strict),
    ]
    model = program((2,), steps, Output("a", "lif"), Output("b", "hard"))
    runner = OnnxRunner(export(model))
    theta = np.float32(0.7)
    states = {"past_state.lif.mem.u": np.full((1, 2), 2 * theta, np.float32), "past_state.hard.u": np.zeros((1, 2), np.float32)}
    x = np.zeros((1, 2), np.float32)
    found = Probe(runner.model, runner.info).step(x, states, {})
    assert (found["wire.lif"] == (0 if strict else 1)).all()
    found = Probe(runner.model, runner.info).step(x + theta, states | {"past_state.lif.mem.u": x}, {})
    assert (found["wire.hard"] == (0 if strict else 1)).all()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from hashlib import sha256
from onnx_zoo import ZOO, Builder
from spikedeploy.exporters.onnx_cell import export
for name in ("mixture", "gen2-three"):
    for sequence in (False, True):
        print(sha256(export(ZOO[name](Builder(0)), sequence=sequence, spikes=True)).hexdigest())
"""


def test_the_same_bytes_under_every_hash_seed() -> None:
    folder = str(Path(__file__).parent)
    found = set()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, folder]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    assert len(found.pop().split()) == 4


def test_a_static_batch() -> None:
    model = ZOO["mixture"](Builder(0))
    data = export(model, static_batch=3)
    graph = onnx.load_from_string(data).graph
    assert all(d.HasField("dim_value") for v in (*graph.input, *graph.output) for d in v.type.tensor_type.shape.dim)
    x = samples(model, 4, 3)
    np.testing.assert_array_equal(OnnxRunner(data).run(x).outputs["out"], OnnxRunner(export(model)).run(x).outputs["out"])
    check_cell(data, model)
    with pytest.raises(BadInput, match="built for a batch of 3"):
        OnnxRunner(data, batch=2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_random_programs(seed: int) -> None:
    """Both runtimes against the reference loop step by step, and the Scan model against the loop over the cell."""
    model = random_program(seed)
    x = random_input(model, seed, 5, 2)
    data = export(model)
    check_cell(data, model)
    loop, whole = OnnxRunner(data).run(x), SequenceRunner(export(model, sequence=True)).run(x)
    for name, value in loop.outputs.items():
        np.testing.assert_array_equal(value, whole.outputs[name])


@dataclass(frozen=True, slots=True, eq=False)
class Strange(S.Step):
    """A kind that no table knows."""


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ZOO["gen1"](Builder(0))
    for opset in (12, 22):
        with pytest.raises(BadInput, match="13 to 21 are supported"):
            export(model, opset=opset)
    with pytest.raises(BadInput, match="static batch: 0"):
        export(model, static_batch=0)
    huge = program((1,), [S.Scale("s", ("input",), np.array(1e300))])
    with pytest.raises(ModelRefused, match=r"layer 0 's' \(Scale\): scale holds 1e\+300; an ONNX cell computes in float32"):
        export(huge)
    from spikedeploy.exporters import onnx_cell

    monkeypatch.setattr(onnx_cell, "MAX_PARAMETERS", 100)
    with pytest.raises(ModelRefused, match="bytes; one ONNX file holds at most 100"):
        export(model)
    monkeypatch.setattr(onnx_cell, "NODES", {})
    with pytest.raises(ModelRefused, match=r"layer 0 'fc1' \(Affine\): Affine has no ONNX form"):
        export(model)


def test_write_gives_whole_files_or_none(tmp_path: Path) -> None:
    model = ZOO["gen2"](Builder(0))
    written = write(model, tmp_path / "net.onnx", sequence=True)
    assert [p.name for p in written] == ["net.onnx", "net.sequence.onnx"]
    assert written[0].read_bytes() == export(model)
    with pytest.raises(BadInput, match="does not exist"):
        write(model, tmp_path / "nowhere" / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.sequence.onnx"]
