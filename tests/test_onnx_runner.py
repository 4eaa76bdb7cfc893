"""The runner: streaming against whole sequences, states in and out, batches, errors."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_zoo import ZOO, Builder, samples

from spikedeploy.errors import BadInput
from spikedeploy.exporters.onnx_cell import export
from spikedeploy.readers.onnx_info import describe
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.onnx_sequence import SequenceRunner
from spikedeploy.runtime.reference import run


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("batch", [1, 7])
def test_stepping_equals_running(name: str, batch: int) -> None:
    model = ZOO[name](Builder(6))
    x = samples(model, 8, batch)
    layers = [s.name for s in model.spiking]
    runner = OnnxRunner(export(model), batch=batch, record=layers)
    whole = runner.run(x)
    runner.reset()
    first = model.outputs[0].wire
    alone = OnnxRunner(export(model), batch=batch, record=[first]).run(x).wires[first]
    for t in range(8):
        y = runner.step(x[t])
        np.testing.assert_array_equal(y, alone[t])
        for layer in layers:
            np.testing.assert_array_equal(runner.spikes[layer], whole.wires[layer][t])
    for layer, held in whole.states.items():
        for key, value in held.items():
            np.testing.assert_array_equal(runner.states[layer][key], value)


@pytest.mark.parametrize("name", ZOO)
def test_a_run_has_the_shapes_and_counts_of_the_reference(name: str) -> None:
    model = ZOO[name](Builder(6))
    x = samples(model, 1, 3)
    layers = [s.name for s in model.spiking]
    found, wanted = OnnxRunner(export(model), record=layers).run(x), run(model, x, dtype=np.float32)
    assert {k: v.shape for k, v in found.outputs.items()} == {k: v.shape for k, v in wanted.outputs.items()}
    assert found.decisions == wanted.decisions
    assert {layer: {k: v.shape for k, v in held.items()} for layer, held in found.states.items()} == {
        layer: {k: v.shape for k, v in held.items()} for layer, held in wanted.states.items()
    }


def test_a_step_gives_an_array_of_its_own() -> None:
    model = ZOO["gen1"](Builder(6))
    x = samples(model, 5, 1)
    runner = OnnxRunner(export(model))
    kept = [runner.step(x[t]) for t in range(5)]
    runner.reset()
    for t in range(5):
        np.testing.assert_array_equal(kept[t], runner.step(x[t]))


def test_a_state_moves_from_one_runner_to_another() -> None:
    model = ZOO["gen2-library"](Builder(6))
    x = samples(model, 10, 2)
    whole = OnnxRunner(export(model), batch=2).run(x).outputs["out"]
    first, second = OnnxRunner(export(model), batch=2), OnnxRunner(export(model), batch=2)
    head = first.run(x[:5]).outputs["out"]
    second.states = first.states
    np.testing.assert_array_equal(np.concatenate([head, second.run(x[5:], reset=False).outputs["out"]]), whole)
    sequence = SequenceRunner(export(model, sequence=True))
    parts = sequence.run(x[:3])
    rest = sequence.run(x[3:], parts.states)
    np.testing.assert_array_equal(np.concatenate([parts.outputs["out"], rest.outputs["out"]]), whole)


def test_reset_forgets() -> None:
    model = ZOO["gen3"](Builder(6))
    x = samples(model, 6, 1)
    runner = OnnxRunner(export(model))
    before = runner.run(x).outputs["out"]
    assert any(np.any(v) for held in runner.states.values() for v in held.values())
    runner.reset()
    assert not any(np.any(v) for held in runner.states.values() for v in held.values())
    np.testing.assert_array_equal(runner.run(x).outputs["out"], before)


def test_forcing_a_layer_changes_what_its_readers_see_and_nothing_else() -> None:
    model = ZOO["gen2-three"](Builder(6))
    x = samples(model, 6, 2)
    layers = [s.name for s in model.spiking]
    rng = np.random.default_rng(1)
    forced = {layer: rng.integers(0, 2, (6, 2, *model.wires[layer])).astype(np.float32) for layer in layers[:2]}
    wanted = run(model, x, dtype=np.float32, record=[*layers, "mem1.S", "mem2.S", "mem3.S"], forced=forced)
    found = OnnxRunner(export(model, spikes=True)).run_forced(x, forced)
    for layer in layers:
        np.testing.assert_array_equal(found[layer], wanted.wires[layer])
    for wire in ("mem1.S", "mem2.S", "mem3.S", "head"):
        np.testing.assert_allclose(found[wire], wanted.wires[wire], atol=2e-4 * np.abs(wanted.wires[wire]).max())
    with pytest.raises(BadInput, match="no spiking layer 'nobody'"):
        OnnxRunner(export(model)).run_forced(x, {"nobody": x})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.zeros((0, 1, 5)), r"an array of shape \(0, 1, 5\); \(T, B, 5\) is needed, T and B at least 1"),
        (np.zeros((3, 1, 6)), r"an array of shape \(3, 1, 6\)"),
        (np.zeros((3, 5)), r"an array of shape \(3, 5\)"),
        (np.full((1, 1, 5), np.nan), "NaN or infinity; finite numbers are needed"),
        (np.array([[["a"] * 5]]), "real numbers are needed"),
    ],
)
def test_bad_sequences(given: np.ndarray, text: str) -> None:
    runner = OnnxRunner(export(ZOO["gen1"](Builder(0))))
    with pytest.raises(BadInput, match=text):
        runner.run(given)


def test_bad_steps_tokens_batches_and_wires() -> None:
    data = export(ZOO["mixture"](Builder(0)))
    runner = OnnxRunner(data)
    for token in (-1, 11, 0.5):
        with pytest.raises(BadInput, match="whole numbers from 0 to 10 are needed"):
            runner.step(np.array([token]))
        with pytest.raises(BadInput, match="whole numbers from 0 to 10 are needed"):
            runner.run(np.array([[token]]))
    with pytest.raises(BadInput, match=r"an array of shape \(2,\); \(1,\) is needed"):
        runner.step(np.array([1, 2]))
    with pytest.raises(BadInput, match="batch: 0"):
        OnnxRunner(data, batch=0)
    with pytest.raises(BadInput, match="no wire 'nobody'"):
        OnnxRunner(data, record=["nobody"])
    with pytest.raises(BadInput, match="a step cell is needed"):
        OnnxRunner(export(ZOO["gen1"](Builder(0)), sequence=True))
    with pytest.raises(BadInput, match="a sequence model is needed"):
        SequenceRunner(data)
    with pytest.raises(BadInput, match=r"state 'mem\.S\.S'"):
        runner.states = {"mem.S": {"S": np.zeros((1, 9, 9))}}


def test_describe_says_what_is_in_the_file() -> None:
    model = ZOO["gen2-library"](Builder(0))
    found = describe(export(model))
    assert found["digest"] == model.digest
    assert found["semantics"] == {"mem1.S": "snntorch-1.0.0"}
    assert [s["name"] for s in found["states"]] == ["S", "log_p"]
    assert found["spikes"][0] == {"layer": "mem1.spk", "shape": [4, 3], "threshold": [1.0, 1.0], "strict": True}
    assert describe(export(model, sequence=True))["format"] == "ONNX sequence (Scan)"
