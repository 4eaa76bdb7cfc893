"""A program must do what the torch model does: every option of every neuron, every map and reshape, against snnTorch's own forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch.functional import quant
from torch import Tensor, nn

import spikedeploy
from spikedeploy import steps as S
from spikedeploy.lower.builder import regroup
from spikedeploy.probe import flatten
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference

FLOATS = (np.float64, np.float32)


def torch_outputs(model: nn.Module, x: Tensor) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [y.numpy() for y in flatten(model(x))]


def program_outputs(program: Program, x: Tensor, dtype: Any = np.float64) -> list[np.ndarray[Any, Any]]:
    return list(reference.run(program, x.numpy(), dtype=dtype).outputs.values())


def agree(model: nn.Module, x: Tensor, program: Program | None = None, tolerance: float = 2e-5) -> bool:
    """Whether program and model give the same, in both precisions: spikes differ by whole units, so a tolerance catches each."""
    program = program or spikedeploy.convert(model, x)
    expected = torch_outputs(model, x)
    for dtype in FLOATS:
        found = program_outputs(program, x, dtype)
        if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
            return False
        if any(not np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True)):
            return False
    return True


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


# --- maps, reshapes, operations ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """A module whose forward is the function it is given."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


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
