"""Verification: bounds that hold and are not empty, criteria (A) to (D), every model of the zoo, every way an artifact can be wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikedeploy import steps as S
from spikedeploy.conversion import convert
from spikedeploy.errors import BadInput, ModelRefused, NotEquivalent
from spikedeploy.exporters import nir, onnx_cell
from spikedeploy.inputs import fitted, load
from spikedeploy.program import Output, Program
from spikedeploy.readers.nir import from_bytes
from spikedeploy.runtime import reference
from spikedeploy.verify import ProgramParty, require, verify
from spikedeploy.verify.bounds import bound
from spikedeploy.verify.inputs import lively_input, random_input
from spikedeploy.verify.rounding import UNIT, grid, sum_is_exact
from spikedeploy.verify.rules import Doubt

torch.set_num_threads(1)
RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, alone or in any company."""
    global RNG
    RNG = np.random.default_rng(5)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def dyadic(*shape: int) -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(np.float32) / 4


def leaky(weight: np.ndarray, decay: np.ndarray | float, threshold: float = 1.0, strict: bool = True) -> Program:
    """One layer of neurons; spikes are the output."""
    return Program(
        (weight.shape[1],),
        (
            S.Affine("fc", ("input",), weight),
            S.Integrator("lif.mem", ("fc",), np.asarray(decay, np.float32)),
            S.Threshold("lif", ("lif.mem",), np.array(threshold, np.float32), strict=strict),
        ),
        (Output("spikes", "lif"),),
    )


def single(step: S.Step, shape: tuple[int, ...]) -> Program:
    """One step whose wire is the output."""
    return Program(shape, (step,), (Output("y", step.name),))


# --- the bounds ------------------------------------------------------------------------------------------------

X = ("input",)
KINDS = {
    "affine": single(S.Affine("y", X, normal(5, 7), normal(5)), (7,)),
    "conv": single(S.Conv2d("y", X, normal(4, 1, 3, 3), normal(4), (2, 1), (1, 0), (1, 2), 2), (2, 7, 9)),
    "pool": single(S.SumPool2d("y", X, (2, 3), (1, 2), (0, 1)), (2, 5, 7)),
    "scale": single(S.Scale("y", X, normal(3), normal(3)), (3,)),
    "relu": single(S.Activation("y", X, "relu"), (9,)),
    "gelu": single(S.Activation("y", X, "gelu"), (9,)),
    "gelu_tanh": single(S.Activation("y", X, "gelu_tanh"), (9,)),
    "silu": single(S.Activation("y", X, "silu"), (9,)),
    "sigmoid": single(S.Activation("y", X, "sigmoid"), (9,)),
    "tanh": single(S.Activation("y", X, "tanh"), (9,)),
    "norm": single(S.LayerNorm("y", X, normal(6), normal(6)), (6,)),
    "l2": single(S.L2Normalize("y", X), (6,)),
    "topk": single(S.TopK("y", X, 2), (7,)),
    "delay": single(S.Delay("y", X, 3), (4,)),
    "integrator": single(S.Integrator("y", X, np.linspace(0.1, 0.999, 6).astype(np.float32)), (6,)),
    "ssm": single(S.DiagonalSSM("y", X, *(0.6 * normal(4, 5) for _ in range(4)), d=normal(4)), (4,)),
}


def chained(program: Program) -> Program:
    """The step behind a first rounding, so that its rule sees an error in its input too."""
    (step,) = program.steps
    first = S.Scale(
        "first", X, np.float32(1 / 3) + np.zeros(program.input_shape, np.float32), np.full(program.input_shape, 0.1, np.float32)
    )
    return Program(program.input_shape, (first, replace(step, inputs=("first",))), program.outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [False, True])
def test_float32_stays_within_the_bound_of_every_step_kind(kind: str, behind: bool) -> None:
    program = chained(KINDS[kind]) if behind else KINDS[kind]
    x = normal(40, 3, *program.input_shape, scale=2)
    found = bound(program, x).outputs["y"]
    narrow = reference.run(program, x, dtype=np.float32).outputs["y"]
    error = np.abs(narrow - found.value)
    assert (error <= found.error).all()
    rounded = error[found.error > 0]
    if kind not in ("relu", "delay", "topk") or behind:
        assert rounded.max() > 0  # something was rounded, so the bound was put to a test
        assert (found.error <= 2e4 * UNIT * (1 + np.abs(found.value).max())).all()  # and it is no excuse for anything


def memory(kind: type[S.Step], **options: object) -> Program:
    steps: list[S.Step] = [S.Affine(n, X, normal(*shape)) for n, shape in (("v", (3, 6)), ("q", (4, 6)), ("a", (4, 6)), ("b", (1, 6)))]
    steps += [S.L2Normalize("k", ("q",)), S.Activation("alpha", ("a",), "sigmoid"), S.Activation("beta", ("b",), "sigmoid")]
    wires = ("v", "k", "alpha", "beta") if kind is S.DeltaMemory else ("v", "q", "alpha")
    steps += [kind("S", wires, **options), S.Threshold("spk", ("S",), np.array(1.0, np.float32))]  # type: ignore[arg-type]
    return Program((6,), tuple(steps), (Output("S", "S"), Output("spikes", "spk")))


@pytest.mark.parametrize(
    "program",
    [memory(S.MatrixMemory), memory(S.MatrixMemory, semantics="snntorch-1.0.0"), memory(S.DeltaMemory)],
    ids=["recurrence", "snntorch", "delta"],
)
def test_float32_stays_within_the_bound_of_matrix_memories(program: Program) -> None:
    x = normal(150, 2, 6)
    found = bound(program, x).outputs["S"]
    error = np.abs(reference.run(program, x, dtype=np.float32).outputs["S"] - found.value)
    assert (error <= found.error).all()
    assert (error / np.maximum(found.error, 1e-30)).max() > 0.001


@given(
    reset=st.sampled_from(["subtract", "zero", "value"]),
    late=st.booleans(),
    decay=st.sampled_from([0.0, 0.37, 0.9, 0.997]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_float32_stays_within_the_bound_of_resetting_neurons(reset: str, late: bool, decay: float, seed: int) -> None:
    theta = np.array([0.5, 1.0, 1.3], np.float32)
    lif = S.LIF("lif", X, np.float32(decay) + np.zeros(3, np.float32), theta, reset, late and reset != "value")  # type: ignore[arg-type]
    program = Program((3,), (lif,), (Output("mem", "lif.mem"), Output("spikes", "lif")))
    x = np.random.default_rng(seed).normal(size=(60, 2, 3)).astype(np.float32)
    found = bound(program, x)
    run = reference.run(program, x, dtype=np.float32, record=["lif", "lif.mem"])
    same = np.cumsum((run.wires["lif"] != 0) != (found.spikes["lif"] != 0), axis=0) == 0
    error = np.abs(run.wires["lif.mem"] - found.membranes["lif"].value)
    assert (error <= found.membranes["lif"].error)[same].all()
    assert same.mean() > 0.9


def test_exactness_is_proven_where_it_holds_and_only_there() -> None:
    program = leaky(dyadic(5, 7), 0.5)
    x = np.round(normal(12, 3, 7))
    assert (bound(program, x).decisions["lif"].error == 0).all()
    assert (bound(program, x, Doubt(parameters=1)).decisions["lif"].error[-1] > 0).any()
    third = leaky(dyadic(5, 7), 1 / 3)
    assert (bound(third, x).decisions["lif"].error[-1] > 0).all()


def test_grid_is_the_lowest_set_bit() -> None:
    assert grid(np.array([1.0, 0.75, 6.0, -0.125])).tolist() == [0, -2, 1, -3]
    assert grid(np.array([0.0]))[0] > 1000
    assert bool(sum_is_exact(np.array(2.0**24), np.array(0))) and not bool(sum_is_exact(np.array(2.0**24 + 1), np.array(0)))


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


# --- the criteria ----------------------------------------------------------------------------------------------


def changed(program: Program, name: str, **fields: object) -> Program:
    return replace(program, steps=tuple(replace(s, **fields) if s.name == name else s for s in program.steps))  # type: ignore[arg-type]


def test_a_membrane_off_by_more_than_rounding_fails_though_no_spike_differs() -> None:
    program = leaky(normal(4, 6), 0.8)
    x = normal(20, 3, 6)
    weight = np.array(program.steps[0].weight) * np.float32(1 + 2e-5)  # type: ignore[attr-defined]
    certificate = verify(program, changed(program, "fc", weight=weight), x)
    check = certificate.layers[-1]
    assert check.mismatches == 0 and check.membrane_of_bound is not None and check.membrane_of_bound > 1
    assert certificate.verdict == "different"
    with pytest.raises(NotEquivalent, match="a membrane is off by"):
        require(certificate)


def test_parameters_stored_again_are_within_the_doubt_of_an_artifact() -> None:
    program = leaky(normal(4, 6), 0.8)
    decay = np.float32(0.8) * (1 + np.float32(2**-23))
    certificate = verify(program, changed(program, "lif.mem", decay=np.float32(decay)), normal(50, 3, 6))
    assert certificate.passed


def test_a_missing_layer_fails() -> None:
    program = Program(
        (3,),
        (*leaky(normal(4, 3), 0.8).steps, S.Affine("fc2", ("lif",), normal(2, 4)), S.Threshold("out", ("fc2",), np.array(0.5, np.float32))),
        (Output("spikes", "out"),),
    )
    without = replace(program, steps=(*program.steps[:2], S.Affine("fc2", ("lif.mem",), normal(2, 4)), program.steps[-1]))
    certificate = verify(program, without, normal(9, 2, 3))
    assert "layer 'lif' is missing in artifact (float32): it has no such layer" in [f.text for f in certificate.findings]
    assert certificate.verdict == "different"


def test_a_missing_output_fails() -> None:
    program = leaky(normal(4, 3), 0.8)
    both = replace(program, outputs=(*program.outputs, Output("current", "fc")))
    assert "output 'current' is missing" in verify(both, program, normal(9, 2, 3)).first_failure()


def test_what_a_format_cannot_carry_is_said_but_does_not_fail() -> None:
    program = leaky(normal(4, 3), 0.8)
    both = replace(program, outputs=(*program.outputs, Output("mem", "lif.mem")))
    certificate = verify(both, program, normal(9, 2, 3))
    assert certificate.passed and any(f.level == "warn" and "membranes are not carried" in f.text for f in certificate.findings)
    membrane = replace(program, outputs=(Output("mem", "lif.mem"),))
    without = replace(membrane, steps=membrane.steps[:2])  # nothing reads the spikes
    certificate = verify(membrane, without, normal(9, 2, 3))
    assert certificate.passed and any("no output depends on it" in f.text for f in certificate.findings)


def test_undecided_spikes_are_excused_but_many_of_them_are_no_proof() -> None:
    """Inputs that put every membrane within rounding of its threshold: the artifact decides otherwise, and nobody can say who is right."""
    weight = np.full((64, 3), 1 / 3, np.float32)
    program = leaky(weight, 0.5)
    x = np.full((1, 40, 3), 1.0, np.float32)
    nudged = changed(program, "fc", weight=np.nextafter(weight, np.float32(0)))
    certificate = verify(program, nudged, x)
    check = certificate.layers[-1]
    assert check.excused == check.undecided == check.decisions and check.mismatches == 0
    assert certificate.verdict == "inconclusive" and not certificate.passed
    with pytest.raises(NotEquivalent, match="within the rounding bound"):
        require(certificate)


def test_after_an_excused_flip_a_resetting_neuron_is_not_judged() -> None:
    lif = S.LIF("lif", ("fc",), np.array(0.9, np.float32), np.array(1.0, np.float32), "subtract")
    program = Program((3,), (S.Affine("fc", X, np.full((1, 3), 1 / 3, np.float32)), lif), (Output("spikes", "lif"), Output("m", "lif.mem")))
    x = np.full((30, 1, 3), 1.0, np.float32)
    nudged = changed(program, "fc", weight=np.nextafter(np.float32(1 / 3), np.float32(0)) + np.zeros((1, 3), np.float32))
    check = verify(program, nudged, x).layers[-1]
    assert check.mismatches == 0 and check.excused >= 1 and check.followed >= 1


def test_graded_amplitude_folded_into_the_next_weight_is_the_same_model() -> None:
    head = leaky(normal(4, 3), 0.8)
    tail = (S.Affine("fc2", ("lif",), normal(2, 4)), S.Threshold("out", ("fc2",), np.array(0.1, np.float32)))
    graded = changed(Program((3,), (*head.steps, *tail), (Output("spikes", "out"),)), "lif", amplitude=np.array(0.5625, np.float32))
    folded = changed(changed(graded, "lif", amplitude=np.array(1.0, np.float32)), "fc2", weight=tail[0].weight * np.float32(0.5625))
    assert verify(graded, folded, normal(30, 2, 3, scale=2)).passed
    unfolded = changed(graded, "lif", amplitude=np.array(0.75, np.float32))
    assert not verify(graded, unfolded, normal(30, 2, 3, scale=2)).passed


def test_layers_behind_relay_neurons_are_found_by_their_slice() -> None:
    program = leaky(normal(4, 3), 0.8)
    fc = program.steps[0]
    wide = np.concatenate([fc.weight, normal(2, 3)])  # type: ignore[attr-defined]
    decay = np.array([0.8] * 4 + [0] * 2, np.float32)
    steps = (
        S.Affine("fc", X, wide),
        S.Integrator("lif.wide.mem", ("fc",), decay),
        S.Threshold("lif.wide", ("lif.wide.mem",), np.array(1.0, np.float32)),
        S.Slice("lif", ("lif.wide",), 0, 4),
    )
    relayed = Program((3,), steps, program.outputs)
    assert verify(program, relayed, normal(30, 2, 3, scale=2)).passed
    assert not verify(program, changed(relayed, "lif", start=1, stop=5), normal(30, 2, 3, scale=2)).passed


def test_layers_of_a_foreign_file_are_taken_in_order() -> None:
    program = leaky(normal(4, 3), 0.8)
    names = {"fc": "a", "lif.mem": "b", "lif": "c", "input": "input"}
    steps = tuple(replace(s, name=names[s.name], inputs=tuple(names[i] for i in s.inputs)) for s in program.steps)
    foreign = Program((3,), steps, (Output("out", "c"),))
    certificate = verify(program, foreign, normal(9, 2, 3))
    assert certificate.passed
    assert any("lif = c" in finding.text for finding in certificate.findings)


def test_an_exact_tie_tells_strict_from_not_strict() -> None:
    program = leaky(normal(4, 3), 0.8)
    certificate = verify(program, changed(program, "lif", strict=False), normal(9, 2, 3))
    assert certificate.mismatches == 0  # no random input meets a tie
    assert "4 of 4 neurons decide an exact tie otherwise (the model fires on >, the artifact on >=)" in certificate.first_failure()


# --- meaning ---------------------------------------------------------------------------------------------------


def test_two_semantics_are_told_apart_by_step_and_size() -> None:
    model, x = zoo.gen2()
    x = x.repeat(6, 1, 1)
    certificate = verify(model, None, x.numpy())
    (finding,) = [f for f in certificate.findings if "the other semantics differs from step" in f.text]
    assert finding.text.startswith("deployed as what snnTorch's forward computes; mem1.S")
    ours = bound(convert(model, x, semantics="recurrence"), x.numpy()).decisions["mem1.spk"].value
    theirs = bound(convert(model, x), x.numpy()).decisions["mem1.spk"].value
    apart = np.abs(ours - theirs).reshape(len(x), -1).max(axis=1)
    assert finding.data["first_step"] == int(np.flatnonzero(apart > 1e-3)[0])
    assert finding.data["largest"] == pytest.approx(apart.max())


def test_a_chosen_change_of_meaning_is_reported_and_the_rest_still_verified() -> None:
    model, x = zoo.truncated()
    certificate = verify(model, None, x.numpy(), options={"truncation": "drop"})
    assert certificate.passed
    assert any("by the chosen options" in f.text for f in certificate.findings)
    plain = convert(model, x)
    assert certificate.program_digest != plain.digest


def test_an_artifact_names_the_options_it_was_made_with() -> None:
    model, x = zoo.gen2()
    other = convert(model, x, semantics="recurrence")
    artifact = replace(other, notes=(f"made from program {other.digest}",))
    assert verify(model, artifact, x.numpy()).passed
    assert not verify(convert(model, x), artifact, np.tile(x.numpy(), (5, 1, 1))).passed


def test_a_surrogate_neuron_is_judged_by_its_true_reset_and_its_cost_told_apart() -> None:
    from spikedeploy.nn.spiking_ssm import SpikingSSMBlock

    torch.manual_seed(3)
    block = SpikingSSMBlock(6, states=8, reset="surrogate")
    model = nn.Sequential(nn.Linear(3, 6), block, nn.Linear(6, 2))
    certificate = verify(model, None, normal(120, 3, 3))
    assert certificate.passed, str(certificate)
    assert any("the surrogate of training agrees" in finding.text for finding in certificate.findings)
    assert block.neuron.sdn is not None and "sdn" in block.neuron._modules


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
    ("steps", "batch", "text"),
    [
        (0, 2, "--steps: it is 0; at least 1 is needed."),
        (2, -1, "--batch: it is -1; at least 1 is needed."),
        (1 << 30, 8, "at most 268435456 values are used"),
    ],
)
def test_sizes_that_cannot_be_are_refused(steps: int, batch: int, text: str) -> None:
    with pytest.raises(BadInput, match=text.replace("(", r"\(")):
        verify(leaky(normal(4, 3), 0.5), steps=steps, batch=batch)


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
