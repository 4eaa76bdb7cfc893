"""A program must do what the torch model does: every map, reshape and operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import Net, agree
from torch import Tensor, nn

import spikedeploy
from spikedeploy.lower.builder import regroup


def per_step(m: Any, x: Tensor) -> Tensor:
    """Merge time and batch, apply a layer, part them again."""
    steps, batch = x.shape[0], x.shape[1]
    y = m.layer(x.view(steps * batch, *x.shape[2:]))
    return y.view(steps, batch, *y.shape[1:])


def images(m: Any, x: Tensor) -> Tensor:
    """Functional convolution and pooling."""
    y = F.avg_pool2d(F.conv2d(x.flatten(0, 1), m.layer.weight, None, 1, "same"), 2)
    return y.unflatten(0, x.shape[:2])


def stats(norm: Any) -> nn.Module:
    """Statistics and affine parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(3)
    for name, buffer in norm.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        assert name
    for p in norm.parameters():
        p.data.copy_(torch.rand(p.shape, generator=generator))
    return norm  # type: ignore[no-any-return]


VECTOR, IMAGE = (5, 2, 6), (4, 3, 2, 6, 8)
CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (Net(per_step, layer=nn.Conv2d(2, 4, 3)), IMAGE),
    "conv with everything": (Net(per_step, layer=nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), dilation=(1, 2), groups=2, bias=False)), IMAGE),
    "conv same": (Net(per_step, layer=nn.Conv2d(2, 3, 3, padding="same", dilation=2)), IMAGE),
    "conv valid": (Net(per_step, layer=nn.Conv2d(2, 3, 3, padding="valid")), IMAGE),
    "pool": (Net(per_step, layer=nn.AvgPool2d(2)), IMAGE),
    "pool with everything": (Net(per_step, layer=nn.AvgPool2d((3, 2), stride=(2, 3), padding=(1, 1), divisor_override=5)), IMAGE),
    "adaptive pool": (Net(per_step, layer=nn.AdaptiveAvgPool2d((3, 2))), IMAGE),
    "flatten": (Net(lambda m, x: m.f(x), f=nn.Flatten(2)), IMAGE),
    "flatten after conv": (Net(per_step, layer=nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())), IMAGE),
    "global mean": (Net(lambda m, x: x.mean((-2, -1))), IMAGE),
    "kept sum": (Net(lambda m, x: x.sum(dim=-1, keepdim=True) * x), VECTOR),
    "batch norm": (Net(per_step, layer=stats(nn.BatchNorm1d(6))), VECTOR),
    "batch norm 2d": (Net(per_step, layer=stats(nn.BatchNorm2d(2))), IMAGE),
    "layer norm": (stats(nn.LayerNorm(6, eps=1e-3)), VECTOR),
    "layer norm without bias": (nn.LayerNorm(6, bias=False), VECTOR),
    "layer norm 3d": (stats(nn.LayerNorm((2, 6, 8))), IMAGE),
    "plain layer norm": (nn.LayerNorm(6, elementwise_affine=False), VECTOR),
    "activations": (Net(lambda m, x: torch.tanh(F.gelu(x)) + F.silu(x) * torch.sigmoid(x) - F.relu(x)), VECTOR),
    "modules": (nn.Sequential(nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.Identity(), nn.Dropout(0.9)), VECTOR),
    "gate": (Net(lambda m, x: F.glu(x) + m.g(x)[..., :3], g=nn.GLU(-1)), VECTOR),
    "chunks": (Net(lambda m, x: (lambda a, b: a * b)(*x.chunk(2, dim=-1))), VECTOR),
    "splits": (Net(lambda m, x: torch.split(x, [1, 3, 2], -1)[1]), VECTOR),
    "slices": (Net(lambda m, x: x[..., 1:4] - x[:, :, 2:5]), VECTOR),
    "one channel": (Net(lambda m, x: x[..., 2].unsqueeze(-1) * x), VECTOR),
    "arithmetic": (Net(lambda m, x: (2 - x / 4) * (x + 1.5) - (-x) + 3 * x**2), VECTOR),
    "constants": (Net(lambda m, x: x * m.fc.weight[0] + m.fc.bias, fc=nn.Linear(6, 6)), VECTOR),
    "scaled sum": (Net(lambda m, x: torch.add(x, x, alpha=-0.5) + torch.sub(1, x)), VECTOR),
    "in place": (Net(lambda m, x: m.r(m.fc(x)) + x, fc=nn.Linear(6, 6), r=nn.ReLU(inplace=True)), VECTOR),
    "shape arithmetic": (Net(lambda m, x: x.reshape(x.shape[0], -1, x.size(2) // 2, 2).flatten(2)), VECTOR),
    "heads": (Net(lambda m, x: m.fc(x.unflatten(-1, (2, 3))).reshape(*x.shape[:2], 4), fc=nn.Linear(3, 2)), VECTOR),
    "there and back": (Net(lambda m, x: m.fc(x.transpose(0, 1)).permute(1, 0, 2), fc=nn.Linear(6, 4)), VECTOR),
    "nested results": (Net(lambda m, x: {"a": x + 1, "b": 2 * x}), VECTOR),
    "lists": (Net(lambda m, x: [x + 1, (x * 2, x * 3)]), VECTOR),
    "last": (Net(lambda m, x: (x + 1)[-1]), VECTOR),
    "mean": (Net(lambda m, x: (x + 1).mean(dim=0)), VECTOR),
    "sum by T": (Net(lambda m, x: (x + 1).sum(0) / x.shape[0]), VECTOR),
    "scaled mean": (Net(lambda m, x: 0.5 * (x + 1).mean(0)), VECTOR),
    "max": (Net(lambda m, x: torch.max(x + 1, 0)[0]), VECTOR),
    "amax": (Net(lambda m, x: (x + 1).amax(0)), VECTOR),
    "mean of all": (Net(lambda m, x: (x + 1).mean((0, 2))), VECTOR),
    "readout": (Net(lambda m, x: m.fc((x + 1).mean(0)), fc=nn.Linear(6, 3)), VECTOR),
    "functional": (Net(lambda m, x: F.linear(x, m.fc.weight, bias=m.fc.bias) @ m.fc.weight, fc=nn.Linear(6, 4)), VECTOR),
    "functional images": (Net(images, layer=nn.Conv2d(2, 3, 3)), IMAGE),
    "functional norm": (Net(lambda m, x: F.layer_norm(x, (6,), m.n.weight, eps=1e-3), n=stats(nn.LayerNorm(6))), VECTOR),
    "kept and squeezed": (Net(lambda m, x: (x + 1).mean(0, keepdim=True).squeeze(0)), VECTOR),
    "unused": (Net(lambda m, x: (x.argmax(), m.dead(x), m.fc(x))[2], fc=nn.Linear(6, 6), dead=nn.LSTM(6, 6)), VECTOR),
    "shared layer": (Net(lambda m, x: m.fc(torch.tanh(m.fc(x))), fc=nn.Linear(6, 6)), VECTOR),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_maps_and_operations(name: str) -> None:
    torch.manual_seed(0)
    model, shape = CASES[name]
    x = torch.randn(shape)
    assert agree(model.eval(), x, tolerance=1e-5)


def test_whole_numbers_that_nobody_looks_up_are_numbers() -> None:
    model, x = Net(lambda m, x: m.fc(x.float()), fc=nn.Linear(6, 2)), torch.randint(0, 9, (4, 2, 6))
    program = spikedeploy.convert(model, x)
    assert program.input_kind == "float"
    assert agree(model, x, program)


def test_results_are_named() -> None:
    x = torch.zeros(3, 2, 6)
    assert [o.name for o in spikedeploy.convert(CASES["nested results"][0], x).outputs] == ["a", "b"]
    assert [o.name for o in spikedeploy.convert(CASES["lists"][0], x).outputs] == ["output_0", "output_1", "output_2"]
    assert [(o.name, o.reduce) for o in spikedeploy.convert(CASES["mean"][0], x).outputs] == [("output", "mean")]


def test_wires_carry_the_paths_of_layers() -> None:
    model, x = zoo.deep()
    program = spikedeploy.convert(model, x)
    assert {"layers.0", "layers.0.mem", "layers.0.linear", "layers.2.mem"} <= set(program.wires)
    assert program.origin["layers.1"] == "LinearLeaky"


def test_a_model_that_insists_on_its_own_length_converts() -> None:
    model = Net(lambda m, x: m.n(m.fc(x.reshape(7 * 3, 6)).reshape(7, 3, 4))[0], fc=nn.Linear(6, 4), n=snn.StateLeaky(0.9, 4))
    assert agree(model, 2 * torch.randn(7, 3, 6))


@settings(max_examples=200, deadline=None)
@given(features=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_regrouping_follows_the_numbers(features: list[int], data: st.DataObject) -> None:
    """Label each entry by (t, b) and by feature: a reshape that is allowed keeps every feature vector whole and in order."""
    steps, batch = 3, 2
    size = math.prod(features)
    divisor = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    shape = data.draw(
        st.sampled_from([(steps, batch, divisor, size // divisor), (steps * batch, size), (steps, batch, 1, size), (batch, steps, size)])
    )
    axes = regroup(("T", "B", *("f",) * len(features)), (steps, batch, *features), shape)
    labels = np.arange(steps * batch).reshape(steps, batch, *(1,) * len(features)) + np.zeros((steps, batch, *features), int)
    moved = labels.reshape(shape)
    leads = 2 if shape[:2] == (steps, batch) else 1 if shape[0] == steps * batch else 0
    if leads == 0:
        assert axes is None
        return
    assert axes is not None
    assert axes[:leads] == (("T", "B"), ("TB",))[leads == 1]
    assert all(axis == "f" for axis in axes[leads:])
    assert np.array_equal(moved.reshape(steps * batch, -1), np.repeat(np.arange(steps * batch)[:, None], size, axis=1))
