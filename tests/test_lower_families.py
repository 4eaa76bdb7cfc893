"""The training forms of `spikedeploy.nn` as programs: every family, its options, and the move of a checkpoint from snnTorch's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import spikedeploy
from spikedeploy import nn as deploy
from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused
from spikedeploy.nn.s4d import S4D
from spikedeploy.nn.spiking_ssm import SpikingLIF, SpikingSSM
from spikedeploy.probe import flatten
from spikedeploy.runtime import reference

X = 2 * torch.randn(13, 2, 5, generator=torch.Generator().manual_seed(0))


def made(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = make()
    return model.eval()


FAMILIES: dict[str, Any] = {
    "StateLeaky": lambda: deploy.StateLeaky(
        torch.linspace(0.5, 0.9, 5), 5, learn_beta=True, learn_threshold=True, graded_spikes_factor=0.5
    ),
    "StateLeaky truncated": lambda: deploy.StateLeaky(0.9, 5, kernel_truncation_steps=4),
    "StateLeaky membrane": lambda: deploy.StateLeaky(0.9, 5, output=False),
    "LinearLeaky": lambda: deploy.LinearLeaky(0.7, 5, 4, bias=False),
    **{
        f"Leaky {reset} {delay}": lambda reset=reset, delay=delay: deploy.Leaky(
            torch.linspace(0.5, 0.9, 5), threshold=0.8, reset_mechanism=reset, reset_delay=delay, graded_spikes_factor=2.0
        )
        for reset in ("subtract", "zero", "none")
        for delay in (True, False)
    },
    "Leaky hidden": lambda: deploy.Leaky(0.8, init_hidden=True),
    "AssociativeLeaky": lambda: deploy.AssociativeLeaky(5, 3, 4, threshold=0.4),
    "AssociativeLeaky top-k": lambda: deploy.AssociativeLeaky(5, 4, 6, topk_k=2, topk_v=0.5, threshold=torch.linspace(0.1, 1, 24)),
    "AssociativeLeaky flat": lambda: deploy.AssociativeLeaky(5, 3, 4, use_q_projection=False, graded_spikes_factor=0.5, threshold=0.4),
    "DeltaRuleLeaky": lambda: deploy.DeltaRuleLeaky(5, 3, 4, threshold=0.3),
    "DeltaRuleLeaky top-k": lambda: deploy.DeltaRuleLeaky(5, 3, 4, topk_k=2, threshold=0.3, use_q_projection=False),
    "S4D": lambda: S4D(5, 8),
    "SpikingLIF": lambda: SpikingLIF(5, threshold=0.7, learnable_threshold=True),
    "SpikingLIF shared": lambda: SpikingLIF(None, threshold=0.5),
    "SpikingSSM": lambda: SpikingSSM(5, 3, features=6, layers=2, states=8, threshold=0.4),
    "SpikingSSM batch norm": lambda: SpikingSSM(5, None, features=6, layers=1, states=8, norm="batch", prenorm=False, readout="last"),
    "SpikingSSM plain": lambda: SpikingSSM(None, 3, features=5, layers=1, states=4, norm="none", readout="none", shared_threshold=True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    model = made(FAMILIES[name])
    spikedeploy.save(model, tmp_path / "model.pt", X)
    program = spikedeploy.convert(model, X)
    getattr(model, "reset_mem", lambda: None)()
    with torch.no_grad():
        expected = [y.numpy() for y in flatten(model(X))]
    for dtype in (np.float64, np.float32):
        found = list(reference.run(program, X.numpy(), dtype=dtype).outputs.values())
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    back = spikedeploy.load(tmp_path / "model.pt")
    with torch.no_grad():
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(flatten(back(X)), expected, strict=True))
    assert spikedeploy.convert(back).digest == program.digest


def test_tokens_into_a_spiking_ssm() -> None:
    model = made(lambda: SpikingSSM(None, 2, features=6, layers=1, states=4, vocabulary=9))
    x = torch.randint(0, 9, (8, 2))
    program = spikedeploy.convert(model, x)
    assert program.input_kind == "index"
    with torch.no_grad():
        assert np.allclose(reference.run(program, x.numpy()).outputs["output"], model(x).numpy(), atol=1e-5)


def test_the_surrogate_network_is_gone() -> None:
    """A layer that trained through the surrogate network deploys as the true neuron, whatever the network said."""
    exact, surrogate = (made(lambda reset=reset: SpikingLIF(5, threshold=0.7, reset=reset)) for reset in ("exact", "surrogate"))
    a, b = spikedeploy.convert(exact, X), spikedeploy.convert(surrogate, X)
    assert a.digest == b.digest
    assert [type(step) for step in b.steps] == [S.LIF]
    step = b.step("layer")
    assert isinstance(step, S.LIF)
    assert (step.reset, step.strict, float(step.decay)) == ("zero", False, 0.125)


def test_thresholds_of_the_ssm_neuron_are_folded() -> None:
    layer = SpikingLIF(5, learnable_threshold=True)
    with torch.no_grad():
        layer.ln_vth.copy_(torch.linspace(-1, 1, 5))
    step = spikedeploy.convert(layer, X).step("layer")
    assert isinstance(step, S.LIF)
    assert np.allclose(step.threshold, np.exp(np.linspace(-1, 1, 5)))


def test_the_bidirectional_model_is_refused() -> None:
    with pytest.raises(ModelRefused, match="bidirectional"):
        SpikingSSM(5, 3, bidirectional=True)


PAIRS: dict[str, tuple[Any, Any]] = {
    "StateLeaky": (lambda: snn.StateLeaky(torch.linspace(0.5, 0.9, 5), 5), lambda: deploy.StateLeaky(0.5, 5)),
    "LinearLeaky": (lambda: snn.LinearLeaky(0.7, 5, 4), lambda: deploy.LinearLeaky(0.7, 5, 4)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_both_families_give_one_program(name: str) -> None:
    theirs, ours = (made(make) for make in PAIRS[name])
    if name == "StateLeaky":
        ours.tau = theirs.tau.clone()
    else:
        ours.load_state_dict(theirs.state_dict())
    assert spikedeploy.convert(theirs, X).digest == spikedeploy.convert(ours, X).digest


def test_gen2_of_both_families_differ_in_semantics_only() -> None:
    theirs, ours = made(lambda: snn.AssociativeLeaky(5, 3, 4, 12)), made(lambda: deploy.AssociativeLeaky(5, 3, 4))
    ours.load_state_dict(theirs.state_dict())
    program = spikedeploy.convert(theirs, X)
    assert program.digest != spikedeploy.convert(ours, X).digest
    assert spikedeploy.convert(theirs, X, semantics="recurrence").digest == spikedeploy.convert(ours, X).digest
    assert spikedeploy.convert(ours, X, semantics="snntorch-1.0.0").digest == program.digest


def test_where_the_two_semantics_part() -> None:
    from spikedeploy.semantics import semantics_difference

    torch.manual_seed(0)
    model = snn.AssociativeLeaky(5, 3, 4, 12).eval()
    x = 2 * torch.randn(60, 2, 5)
    program = spikedeploy.convert(model, x)
    (found,) = semantics_difference(program, x.numpy())
    assert found.layer == "layer.S"
    assert found.first_step is not None
    assert 3 < found.first_step < 60
    assert found.largest > 1e-3
    assert "from step" in str(found)
    early = semantics_difference(program, x[: found.first_step].numpy())[0]
    assert early.first_step is None
    assert "no step" in str(early)
    states = {}
    for semantics in ("recurrence", "snntorch-1.0.0"):
        chosen: Any = spikedeploy.convert(model, x, semantics=semantics)  # type: ignore[arg-type]
        states[semantics] = reference.run(chosen, x.numpy(), record=["layer.S"]).wires["layer.S"]
    gap = np.abs(states["recurrence"] - states["snntorch-1.0.0"]).reshape(60, -1).max(axis=1)
    assert found.largest == gap.max()
    assert found.first_step == int(np.argmax(gap > 1e-3))
