"""A program must do what the torch model does: every option of every neuron against snnTorch's forward, and mutants that must differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import FLOATS, agree, program_outputs, torch_outputs
from snntorch.functional import quant
from torch import Tensor, nn

import spikedeploy
from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_zoo(name: str) -> None:
    model, x = zoo.MODELS[name]()
    program = spikedeploy.convert(model, x)
    assert agree(model, x, program)
    run = reference.run(program, x.numpy())
    rates = [run.rate(step.name) for step in program.spiking]
    assert any(0 < rate < 1 for rate in rates)


@pytest.mark.parametrize("name", ["dyadic", "dyadic_gen2"])
def test_dyadic_models_are_equal_in_every_bit(name: str) -> None:
    model, x = zoo.MODELS[name]()
    program = spikedeploy.convert(model, x, semantics="recurrence")
    expected = torch_outputs(model, x)
    for dtype in FLOATS:
        for a, b in zip(program_outputs(program, x, dtype), expected, strict=True):
            assert np.array_equal(a, b)


# --- Gen1: every option --------------------------------------------------------------------------------------------

gen1 = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 19),
        "batch": st.integers(1, 3),
        "channels": st.integers(1, 5),
        "linear": st.booleans(),
        "per_channel_beta": st.booleans(),
        "per_channel_threshold": st.booleans(),
        "learn": st.booleans(),
        "graded": st.sampled_from([1.0, 0.5, 1.75]),
        "truncation": st.sampled_from([None, 1, 2, 5, 30]),
        "bits": st.sampled_from([0, 1, 3, 6]),
        "uniform": st.booleans(),
        "output": st.booleans(),
        "seed": st.integers(0, 10**6),
    }
)


def gen1_model(o: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(o["seed"])
    n = o["channels"]
    beta = 0.3 + 0.69 * torch.rand(n) if o["per_channel_beta"] else float(0.3 + 0.69 * torch.rand(()))
    options: dict[str, Any] = {"learn_beta": o["learn"], "kernel_truncation_steps": o["truncation"], "output": o["output"]}
    if o["output"]:
        options |= {"threshold": 0.3 + torch.rand(n) if o["per_channel_threshold"] else 0.6, "learn_threshold": o["learn"]}
        options |= {"graded_spikes_factor": o["graded"], "learn_graded_spikes_factor": o["learn"]}
    if o["bits"]:
        options["state_quant"] = quant.state_quant(num_bits=o["bits"], uniform=o["uniform"], threshold=0.6)
    layer = snn.LinearLeaky(beta, 4, n, **options) if o["linear"] else snn.StateLeaky(beta, n, **options)
    if o["learn"]:
        with torch.no_grad():
            layer.tau += 0.5
    return layer.eval(), torch.randn(o["steps"], o["batch"], 4 if o["linear"] else n)


@settings(max_examples=50, deadline=None)
@given(options=gen1)
def test_gen1_in_all_its_options(options: dict[str, Any]) -> None:
    model, x = gen1_model(options)
    program = spikedeploy.convert(model, x)
    expected = torch_outputs(model, x)
    found = program_outputs(program, x)
    membrane, level = expected[-1], found[-1]
    if options["bits"]:  # a level may flip where the membrane lies between two: judge where the unquantised one does not
        u = reference.run(program, x.numpy(), record=[s.inputs[0] for s in program.steps if isinstance(s, S.Nearest)]).wires
        raw = next(value for key, value in u.items() if key.endswith(".u"))
        levels = next(s.levels for s in program.steps if isinstance(s, S.Nearest))
        distance = np.sort(np.abs(raw[..., None] - levels), axis=-1)
        certain = distance[..., 1] - distance[..., 0] > 1e-5
    else:
        certain = np.ones(membrane.shape, bool)
    assert np.allclose(membrane[certain], level[certain], rtol=1e-5, atol=1e-5)
    if options["output"]:
        threshold = model.threshold.detach().numpy()
        clear = certain & (np.abs(level - threshold) > 1e-5 * (1 + np.abs(level)))
        assert np.array_equal(expected[0][clear] != 0, found[0][clear] != 0)
        assert np.allclose(expected[0][clear], found[0][clear], rtol=1e-6)


def test_the_decay_comes_from_tau_and_not_from_the_stale_beta() -> None:
    layer = snn.StateLeaky(0.9, 3, learn_beta=True)
    with torch.no_grad():
        layer.tau.fill_(3.25)
    step = spikedeploy.convert(layer, torch.zeros(2, 2, 3)).step("layer.mem")
    assert float(step.decay) == math.exp(-1 / 3.25)
    assert float(layer.state_dict()["beta"]) == pytest.approx(0.9), "the stale one"


def test_a_decay_of_one_half_is_one_half() -> None:
    for power in (1, 2, 3):
        layer = snn.StateLeaky(0.9, 1)
        layer.tau = torch.tensor(power / math.log(2.0) if power == 1 else 1 / (power * math.log(2.0)))
        if power == 1:
            assert float(spikedeploy.convert(layer, torch.zeros(2, 2, 1)).step("layer.mem").decay) == 0.5


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_dropping_the_truncation_states_its_bound_and_keeps_it(steps: int) -> None:
    torch.manual_seed(0)
    model = snn.StateLeaky(torch.tensor([0.5, 0.9]), 2, kernel_truncation_steps=steps)
    x = torch.randn(40, 2, 2)
    program = spikedeploy.convert(model, x, truncation="drop")
    assert not any(isinstance(step, S.Delay) for step in program.steps)
    d = program.step("layer.mem").decay
    bound = float(np.max(d**steps / (1 - d)))
    assert f"differs by at most {bound:.3g} * max|input|" in program.notes[0]
    exact = spikedeploy.convert(model, x)
    assert any(isinstance(step, S.Delay) for step in exact.steps)
    assert not exact.notes
    gap = np.abs(program_outputs(program, x)[1] - torch_outputs(model, x)[1]).max()
    assert 0 < gap <= bound * float(x.abs().max())


# --- mutants: a comparison that cannot fail proves nothing -----------------------------------------------------------


def changed(program: Program, change: Callable[[S.Step], S.Step]) -> Program:
    return Program(program.input_shape, tuple(change(step) for step in program.steps), program.outputs, program.input_kind)


def only(kind: type[S.Step], change: Callable[[Any], S.Step]) -> Callable[[S.Step], S.Step]:
    return lambda step: change(step) if isinstance(step, kind) else step


def beta_for_decay(step: S.Integrator) -> S.Step:
    tau = -1 / np.log(step.decay)
    return replace(step, decay=(tau - 1) / tau)


def without_skip(step: S.Add) -> S.Step:
    return S.Add(step.name, step.inputs[:1])


def transposed(step: S.Affine) -> S.Step:
    return replace(step, weight=step.weight.T) if step.weight.shape[0] == step.weight.shape[1] else step


def one_step_late(program: Program) -> Program:
    first, *rest = program.steps
    late = S.Delay("late", ("input",), 1)
    return Program(program.input_shape, (late, replace(first, inputs=("late",)), *rest), program.outputs)


MUTANTS: dict[str, tuple[str, Callable[[Program], Program]]] = {
    "beta for decay": ("residual", lambda p: changed(p, only(S.Integrator, beta_for_decay))),
    "single graded factor": ("graded", lambda p: changed(p, only(S.Threshold, lambda s: replace(s, amplitude=np.sqrt(s.amplitude))))),
    "at least": ("dyadic", lambda p: changed(p, only(S.Threshold, lambda s: replace(s, strict=False)))),
    "dropped skip": ("residual", lambda p: changed(p, only(S.Add, without_skip))),
    "transposed weight": ("residual", lambda p: changed(p, only(S.Affine, transposed))),
    "one step late": ("plain", one_step_late),
    "recurrence for snntorch-1.0.0": (
        "gen2_long",
        lambda p: changed(p, only(S.MatrixMemory, lambda s: replace(s, semantics="recurrence"))),
    ),
    "last for mean": ("membrane", lambda p: Program(p.input_shape, p.steps, (Output("output", p.outputs[0].wire, "last"),))),
}


def gen2_long() -> zoo.Zoo:
    model, _ = zoo.gen2()
    return model, 3 * torch.randn(60, 2, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_dies(name: str) -> None:
    which, mutate = MUTANTS[name]
    model, x = gen2_long() if which == "gen2_long" else zoo.MODELS[which]()
    program = spikedeploy.convert(model, x)
    assert agree(model, x, program, 1e-3 if which == "gen2_long" else 2e-5)
    assert not agree(model, x, mutate(program), 1e-3)


# --- Gen2 ------------------------------------------------------------------------------------------------------------


def test_semantics_follow_the_class_unless_told() -> None:
    model, x = zoo.gen2()
    memory = [s for s in spikedeploy.convert(model, x).steps if isinstance(s, S.MatrixMemory)]
    assert [s.semantics for s in memory] == ["snntorch-1.0.0"]
    memory = [s for s in spikedeploy.convert(model, x, semantics="recurrence").steps if isinstance(s, S.MatrixMemory)]
    assert [s.semantics for s in memory] == ["recurrence"]
    ours, x = zoo.our_gen2()
    assert [s.semantics for s in spikedeploy.convert(ours, x).steps if isinstance(s, S.MatrixMemory)] == ["recurrence"]


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 64), d=st.integers(1, 5), n=st.integers(1, 5), m=st.integers(1, 6), q=st.booleans(), bias=st.floats(-8, 8))
def test_gen2_of_snntorch(steps: int, d: int, n: int, m: int, q: bool, bias: float) -> None:
    torch.manual_seed(steps * 1000 + d)
    model = snn.AssociativeLeaky(m, d, n, d * n, use_q_projection=q).eval()
    with torch.no_grad():
        model.to_alpha.bias.fill_(bias)
    x = 2 * torch.randn(steps, 2, m)
    program = spikedeploy.convert(model, x)
    run = reference.run(program, x.numpy(), record=["layer.S"])
    clear = (np.abs(run.wires["layer.S"] - 1) > 1e-3).all(axis=(2, 3))
    assert np.allclose(run.outputs["output"][clear], torch_outputs(model, x)[0][clear], atol=1e-3)
