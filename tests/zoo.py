"""A zoo of small models, each as a function that gives the model (in eval mode) and an example input `(T, B, *shape)`.

Seeds are fixed inside, sizes are odd, and inputs are strong enough that every neuron layer both fires and stays silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from snntorch.functional import quant
from torch import Tensor, nn

from spikedeploy import nn as deploy
from spikedeploy.nn.spiking_ssm import SpikingSSM

Zoo = tuple[nn.Module, Tensor]


def _input(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(*shape: int, seed: int = 1) -> Tensor:
    """Small whole numbers: with dyadic weights all sums are exact."""
    return torch.randint(-2, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def _dyadic(model: nn.Module, step: float = 0.25) -> nn.Module:
    """Weights rounded to multiples of `step`."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "weight" in name or "bias" in name:
                p.copy_((p / step * 3).round() * step)
    return model


class TwoLayers(nn.Module):
    """Linear, StateLeaky, Linear, StateLeaky; returns spikes and membrane of the last."""

    def __init__(self, sizes: tuple[int, int, int], beta1: float | Tensor = 0.9, beta2: float | Tensor = 0.8, **options: object) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes[0], sizes[1])
        self.lif1 = snn.StateLeaky(beta=beta1, channels=sizes[1], **options)
        self.fc2 = nn.Linear(sizes[1], sizes[2])
        self.lif2 = snn.StateLeaky(beta=beta2, channels=sizes[2], **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk1, _ = self.lif1(self.fc1(x))
        spk2, mem2 = self.lif2(self.fc2(spk1))
        return spk2, mem2


def plain() -> Zoo:
    torch.manual_seed(0)
    return TwoLayers((5, 7, 3)).eval(), _input(11, 2, 5, scale=2)


def per_channel() -> Zoo:
    torch.manual_seed(1)
    model = TwoLayers((5, 7, 3), torch.linspace(0.5, 0.97, 7), torch.tensor([0.3, 0.9, 0.99]))
    return model.eval(), _input(13, 3, 5, scale=2)


def learned() -> Zoo:
    """Learned beta, threshold and graded factor: `tau` has moved away from the stale `beta`; thresholds differ per channel."""
    torch.manual_seed(2)
    model = TwoLayers((4, 6, 3), torch.full((6,), 0.8), 0.7, learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True)
    with torch.no_grad():
        model.lif1.tau += torch.linspace(0, 4, 6)
        model.lif1.threshold = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        model.lif1.graded_spikes_factor.fill_(1.5)
        model.lif2.tau += 1.25
    return model.eval(), _input(9, 2, 4, scale=2)


def graded() -> Zoo:
    torch.manual_seed(3)
    return TwoLayers((5, 7, 3), graded_spikes_factor=0.75, threshold=0.5).eval(), _input(10, 2, 5, scale=2)


def truncated() -> Zoo:
    torch.manual_seed(4)
    return TwoLayers((5, 6, 3), kernel_truncation_steps=4).eval(), _input(15, 2, 5, scale=2)


def quantised() -> Zoo:
    torch.manual_seed(5)
    levels = quant.state_quant(num_bits=4, uniform=True, threshold=1.0)
    return TwoLayers((5, 6, 3), state_quant=levels).eval(), _input(12, 2, 5, scale=2)


class Membrane(nn.Module):
    """LinearLeaky, then a StateLeaky that returns its membrane only, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lif1 = snn.LinearLeaky(beta=0.85, in_features=6, out_features=9)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(9, 4, bias=False)
        self.out = snn.StateLeaky(beta=0.95, channels=4, output=False)

    def forward(self, x: Tensor) -> Tensor:
        spk, _ = self.lif1(x)
        return self.out(self.fc(self.drop(spk))).mean(0)


def membrane() -> Zoo:
    torch.manual_seed(6)
    return Membrane().eval(), _input(14, 3, 6, scale=2)


class Residual(nn.Module):
    """Two hidden layers with a skip connection around the second, and one around its neuron; spikes summed over time."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, width), snn.StateLeaky(beta=0.9, channels=width)
        self.fc2, self.lif2 = nn.Linear(width, width), snn.StateLeaky(beta=0.7, channels=width)
        self.fc3, self.lif3 = nn.Linear(width, 3), snn.StateLeaky(beta=0.8, channels=3)

    def forward(self, x: Tensor) -> Tensor:
        spk1, _ = self.lif1(self.fc1(x))
        spk2, _ = self.lif2(self.fc2(spk1) + spk1)
        spk3, _ = self.lif3(self.fc3(spk2 + spk1))
        return spk3.sum(dim=0)


def residual() -> Zoo:
    torch.manual_seed(7)
    return Residual().eval(), _input(11, 2, 5, scale=2)


class Conv(nn.Module):
    """Convolution and pooling on time and batch merged; the neurons see (T, B, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.lif1 = snn.StateLeaky(beta=0.8, channels=3 * 3 * 4)
        self.fc = nn.Linear(3 * 3 * 4, 5)
        self.lif2 = snn.StateLeaky(beta=0.9, channels=5)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        h = self.pool(self.conv(x.flatten(0, 1)))
        spk, _ = self.lif1(h.reshape(steps, batch, -1))
        spk, _ = self.lif2(self.fc(spk))
        return spk


def conv() -> Zoo:
    torch.manual_seed(8)
    return Conv().eval(), _input(7, 2, 2, 6, 8, scale=3)


class Gen2(nn.Module):
    """snnTorch's associative layer between a Linear and a readout neuron."""

    def __init__(self, use_q: bool = True, m: int = 5, d: int = 3, n: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(m, 6)
        self.mem1 = snn.AssociativeLeaky(6, d, n, d * n, use_q_projection=use_q)
        self.out = nn.Linear(d * d if use_q else d * n, 4)
        self.lif = snn.StateLeaky(beta=0.9, channels=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.lif(self.out(self.mem1(self.fc(x))))


def gen2() -> Zoo:
    torch.manual_seed(9)
    return Gen2().eval(), _input(12, 2, 5, scale=3)


def gen2_plain_readout() -> Zoo:
    torch.manual_seed(10)
    return Gen2(use_q=False).eval(), _input(12, 2, 5, scale=3)


class Tokens(nn.Module):
    """Embedding, LayerNorm, GELU, a gate, an associative layer and a residual: the mixture of a small language model."""

    def __init__(self, rows: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.mem = snn.AssociativeLeaky(width, 2, 3, 6)
        self.down = nn.Linear(4, width)
        self.head = nn.Linear(width, rows)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        y = nn.functional.gelu(self.up(self.norm(h))) * torch.sigmoid(self.gate(h))
        h = h + self.down(self.mem(y))
        return self.head(h)


def tokens() -> Zoo:
    torch.manual_seed(11)
    model = Tokens()
    for layer in (model.mem.to_v, model.mem.to_k, model.up):
        nn.init.normal_(layer.weight, std=1.5)
    return model.eval(), torch.randint(0, 11, (9, 2), generator=torch.Generator().manual_seed(1))


class Norms(nn.Module):
    """BatchNorm folded to a scale, ReLU and SiLU, products between wires, the last membrane as the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.act = nn.SiLU()
        self.lif1 = snn.StateLeaky(beta=torch.linspace(0.4, 0.9, 6), channels=6)
        self.fc2 = nn.Linear(6, 3)
        self.lif2 = snn.StateLeaky(beta=0.9, channels=3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm(self.fc1(x)))
        spk, mem = self.lif1(3 * h)
        spk, mem = self.lif2(self.fc2(torch.relu(mem) * spk))
        return mem[-1]


def norms() -> Zoo:
    torch.manual_seed(12)
    return Norms().eval(), _input(10, 2, 5)


def dyadic() -> Zoo:
    """Gen1 whose arithmetic is exact in float32: weights of few bits and a decay of one half."""
    torch.manual_seed(13)
    model = _dyadic(TwoLayers((5, 7, 3)))
    for lif in (model.lif1, model.lif2):
        lif.tau = torch.tensor(1 / math.log(2))
    return model.eval(), _whole(9, 2, 5)


def dyadic_gen2() -> Zoo:
    """Gen2 with alpha = sigmoid(0) = 1/2 and few-bit weights, over few steps: exact under `recurrence`."""
    torch.manual_seed(14)
    model = _dyadic(Gen2())
    nn.init.zeros_(model.mem1.to_alpha.weight)
    nn.init.zeros_(model.mem1.to_alpha.bias)
    model.lif.tau = torch.tensor(1 / math.log(2))
    return model.eval(), _whole(6, 2, 5)


def one_layer() -> Zoo:
    """A model that is itself one layer."""
    return snn.StateLeaky(beta=0.9, channels=3).eval(), _input(6, 2, 3, scale=2)


def deep() -> Zoo:
    """Three layers of odd widths, largest membrane over time as the answer."""
    torch.manual_seed(15)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(snn.LinearLeaky(0.8, m, n) for m, n in ((7, 13), (13, 9), (9, 5)))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, mem = layer(2 * x)
            return mem.max(0).values

    return Deep().eval(), _input(17, 1, 7, scale=2)


class Reset(nn.Module):
    """Two layers of LIF neurons with reset over whole sequences."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), deploy.Leaky(torch.linspace(0.5, 0.95, 6), **options)
        self.fc2, self.lif2 = nn.Linear(6, 3), deploy.Leaky(0.8, threshold=torch.tensor([0.5, 1.0, 0.75]), **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spk, _ = self.lif1(self.fc1(x))
        spk, mem = self.lif2(self.fc2(spk))
        return spk, mem


def leaky_subtract() -> Zoo:
    torch.manual_seed(16)
    return Reset().eval(), _input(13, 2, 5, scale=3)


def leaky_zero() -> Zoo:
    torch.manual_seed(17)
    return Reset(reset_mechanism="zero", reset_delay=False).eval(), _input(13, 2, 5, scale=3)


def leaky_none() -> Zoo:
    torch.manual_seed(18)
    return Reset(reset_mechanism="none", graded_spikes_factor=0.5).eval(), _input(13, 2, 5, scale=3)


class Loop(nn.Module):
    """snnTorch's own style: one-step neurons in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(6, 3), snn.Leaky(beta=0.8, reset_mechanism="zero", learn_beta=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def loop() -> Zoo:
    torch.manual_seed(19)
    return Loop().eval(), _input(9, 2, 5, scale=3)


def our_gen2() -> Zoo:
    """Our Gen2 layer: the recurrence, with sparse keys and a threshold per cell."""
    torch.manual_seed(20)
    layer = deploy.AssociativeLeaky(5, 3, 4, threshold=torch.linspace(0.2, 1.2, 12), topk_k=2, initial_retention=8.0)
    return nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(9, 4)).eval(), _input(21, 2, 5, scale=2)


def gen3() -> Zoo:
    torch.manual_seed(21)
    return nn.Sequential(deploy.DeltaRuleLeaky(5, 3, 4, threshold=0.3), nn.Linear(9, 4)).eval(), _input(15, 2, 5, scale=2)


def ssm() -> Zoo:
    torch.manual_seed(22)
    return SpikingSSM(5, 3, features=6, layers=2, states=8, threshold=0.4).eval(), _input(17, 2, 5, scale=2)


MODELS: dict[str, Callable[[], Zoo]] = {
    f.__name__: f
    for f in (
        plain, per_channel, learned, graded, truncated, quantised, membrane, residual, conv, gen2, gen2_plain_readout, tokens, norms,
        dyadic, dyadic_gen2, one_layer, deep, leaky_subtract, leaky_zero, leaky_none, loop, our_gen2, gen3, ssm,
    )
}  # fmt: skip
"""Every model by name."""
