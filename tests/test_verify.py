"""Verification: every model of the zoo, what inputs do, what comes out."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import zoo
from verify_programs import changed, leaky, normal
from verify_programs import same_numbers as same_numbers

from spikedeploy.conversion import convert
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.exporters import nir, onnx_cell
from spikedeploy.inputs import fitted, load
from spikedeploy.nn import StateLeaky
from spikedeploy.readers.nir import from_bytes
from spikedeploy.runtime import OnnxRunner, reference
from spikedeploy.verify import ProgramParty, verify
from spikedeploy.verify.bounds import bound
from spikedeploy.verify.inputs import lively_input, random_input

torch.set_num_threads(1)


# --- the zoo ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_of_the_zoo_is_equivalent_to_its_program(name: str) -> None:
    model, x = zoo.MODELS[name]()
    certificate = verify(model, None, x.numpy())
    assert certificate.verdict == "equivalent", str(certificate)
    parties = {check.party for check in certificate.layers}
    assert parties == {"parallel (torch, float32)", "reference (float32)"}
    spiking = {step.name for step in convert(model, x).spiking}
    assert {check.layer for check in certificate.layers if check.party.startswith("parallel")} == spiking


@pytest.mark.parametrize("neuron", [snn.StateLeaky, StateLeaky])
def test_graded_spikes_as_output_are_worth_what_the_model_rounds_them_to(neuron: Any) -> None:
    """0.7 * 0.7 is no float32: the trained model puts out its rounding."""
    torch.manual_seed(0)
    layer, x = neuron(0.9, 5, graded_spikes_factor=0.7), 2 * torch.randn(30, 2, 5)
    certificate = verify(torch.nn.Sequential(layer).eval(), None, x.numpy())
    assert certificate.verdict == "equivalent", str(certificate)
    (step,) = convert(torch.nn.Sequential(layer), x).spiking
    assert step.amplitude == np.float32(0.7) * np.float32(0.7)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_artifact_of_the_zoo_is_equivalent_and_few_need_excuses(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = zoo.MODELS[name]()
    program = convert(model, x)
    onnx_cell.write(program, tmp_path / "m.onnx")
    artifacts: list[object] = [tmp_path / "m.onnx"]
    try:
        artifacts.append(from_bytes(nir.export(program)))
    except ModelRefused as error:
        assert "--target onnx" in str(error)
    for artifact in artifacts:
        certificate = verify(program, artifact, steps=24, batch=4)
        assert certificate.passed, str(certificate)
        assert sum(check.excused for check in certificate.layers) <= 2


def test_dyadic_models_are_bit_equal_with_ties() -> None:
    model, x = zoo.dyadic()
    certificate = verify(model, None, x.numpy())
    exact = [check for check in certificate.layers if check.party.startswith("reference")]
    assert all(check.exact and check.undecided == 0 and check.membrane_error == 0 for check in exact)
    program = convert(model, x)
    ties = bound(program, x.numpy().astype(np.float32)).decisions["lif1"].value == 1
    assert ties.any()  # the demand was not empty


def test_the_model_is_left_as_it_was() -> None:
    model, x = zoo.gen2()
    before = model(x)[0]
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    verify(model, None, x.numpy())
    assert torch.equal(model(x)[0], before)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks == 0
    assert "fire" not in model.mem1.__dict__  # type: ignore[union-attr, operator]
    model.train()
    verify(model, None, x.numpy())
    assert all(module.training for module in model.modules())


# --- inputs and output -----------------------------------------------------------------------------------------


def test_random_input_is_reproducible_and_wakes_quiet_models() -> None:
    program = leaky(normal(4, 3, scale=0.02), 0.5)
    assert np.array_equal(random_input(program, 9, 4, 3), random_input(program, 9, 4, 3))
    x = lively_input(program, 30, 4, 0)
    assert reference.run(program, x).spikes["lif"] > 0
    assert reference.run(program, random_input(program, 30, 4, 0)).spikes["lif"] == 0


def test_a_silent_layer_is_said_to_be_untested() -> None:
    program = leaky(normal(4, 3, scale=0.01), 0.5)
    certificate = verify(program, None, normal(9, 2, 3))
    assert any("never fires on this input" in finding.text for finding in certificate.findings)


@pytest.mark.parametrize(
    ("random", "text"),
    [
        ({"steps": 0}, "--steps: it is 0; at least 1 is needed."),
        ({"batch": -1}, "--batch: it is -1; at least 1 is needed."),
        ({"steps": 1 << 30}, "at most 268435456 values are used"),
        ({"seed": -1}, "--seed: it is -1; a whole number from 0 on is needed."),
        ({"rate": 1.5}, "--rate: it is 1.5; a probability from 0 to 1 is needed."),
        ({"rate": float("nan")}, "--rate: it is nan"),
    ],
)
def test_random_input_that_cannot_be_is_refused(random: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=re.escape(text)):
        verify(leaky(normal(4, 3), 0.5), **random)


def test_a_cell_of_a_fixed_batch_is_verified_in_that_batch() -> None:
    program = leaky(normal(4, 3), 0.5)
    cell = OnnxRunner(onnx_cell.export(program, static_batch=3))
    assert verify(program, cell).batch == verify(program, cell, batch=3).batch == 3
    with pytest.raises(BadInput, match=r"^--batch: a batch of 5; the artifact was built for a batch of 3\. Leave it out\."):
        verify(program, cell, batch=5)
    with pytest.raises(BadInput, match=r"^input: a batch of 2; the artifact was built for a batch of 3"):
        verify(program, cell, normal(7, 2, 3))


@pytest.mark.parametrize("thing", [5, np.zeros(3), object()])
def test_what_is_no_model_and_no_artifact_is_refused(thing: Any) -> None:
    with pytest.raises(BadInput, match=f"model: it is a {type(thing).__name__}; a path, a torch module or a Program is needed"):
        verify(thing)
    with pytest.raises(BadInput, match=f"artifact: it is a {type(thing).__name__}; a program, or the runner of a step cell, is needed"):
        verify(leaky(normal(4, 3), 0.5), thing)


def test_another_models_artifact_is_refused() -> None:
    with pytest.raises(BadInput, match=r"inputs of shape \(5,\), the model \(3,\)"):
        verify(leaky(normal(4, 3), 0.5), leaky(normal(4, 5), 0.5))


def test_input_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program, x = leaky(normal(4, 3), 0.5), normal(7, 2, 3)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", input=x, labels=np.zeros(2))
    np.savez(tmp_path / "c.npz", u=x, v=x)
    np.save(tmp_path / "d.npy", x[:, 0])
    np.save(tmp_path / "e.npy", np.array([{}], object))
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPYrandom")
    assert np.array_equal(load(tmp_path / "a.npy").array, x)
    assert np.array_equal(load(tmp_path / "b.npz").array, x)
    assert fitted(program, load(tmp_path / "d.npy")).shape == (7, 1, 3)
    for name, text in {
        "c.npz": "arrays u, v; one of them must be called 'input'",
        "e.npy": "unreadable",
        "f.npy": "unreadable",
        "g.npy": "there is no such file",
        ".": "it is a directory",
    }.items():
        with pytest.raises(BadInput, match=text):
            load(tmp_path / name)


def test_the_certificate_is_data_and_a_table() -> None:
    program = leaky(normal(4, 3), 0.8)
    certificate = verify(program, changed(program, "lif.mem", decay=np.array(0.7, np.float32)), seed=4, steps=12, batch=3)
    data = json.loads(certificate.to_json())
    assert (data["verdict"], data["seed"], data["steps"], data["batch"]) == ("different", 4, 12, 3)
    assert data["program_digest"] == program.digest and data["versions"]["numpy"] == np.__version__
    worst = data["layers"][-1]
    assert worst["first_divergence"] is not None and worst["mismatches"] > 0
    text = str(certificate)
    assert "different:" in text and f"{worst['mismatches']:,}" in text and "lif" in text
    assert verify(program, seed=4, steps=12, batch=3).to_json() == verify(program, seed=4, steps=12, batch=3).to_json()


def test_a_program_party_reports_what_the_reference_does() -> None:
    program, x = leaky(normal(4, 3), 0.8), normal(5, 2, 3)
    seen = ProgramParty("p", program, program, np.float64).observe(x, None)
    run = reference.run(program, x, record=["lif.mem"])
    assert np.array_equal(seen.membranes["lif"], run.wires["lif.mem"])
    assert np.array_equal(seen.outputs["spikes"], run.outputs["spikes"])


def test_silence_settles_an_onnx_state_without_a_complaint(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = leaky(normal(4, 3), np.array([0.55, 0.6, 0.9, 0.3]))
    onnx_cell.write(program, tmp_path / "m.onnx")
    x = np.zeros((250, 2, 3), np.float32)
    x[0] = 1.7
    certificate = verify(program, tmp_path / "m.onnx", x)
    assert certificate.passed, str(certificate)
