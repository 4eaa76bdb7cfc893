"""Layers of matrix memories against the programs that they become: ours as the recurrence, snnTorch's as what its forward computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn

import spikedeploy
from spikedeploy import convert
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky
from spikedeploy.runtime import reference


class Net(nn.Module):
    def __init__(self, memory: nn.Module, width: int) -> None:
        super().__init__()
        self.memory = memory
        self.answer = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.answer(self.memory(x))
        return y


def states() -> AssociativeLeaky:
    layer = AssociativeLeaky(5, 3, 4)
    layer.output = False
    return layer


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "gen2": (lambda: AssociativeLeaky(5, 3, 4, initial_retention=9.0), 9),
    "gen2 sparse": (lambda: AssociativeLeaky(5, 3, 4, topk_k=2, topk_v=2), 9),
    "gen2 thresholds": (lambda: AssociativeLeaky(5, 3, 4, threshold=torch.rand(3, 4), graded_spikes_factor=2.0), 9),
    "gen2 graded": (lambda: AssociativeLeaky(5, 4, 4, threshold=0.2, graded_spikes_factor=torch.rand(4, 4)), 16),
    "gen2 states": (states, 9),
    "gen2 spikes": (lambda: AssociativeLeaky(5, 4, 3, use_q_projection=False), 12),
    "gen3": (lambda: DeltaRuleLeaky(5, 3, 4, threshold=0.2), 9),
    "gen3 sparse": (lambda: DeltaRuleLeaky(5, 3, 4, threshold=0.2, topk_k=0.5, topk_v=1), 9),
}


def outputs(model: nn.Module, x: Tensor, **options: Any) -> np.ndarray:
    run = reference.run(convert(model, x, **options), x.numpy())
    return next(iter(run.outputs.values()))


@pytest.mark.parametrize("name", LAYERS)
def test_the_program_computes_what_the_layer_computes(name: str) -> None:
    torch.manual_seed(1)
    make, width = LAYERS[name]
    model, x = Net(make(), width).eval(), 2 * torch.randn(70, 2, 5)
    deployed = outputs(model, x)
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    assert expected.std() > 0.05, "the memory must fire"
    np.testing.assert_allclose(deployed, expected, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_a_saved_layer_comes_back(name: str, tmp_path: Path) -> None:
    model, x = nn.Sequential(LAYERS[name][0]()).eval(), 2 * torch.randn(9, 2, 5)
    spikedeploy.save(model, tmp_path / "m.pt", x)
    with torch.no_grad():
        assert torch.equal(spikedeploy.load(tmp_path / "m.pt")(x), model(x))


@pytest.mark.parametrize("steps", [1, 16, 64])
@pytest.mark.parametrize("use_q", [True, False])
def test_a_library_checkpoint_reproduces_the_library_s_outputs(steps: int, use_q: bool) -> None:
    torch.manual_seed(2)
    model = Net(snntorch.AssociativeLeaky(5, 4, 3, 12, use_q_projection=use_q), 16 if use_q else 12).eval()
    x = 2 * torch.randn(steps, 3, 5)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-3)


def test_the_library_s_forward_is_not_the_recurrence() -> None:
    """Its writes vanish: after 64 steps the two semantics of the same weights have parted."""
    torch.manual_seed(2)
    model, x = Net(snntorch.AssociativeLeaky(5, 4, 3, 12, use_q_projection=False), 12).eval(), 2 * torch.randn(200, 1, 5)
    apart = np.abs(outputs(model, x) - outputs(model, x, semantics="recurrence")).max(axis=(1, 2))
    assert apart[:4].max() < 1e-9
    assert apart[64:].max() > 0.1


def test_weights_trained_with_either_class_deploy_the_same_under_the_recurrence() -> None:
    torch.manual_seed(3)
    library, ours = Net(snntorch.AssociativeLeaky(5, 4, 3, 12), 16).eval(), Net(AssociativeLeaky(5, 4, 3), 16).eval()
    ours.load_state_dict(library.state_dict())
    x = 2 * torch.randn(50, 2, 5)
    assert convert(library, x, semantics="recurrence").digest == convert(ours, x).digest
