"""The criteria (A) to (D) of verification: every way an artifact can be wrong, or differ in meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from torch import nn
from verify_programs import X, changed, leaky, normal
from verify_programs import same_numbers as same_numbers

from spikedeploy import steps as S
from spikedeploy.conversion import convert
from spikedeploy.errors import NotEquivalent
from spikedeploy.program import Output, Program
from spikedeploy.verify import require, verify
from spikedeploy.verify.bounds import bound


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
