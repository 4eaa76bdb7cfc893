"""One-step networks: loops over time in a forward, as snnTorch's users write them, and the same wrapped in `OverTime`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import spikedeploy
from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused
from spikedeploy.nn import OverTime
from spikedeploy.nn.overtime import forget
from spikedeploy.probe import flatten
from spikedeploy.runtime import reference
from spikedeploy.verify import verify

X = 3 * torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0))
RESETS: list[dict[str, Any]] = [{"reset_mechanism": r, "reset_delay": d} for r in ("subtract", "zero", "none") for d in (True, False)]


class Two(nn.Module):
    """Two layers of one-step neurons; the subclasses write the loop."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Leaky(0.9, threshold=0.7, **options)
        self.fc2, self.lif2 = (
            nn.Linear(6, 3),
            snn.Leaky(torch.tensor([0.5, 0.7, 0.9]), 0.3, graded_spikes_factor=0.5, learn_beta=True, **options),
        )


class Steps(Two):
    """A fixed number of steps; spikes and membranes are stacked."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for step in range(7):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem=mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes, dim=0), torch.stack(membranes)


class Sums(Two):
    """As many steps as the input has; a running sum, the last membrane, the last spikes."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = torch.zeros(x.shape[1], 6), torch.zeros(x.size(1), 3)
        total: Any = 0
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1) + spk1[..., :3], mem2)
            total = total + mem2
        return total, mem2, spk2


class Iterates(Two):
    """A loop over the input itself, a mean at the end, a skip connection inside."""

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out).mean(0)


class Around(Two):
    """Layers before and after the loop see whole sequences."""

    def forward(self, x: Tensor) -> Any:
        current, mem1, out = self.fc1(x), self.lif1.init_leaky(), []
        for t in range(7):
            spk1, mem1 = self.lif1(current[t], mem1)
            out.append(spk1)
        return self.fc2(torch.stack(out))


class Hidden(Two):
    """Neurons that keep their membranes themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(init_hidden=True, **options)

    def forward(self, x: Tensor) -> Any:
        utils.reset(self)
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x_t)))) for x_t in x.unbind(0)])


class Views(Two):
    """Reshapes inside the loop that name the number of samples."""

    def forward(self, x: Tensor) -> Any:
        batch, mem1, out = x.size(1), self.lif1.init_leaky(), []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t.view(batch, 5, 1).reshape(batch, -1)), mem1)
            out.append(spk1.view(batch, 2, 3))
        return torch.stack(out)


LOOPS = (Steps, Sums, Iterates, Around, Hidden, Views)


def images() -> nn.Module:
    """A convolutional one-step network."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), snn.Leaky(0.8, threshold=0.3, init_hidden=True), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)]
    return OverTime(nn.Sequential(*layers, snn.Leaky(0.9, threshold=0.05, init_hidden=True)))


def test_a_beta_per_image_channel() -> None:
    """Anything that broadcasts to the features is a parameter."""
    model = OverTime(snn.Leaky(torch.tensor([0.5, 0.9]).view(2, 1, 1), threshold=torch.rand(2, 3, 4), init_hidden=True))
    x = torch.randn(6, 2, 2, 3, 4)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.array_equal(reference.run(spikedeploy.convert(model, x), x.numpy(), dtype=np.float32).outputs["output"], expected)


def test_an_image_network_over_time() -> None:
    model, x = images(), 3 * torch.randn(6, 2, 2, 6, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x).numpy()
    found = reference.run(spikedeploy.convert(model, x), x.numpy(), dtype=np.float32).outputs["output"]
    assert np.array_equal(found, expected)
    assert expected.any()


def wrapped(**options: Any) -> nn.Module:
    two = Two(init_hidden=True, **options)
    two.lif2.output = True
    return OverTime(nn.Sequential(two.fc1, two.lif1, two.fc2, two.lif2))


@pytest.mark.parametrize("options", RESETS, ids=lambda o: f"{o['reset_mechanism']}-{o['reset_delay']}")
@pytest.mark.parametrize("make", [*LOOPS, wrapped])
def test_one_step_networks(make: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = make(**options).eval()
    with torch.no_grad():
        expected = flatten(model(X))
    program = spikedeploy.convert(model, X)
    found = list(reference.run(program, X.numpy(), dtype=np.float32).outputs.values())
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.allclose(a, b.numpy(), rtol=1e-5, atol=1e-5)
    assert any(np.count_nonzero(a) for a in found)
    spikedeploy.save(model, tmp_path / "model.pt", X)
    back = spikedeploy.load(tmp_path / "model.pt")
    for _ in range(2):  # the second call starts from zero as well
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(flatten(back(X)), expected, strict=True))
    assert spikedeploy.convert(back).digest == program.digest


def test_a_loop_keeps_the_names_of_its_layers() -> None:
    program = spikedeploy.convert(Steps(), X)
    assert [step.name for step in program.steps if isinstance(step, S.LIF)] == ["lif1", "lif2"]


def test_a_loop_over_the_input_takes_any_length(tmp_path: Path) -> None:
    model = Sums()
    spikedeploy.save(model, tmp_path / "model.pt", X)
    back, longer = spikedeploy.load(tmp_path / "model.pt"), torch.cat([X, X])
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(flatten(back(longer)), flatten(model(longer)), strict=True))


def test_over_time_starts_every_sequence_from_zero() -> None:
    model = wrapped()
    with torch.no_grad():
        first, second = model(X), model(X)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_loop_without_neurons_is_a_loop(tmp_path: Path) -> None:
    class Plain(Two):
        def forward(self, x: Tensor) -> Any:
            return torch.stack([torch.relu(self.fc1(x_t)) for x_t in x])

    model = Plain()
    assert [type(step).__name__ for step in spikedeploy.convert(model, X).steps] == ["Affine", "Activation"]
    spikedeploy.save(model, tmp_path / "model.pt", X)
    with torch.no_grad():
        assert torch.equal(spikedeploy.load(tmp_path / "model.pt")(X), model(X))


class Other(Two):
    """Loops that cannot be rolled, by number."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, x: Tensor) -> Any:
        mem, out, before = self.lif1.init_leaky(), [], x[0] if self.which == 0 else None
        for t in range(7):
            current = self.fc1(x[t])
            if self.which == 0 and t:
                current = current + self.fc1(before)  # a value of the step before
            before = x[t]
            if self.which == 1 and t == 3:
                current = 2 * current  # a step that does something else
            spk, mem = self.lif1(current, mem)
            if self.which == 2:
                mem = 0.5 * mem  # something between the neuron and its membrane
            out.append(spk)
        return torch.stack(out[::-1] if self.which == 3 else out)


@pytest.mark.parametrize("which", range(4))
def test_loops_that_are_more_than_neurons_are_refused(which: int) -> None:
    with pytest.raises(ModelRefused, match="loop over time in the model's forward: "):
        spikedeploy.convert(Other(which), X)


def test_a_membrane_that_does_not_start_at_zero_is_refused() -> None:
    class Warm(Two):
        def forward(self, x: Tensor) -> Any:
            mem, out = torch.ones(x.shape[1], 6), []
            for x_t in x:
                spk, mem = self.lif1(self.fc1(x_t), mem)
                out.append(spk)
            return torch.stack(out)

    with pytest.raises(ModelRefused, match="the membrane of 'lif1' does not start at zero"):
        spikedeploy.convert(Warm(), X)


def test_a_sum_divided_by_the_number_of_steps_in_a_loop_is_refused() -> None:
    class Mean(Two):
        def forward(self, x: Tensor) -> Any:
            mem, total = self.lif1.init_leaky(), 0
            for x_t in x:
                spk, mem = self.lif1(self.fc1(x_t), mem)
                total = total + spk
            return total / x.shape[0]

    with pytest.raises(ModelRefused, match=r"mean\(0\)|number of steps"):
        spikedeploy.convert(Mean(), X)


class Remembering(nn.Module):
    """As in snnTorch's tutorials: the neurons keep their membranes from call to call, and whoever trains resets them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), snn.Leaky(beta=0.9, threshold=0.3, init_hidden=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x[step]) for step in range(x.size(0))])


def test_a_model_that_remembers_is_judged_from_rest_and_left_as_it_was() -> None:
    model, x = Remembering(), torch.randn(9, 2, 5)
    model(x)
    before = model.net[1].mem.clone()  # type: ignore[union-attr, operator]
    assert before.any()
    certificate = verify(model, None, x.numpy())
    assert certificate.passed and certificate.layers[0].decisions
    assert torch.equal(model.net[1].mem, before)  # type: ignore[arg-type]


def test_a_stored_buffer_called_mem_is_not_a_membrane() -> None:
    layer = nn.Linear(3, 3)
    layer.register_buffer("mem", torch.ones(3))
    forget(layer)
    assert layer.mem.all()  # type: ignore[union-attr, operator]


def test_another_neuron_in_a_loop_is_refused_by_name() -> None:
    class Synapses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snn.Synaptic(alpha=0.9, beta=0.8)

        def forward(self, x: Tensor) -> Tensor:
            spikes, (synapse, membrane) = [], self.lif.init_synaptic()
            for step in range(x.size(0)):
                spike, synapse, membrane = self.lif(x[step], synapse, membrane)
                spikes.append(spike)
            return torch.stack(spikes)

    with pytest.raises(ModelRefused, match=r"layer 'lif' is a Synaptic; .*Use snntorch.Leaky"):
        spikedeploy.convert(Synapses(), X)
