"""Six planted faults: each is carried into a NIR file by the exporter, and verify must catch each in the file, against the torch model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import snntorch
import torch
from torch import Tensor, nn

from spikedeploy import steps as S
from spikedeploy.conversion import convert
from spikedeploy.exporters import nir
from spikedeploy.program import Program
from spikedeploy.readers.nir import read
from spikedeploy.verify import verify

torch.set_num_threads(1)
WIDTH = 6
BETA = torch.linspace(0.6, 0.95, WIDTH)


class Network(nn.Module):
    """Three layers of one width (so that a transposed weight still fits), graded spikes, and a skip around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(WIDTH, WIDTH), snntorch.StateLeaky(BETA, WIDTH, graded_spikes_factor=0.75)
        self.fc2, self.lif2 = nn.Linear(WIDTH, WIDTH), snntorch.StateLeaky(0.8, WIDTH, graded_spikes_factor=0.75)
        self.fc3, self.lif3 = nn.Linear(WIDTH, WIDTH), snntorch.StateLeaky(0.9, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first, _ = self.lif1(self.fc1(x))
        second, _ = self.lif2(self.fc2(first))
        third, _ = self.lif3(self.fc3(second + first))
        return third


def edited(program: Program, edit: Callable[[S.Step], S.Step]) -> Program:
    return replace(program, steps=tuple(edit(step) for step in program.steps))


def beta_for_decay(program: Program) -> Program:
    """The library's `beta` where exp(-1/tau) belongs."""
    decay = BETA.numpy().astype(np.float32)
    return edited(program, lambda s: replace(s, decay=decay) if s.name == "lif1.mem" else s)  # type: ignore[call-arg]


def single_graded_factor(program: Program) -> Program:
    """The factor once, where snnTorch 1.0.0 applies it twice."""
    half = np.array(0.75, np.float32)
    return edited(program, lambda s: replace(s, amplitude=half) if s.name == "lif1" else s)  # type: ignore[call-arg]


def dropped_skip(program: Program) -> Program:
    """The sum of two branches loses one."""
    (add,) = (s for s in program.steps if isinstance(s, S.Add))
    return edited(program, lambda s: replace(s, inputs=s.inputs[:1]) if s is add else s)


def transposed_weight(program: Program) -> Program:
    return edited(program, lambda s: replace(s, weight=s.weight.T) if s.name == "fc2" else s)  # type: ignore[attr-defined, call-arg]


def one_step_late(program: Program) -> Program:
    """A delay of one step in front of the second layer."""
    steps: list[S.Step] = []
    for step in program.steps:
        if step.name == "fc2":
            steps.append(S.Delay("late", step.inputs, 1))
            step = replace(step, inputs=("late",))
        steps.append(step)
    return replace(program, steps=tuple(steps))


def not_strict(program: Program) -> Program:
    """`>=` where the model fires on `>`."""
    return edited(program, lambda s: replace(s, strict=False) if isinstance(s, S.Threshold) else s)


MUTANTS = (beta_for_decay, single_graded_factor, dropped_skip, transposed_weight, one_step_late)


@pytest.fixture(scope="module")
def model() -> Network:
    torch.manual_seed(1)
    network = Network()
    for layer in (network.fc1, network.fc2, network.fc3):
        nn.init.normal_(layer.weight, std=1.0)
    return network.eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 4, WIDTH)).astype(np.float32)


def write(program: Program, path: Path) -> Path:
    """Without the exporter's own comparison: the mutant is the program that it is given."""
    return nir.write(program, path, profile="spec")


def test_the_sound_model_passes(model: Network, x: np.ndarray, tmp_path: Path) -> None:
    certificate = verify(model, write(convert(model, torch.from_numpy(x)), tmp_path / "sound.nir"), x)
    assert certificate.passed and certificate.mismatches == 0, str(certificate)
    assert sum(check.decisions for check in certificate.layers if "sound" in check.party) == 3 * x.size


@pytest.mark.parametrize("mutate", MUTANTS)
def test_a_mutant_is_caught_in_the_nir_file(mutate: Callable[[Program], Program], model: Network, x: np.ndarray, tmp_path: Path) -> None:
    mutant = mutate(convert(model, torch.from_numpy(x)))
    certificate = verify(model, write(mutant, tmp_path / "mutant.nir"), x)
    assert certificate.verdict == "different"
    assert "mutant.nir" in certificate.first_failure()
    guilty = [check for check in certificate.layers if check.mismatches or (check.membrane_of_bound or 0) > 1]
    assert {check.party for check in guilty} == {"mutant.nir (float32)"}  # neither the torch model nor the reference is blamed


@pytest.mark.parametrize("mutate", MUTANTS)
def test_a_mutant_is_caught_on_random_input_too(
    mutate: Callable[[Program], Program], model: Network, x: np.ndarray, tmp_path: Path
) -> None:
    program = convert(model, torch.from_numpy(x))
    assert not verify(program, write(mutate(program), tmp_path / "mutant.nir"), steps=32, batch=4).passed


def test_not_strict_is_caught_in_what_is_read(model: Network, x: np.ndarray, tmp_path: Path) -> None:
    """NIR's neurons cannot say `>=`, so the fault can only be in the reading: it shows on an exact tie alone."""
    program = convert(model, torch.from_numpy(x))
    sound = read(write(program, tmp_path / "sound.nir"))
    certificate = verify(model, not_strict(sound), x)
    assert not certificate.passed and "exact tie" in certificate.first_failure()


def test_the_layer_that_is_wrong_is_named(model: Network, x: np.ndarray, tmp_path: Path) -> None:
    """Every layer gets the reference's spikes, so a fault in the second does not spread to the third's verdict."""
    mutant = transposed_weight(convert(model, torch.from_numpy(x)))
    certificate = verify(model, write(mutant, tmp_path / "mutant.nir"), x)
    assert {check.layer for check in certificate.layers if check.mismatches} == {"lif2"}
    assert [check.downstream > 0 for check in certificate.layers if "mutant" in check.party] == [False, True, True]
