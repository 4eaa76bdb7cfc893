"""What is deployed, on the event-driven engine: the spikes of the reference, through a written NIR file, and straight from address events.

Weights and decays are dyadic, so that every sum is exact and no order of addition can decide a spike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn

import spikedeploy
from spikedeploy.exporters import nir
from spikedeploy.nn import Leaky, OverTime
from spikedeploy.program import Program
from spikedeploy.readers.nir import read
from spikedeploy.runtime import EventEngine, Events, reference

STEPS = 8


class Digits(nn.Module):
    """As `examples/digits.py`, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = snntorch.LinearLeaky(beta=0.5, in_features=20, out_features=33)
        self.readout = nn.Linear(33, 10)
        self.out = snntorch.StateLeaky(beta=torch.full((10,), 0.5), channels=10)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.hidden(x)
        spikes, _ = self.out(self.readout(spikes))
        return spikes.sum(dim=0)


class Camera(nn.Module):
    """As `examples/nmnist.py`, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = OverTime(nn.Conv2d(2, 4, 5, stride=2, bias=False))
        self.lif1 = Leaky(beta=0.5, reset_mechanism="subtract")
        self.conv2 = OverTime(nn.Conv2d(4, 8, 3, stride=2))
        self.lif2 = Leaky(beta=0.5, reset_mechanism="subtract")
        self.fc = nn.Linear(8 * 3 * 3, 10)
        self.lif3 = Leaky(beta=0.5, reset_mechanism="subtract")

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.lif1(self.conv1(x))
        spikes, _ = self.lif2(self.conv2(spikes))
        spikes, _ = self.lif3(self.fc(spikes.flatten(2)))
        return spikes.sum(dim=0)


def dyadic(model: nn.Module, scale: float) -> nn.Module:
    """Weights that are sixteenths; decays and thresholds stay."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("weight", "bias")):
                value.copy_((torch.randn_like(value) * scale * 16).round() / 16)
    return model.eval()


def assert_reference(program: Program, x: np.ndarray, given: np.ndarray | Events, **options: object) -> None:
    """Every spike of every layer, in both precisions of the reference."""
    wires = [step.name for step in program.spiking]
    engine = EventEngine(program, x.shape[1], **options).run(given, record=wires)  # type: ignore[arg-type]
    for dtype in (np.float32, np.float64):
        run = reference.run(program, x, dtype=dtype, record=wires)
        assert run.spikes == engine.spikes and all(run.spikes.values())
        for wire in wires:
            assert np.array_equal(run.wires[wire], engine.wires[wire]), wire


@pytest.mark.parametrize("native", [None, False])
def test_the_demo_through_its_file(tmp_path: Path, native: bool | None) -> None:
    x = (torch.rand(STEPS, 6, 20, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    program = spikedeploy.convert(dyadic(Digits(), 0.5), x[:, :1])
    nir.write(program, tmp_path / "digits.nir")
    assert_reference(read(tmp_path / "digits.nir"), x.numpy(), x.numpy(), native=native)


@pytest.mark.parametrize("native", [None, False])
def test_a_camera_from_address_events(native: bool | None) -> None:
    x = (np.random.default_rng(0).random((STEPS, 2, 2, 18, 18)) < 0.08).astype(np.float32)
    program = spikedeploy.convert(dyadic(Camera(), 0.5), torch.from_numpy(x[:, :1]))
    time, sample, index = np.nonzero(x.reshape(STEPS, 2, -1))
    assert_reference(program, x, Events(index, time, STEPS, sample=sample), native=native)
