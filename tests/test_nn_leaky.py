"""`spikedeploy.nn.Leaky`, `StateLeaky` and `LinearLeaky` against snnTorch's loop, the reference runtime and float64 autograd."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch.functional.quant import state_quant

from spikedeploy import native
from spikedeploy import nn as deploy
from spikedeploy.errors import BadInput
from spikedeploy.nn import Leaky, LinearLeaky, StateLeaky, Surrogate, leaky_scan
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference
from spikedeploy.steps import LIF, Integrator, Threshold

RESETS = ("none", "subtract", "zero")
shapes = st.tuples(st.integers(1, 70), st.integers(1, 4), st.integers(1, 40))


def library(layer, x, mem=None):
    """snnTorch's layer in a loop."""
    mem = torch.zeros(x.shape[1:]) if mem is None else mem
    spikes, membranes = [], []
    for x_t in x.unbind(0):
        spk, mem = layer(x_t, mem)
        spikes.append(spk)
        membranes.append(mem)
    return torch.stack(spikes), torch.stack(membranes)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(RESETS), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_leaky_is_bit_for_bit_the_library(shape, reset, delay, per_channel, seed):
    torch.manual_seed(seed)
    x = torch.randn(shape)
    size = shape[-1:] if per_channel else ()
    arguments = {
        "beta": torch.rand(size) * 0.6 + 0.4,
        "threshold": torch.rand(size) + 0.3,
        "graded_spikes_factor": 1.5,
        "reset_mechanism": reset,
        "reset_delay": delay,
    }
    mem = torch.randn(shape[1:])
    expected = library(snn.Leaky(**arguments), x, mem)
    layer = Leaky(**arguments)
    got = layer(x, mem)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.skipif(not native.available(), reason="the core's own paths")
@pytest.mark.parametrize("channels", [1030, 1171, 1024])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_too_long_for_the_caches_are_those_of_their_parts(channels, reset, dtype):
    """Above two million cells results bypass the caches where their rows lie well: full blocks, a short last one, odd places."""
    steps, batch = 2**21 // (7 * channels) + 2, 7
    torch.manual_seed(channels)
    x = torch.randn(steps, batch, channels, dtype=dtype)
    grads = [torch.randn_like(x), torch.randn_like(x)]
    layer = Leaky(beta=torch.rand(channels, dtype=dtype), threshold=torch.rand(channels, dtype=dtype) + 0.3, reset_mechanism=reset).to(
        dtype
    )

    def run(part):
        leaf = x[:, part].clone().requires_grad_()
        results = layer(leaf)
        return [*results, *torch.autograd.grad(results, leaf, [g[:, part] for g in grads])]

    whole = run(slice(None))
    for b in range(batch):
        for got, expected in zip(whole, run(slice(b, b + 1)), strict=True):
            assert torch.equal(got[:, b : b + 1], expected)


@pytest.mark.parametrize("method", ["auto", "iterative", "prefix", "speculative"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_decay_outside_of_0_to_1_is_cut_and_has_no_gradient(method, reset):
    """As in the library, which clamps beta at every call; the parameter itself stays."""
    if method == "prefix" and reset != "none":
        return
    torch.manual_seed(2)
    beta = torch.tensor([-0.3, -0.0, 0.0, 0.4, 1.0, 1.0001, 7.0, -float("inf"), float("inf")])
    x, grads = torch.randn(40, 3, len(beta)), [torch.randn(40, 3, len(beta)) for _ in range(2)]
    theirs = snn.Leaky(beta, reset_mechanism=reset, learn_beta=True, threshold=0.7)
    ours = Leaky(beta, 0.7, reset_mechanism=reset, learn_beta=True, method=method)
    found = [
        (results, *torch.autograd.grad(results, layer.beta, grads)) for layer, results in ((theirs, library(theirs, x)), (ours, ours(x)))
    ]
    (expected, slope), (got, own) = found
    assert torch.equal(got[0], expected[0])
    assert relative(got[1], expected[1]) < (1e-5 if method == "prefix" else 1e-30)
    assert torch.equal(own == 0, torch.tensor([1, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool))
    assert relative(own, slope) < 1e-5
    assert torch.equal(ours.beta, beta)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("delay", [True, False])
def test_leaky_is_the_library_where_membranes_are_denormal(beta, reset, delay):
    torch.manual_seed(0)
    x = (torch.rand(1200, 3, 37) < 0.004) * torch.randn(1200, 3, 37) * torch.tensor([1e-3, 1e-30, 2e-38]).view(1, 3, 1)
    x[0] = torch.randn(3, 37)
    spk, mem = library(snn.Leaky(beta, reset_mechanism=reset, reset_delay=delay), x)
    got = Leaky(beta, reset_mechanism=reset, reset_delay=delay)(x)
    assert torch.equal(got[0], spk)
    assert torch.equal(got[1], mem)
    assert ((mem != 0) & (mem.abs() < 1e-38)).float().mean() > 0.01


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("threshold", [0.0, 2.0**-126, 2.0**-140])
def test_a_denormal_membrane_meets_a_threshold_that_fires_at_equality(reset, threshold):
    """One below zero, or below the smallest normal number, does not fire."""
    x = (torch.rand(200, 3, 37) < 0.2) * torch.randn(200, 3, 37) * torch.tensor([1.0, 1e-38, 1e-42]).view(1, 3, 1)
    got, expected = (leaky_scan(x, 0.7, threshold, reset=reset, strict=False, method=method) for method in ("auto", "iterative"))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("threshold", [0.0, -0.0, 2.0**-126, 2.0**-140, -(2.0**-140)])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("delay", [True, False])
def test_gradients_see_the_resets_of_denormal_membranes(reset, threshold, strict, delay):
    """They decide at such a threshold, backward as forward, also where gradients are summed with the processor flushing them."""
    torch.manual_seed(1)
    x = (torch.rand(200, 3, 37) < 0.2) * torch.randn(200, 3, 37) * torch.tensor([1.0, 1e-38, 1e-42]).view(1, 3, 1)
    grads, found = [torch.randn_like(x) for _ in range(2)], []
    for method in ("auto", "iterative"):
        leaf, limit = x.clone().requires_grad_(), torch.full((37,), threshold).requires_grad_()
        graded = torch.full((37,), 1.5).requires_grad_()
        settings = {"reset": reset, "reset_delay": delay, "strict": strict, "method": method, "graded": graded}
        results = leaky_scan(leaf, 0.7, limit, **settings)
        found.append(torch.autograd.grad(results[:2], [leaf, limit, graded], grads))
    for got, expected in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from(["subtract", "zero"]), st.booleans(), st.integers(0, 2**31))
def test_leaky_is_bit_for_bit_the_reference_runtime(shape, reset, delay, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    decay, threshold = (rng.uniform(0.3, 1, shape[-1]).astype(np.float32) for _ in range(2))
    step = LIF("lif", ("input",), decay=decay, threshold=threshold, reset=reset, reset_delay=delay)
    program = Program(shape[2:], (step,), (Output("spk", "lif"), Output("mem", "lif.mem")))
    run = reference.run(program, x, dtype=np.float32)
    layer = Leaky(torch.from_numpy(decay), torch.from_numpy(threshold), reset_mechanism=reset, reset_delay=delay)
    spk, mem = layer(torch.from_numpy(x))
    assert np.array_equal(spk.numpy(), run.outputs["spk"])
    assert np.array_equal(mem.numpy(), run.outputs["mem"])


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 2**31))
def test_state_leaky_is_the_reference_runtime_in_float64(shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    layer = StateLeaky(torch.from_numpy(rng.uniform(0.3, 0.999, shape[-1]).astype(np.float32)), shape[-1], graded_spikes_factor=1.5)
    decay = np.exp(-1 / layer.tau.double().numpy())
    steps = (Integrator("mem", ("input",), decay=decay), Threshold("spk", ("mem",), threshold=np.float64(1), amplitude=np.float64(2.25)))
    run = reference.run(Program(shape[2:], steps, (Output("spk", "spk"), Output("mem", "mem"))), x)
    spk, mem = layer(torch.from_numpy(x))
    assert np.abs(mem.numpy() - run.outputs["mem"]).max() <= 1e-7 * max(1, np.abs(run.outputs["mem"]).max())
    assert np.array_equal(spk.numpy(), run.outputs["spk"])


@pytest.mark.parametrize("tau", [1e2, 1e3, 1e4])
def test_state_leaky_membrane_over_65536_steps(tau):
    torch.manual_seed(0)
    x = torch.randn(65536, 1, 6) + torch.linspace(0, 0.1, 6)
    layer = StateLeaky(0.9, 6, output=False)
    layer.tau.fill_(tau)
    decay, u, worst, biggest = np.exp(-1 / layer.tau.double().item()), np.zeros((1, 6)), 0.0, 0.0
    for x_t, mem in zip(x.numpy(), layer(x).numpy(), strict=True):
        u = decay * u + x_t
        worst, biggest = max(worst, np.abs(mem - u).max()), max(biggest, np.abs(u).max())
    assert worst <= 1e-7 * biggest


@pytest.mark.parametrize("reset", RESETS)
def test_one_step_at_a_time_is_the_whole_sequence(reset):
    x = torch.randn(50, 3, 9)
    layer = Leaky(torch.rand(9), reset_mechanism=reset)
    spk, mem = layer(x)
    state = None
    for t, x_t in enumerate(x):
        now, state = layer.step(x_t, state)
        assert torch.equal(now, spk[t])
        assert torch.equal(state, mem[t])


@pytest.mark.parametrize("truncation", [None, 1, 6, 200])
@pytest.mark.parametrize("method", ["iterative", *(["native"] if native.available() else [])])
def test_state_leaky_continues_bit_for_bit(truncation, method):
    x = torch.randn(90, 2, 5)
    layer = StateLeaky(torch.rand(5), 5, kernel_truncation_steps=truncation, method=method)
    spk, mem = layer(x)
    state, parts = None, []
    for part in x.split([1, 40, 7, 42]):
        one, two, state = layer(part, state, return_state=True)
        parts.append((one, two))
    assert torch.equal(torch.cat([one for one, _ in parts]), spk)
    assert torch.equal(torch.cat([two for _, two in parts]), mem)


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        (Leaky, snn.Leaky, {"beta": torch.rand(4), "learn_beta": True, "reset_mechanism": "zero"}),
        (Leaky, snn.Leaky, {"beta": 0.9, "learn_threshold": True, "learn_graded_spikes_factor": True}),
        (StateLeaky, snn.StateLeaky, {"beta": 0.9, "channels": 4}),
        (StateLeaky, snn.StateLeaky, {"beta": torch.rand(4), "channels": 4, "learn_beta": True, "learn_threshold": True}),
        (LinearLeaky, snn.LinearLeaky, {"beta": 0.8, "in_features": 3, "out_features": 4, "learn_beta": True}),
    ],
)
def test_state_dicts_go_both_ways(ours, theirs, arguments):
    a, b, c = ours(**arguments), theirs(**arguments), ours(**arguments)
    with torch.no_grad():
        for p in a.parameters():
            p.mul_(1.25)
    assert a.state_dict().keys() == b.state_dict().keys()
    b.load_state_dict(a.state_dict())
    c.load_state_dict(b.state_dict())
    assert c.reset_mechanism == a.reset_mechanism
    for name, p in a.named_parameters():
        assert torch.equal(p, dict(b.named_parameters())[name])
        assert torch.equal(p, dict(c.named_parameters())[name])


def test_loading_a_state_dict_sets_the_reset():
    layer = Leaky(0.5)
    layer.load_state_dict(snn.Leaky(0.5, reset_mechanism="zero").state_dict())
    assert layer.reset_mechanism == "zero"
    x = torch.randn(30, 2, 3)
    assert torch.equal(layer(x)[1], library(snn.Leaky(0.5, reset_mechanism="zero"), x)[1])


@pytest.mark.parametrize("surrogate", ["atan", "fast_sigmoid", "straight_through_estimator", "triangular", "sigmoid"])
@pytest.mark.parametrize(("reset", "delay"), [*itertools.product(RESETS, [True]), ("subtract", False), ("zero", False)])
def test_leaky_gradients_are_the_library_s(surrogate, reset, delay):
    torch.manual_seed(3)
    x = torch.randn(12, 3, 7, dtype=torch.float64) * 0.5
    arguments = {
        "beta": torch.rand(7, dtype=torch.float64),
        "threshold": torch.rand(7, dtype=torch.float64) * 0.5 + 0.3,
        "spike_grad": getattr(snn.surrogate, surrogate)(),
        "learn_beta": True,
        "learn_threshold": True,
        "learn_graded_spikes_factor": True,
        "graded_spikes_factor": torch.tensor(2.0, dtype=torch.float64),
        "reset_mechanism": reset,
        "reset_delay": delay,
    }
    weights = torch.randn(2, *x.shape, dtype=torch.float64)
    grads = []
    for layer, run in ((snn.Leaky(**arguments), library), (Leaky(**arguments), lambda layer, x, mem: layer(x, mem))):
        inputs = [x.clone().requires_grad_(), torch.full(x.shape[1:], 0.1, dtype=torch.float64, requires_grad=True)]
        spk, mem = run(layer, *inputs)
        assert layer.spike_grad is not None
        loss = (spk * weights[0] + mem * weights[1]).sum()
        grads.append(torch.autograd.grad(loss, [*inputs, layer.beta, layer.threshold, layer.graded_spikes_factor]))
    for expected, got in zip(*grads, strict=True):
        assert relative(got, expected) < 1e-6  # the library takes its spikes through float32


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", ["straight_through", "atan", "fast_sigmoid"])
def test_the_graded_factor_has_no_gradient_through_a_reset_within_the_step(reset, kind):
    """The library divides spikes by the factor again: the two terms cancel, to the rounding of its spikes, which are float64 here."""
    arguments = {"beta": 0.9, "threshold": 0.5, "reset_mechanism": reset, "reset_delay": False, "spike_grad": Surrogate(kind)}
    x, weights = torch.randn(12, 3, 7, dtype=torch.float64), torch.randn(2, 12, 3, 7, dtype=torch.float64)
    found = []
    for kind_of, run in ((snn.Leaky, library), (Leaky, lambda layer, x, mem: layer(x, mem))):
        layer = kind_of(**arguments, graded_spikes_factor=3.0, learn_graded_spikes_factor=True).double()
        spk, mem = run(layer, x, torch.zeros(3, 7, dtype=torch.float64))
        found.append(torch.autograd.grad((spk * weights[0] + mem * weights[1]).sum(), layer.graded_spikes_factor)[0])
    exact = (weights[0] * (spk > 0)).sum()
    terms = (weights[0] * (spk > 0)).abs().sum()
    assert abs(found[1] - exact) <= 1e-14 * terms
    assert abs(found[0] - exact) <= 1e-6 * terms


def test_gradients_in_float32_are_those_of_float64():
    torch.manual_seed(0)
    x = torch.randn(2000, 2, 16)
    arguments = {"beta": torch.linspace(0.5, 0.9999, 16), "channels": 16, "learn_beta": True, "learn_threshold": True}
    narrow, wide = StateLeaky(**arguments), snn.StateLeaky(**arguments).double()
    weights = torch.randn(2, *x.shape)
    grads = []
    for layer, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        y = x.to(dtype).requires_grad_()
        spk, mem = layer(y)
        loss = (spk * weights[0].to(dtype) + mem * weights[1].to(dtype)).sum()
        grads.append(torch.autograd.grad(loss, [y, layer.tau, layer.threshold]))
    for expected, got in zip(*grads, strict=True):
        assert relative(got.double(), expected) < 1e-5


@pytest.mark.parametrize("graded", [1.0, 1.5])
@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("truncation", [None, 5])
def test_state_leaky_is_the_library(graded, output, quantised, truncation):
    torch.manual_seed(1)
    factor = {"graded_spikes_factor": graded} if output else {}
    quantise = state_quant(num_bits=4) if quantised else False
    arguments = {"beta": 0.7, "channels": 6, "state_quant": quantise, "output": output, "kernel_truncation_steps": truncation, **factor}
    x = torch.randn(60, 2, 6, dtype=torch.float64)
    expected, got = snn.StateLeaky(**arguments).double()(x), StateLeaky(**arguments)(x)
    for a, b in zip(got, expected, strict=True) if output else ((got, expected),):
        assert relative(a.double(), b.double()) < 1e-7


def test_linear_leaky_is_the_library():
    theirs = snn.LinearLeaky(0.8, 3, 5)
    ours = LinearLeaky(0.8, 3, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(30, 4, 3)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert relative(a, b) < 1e-5


def test_leaky_with_quantised_state_is_the_library():
    x = torch.randn(40, 2, 6)
    arguments = {"beta": 0.8, "state_quant": state_quant(num_bits=5, threshold=1)}
    expected, got = library(snn.Leaky(**arguments), x), Leaky(**arguments)(x)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_hidden_state_goes_on_between_calls():
    layer, x = Leaky(0.9, init_hidden=True, output=True), torch.randn(20, 2, 3)
    whole = Leaky(0.9)(x)[1]
    assert torch.equal(torch.cat([layer(x[:8])[1], layer(x[8:])[1]]), whole)
    layer.reset_mem()
    assert torch.equal(layer(x)[1], whole)
    with pytest.raises(TypeError, match="init_hidden"):
        layer(x, torch.zeros(2, 3))


def test_a_layer_survives_copy_and_double():
    layer = Leaky(torch.rand(3), learn_beta=True).double()
    spk, mem = layer(torch.randn(10, 2, 3, dtype=torch.float64))
    assert mem.dtype == spk.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Leaky(0.5, reset_mechanism="soft"), "reset_mechanism 'soft'; one of subtract, zero, none is needed"),
        (lambda: Leaky(0.5, inhibition=True), "inhibition=True"),
        (lambda: Leaky(0.5, spike_grad="arctan"), "'arctan'; one of zero, atan"),
        (lambda: StateLeaky(torch.rand(3), 4), r"beta of shape \(3,\); one value or \(4,\) is needed"),
        (lambda: StateLeaky(0.5, 4, kernel_truncation_steps=0), "kernel_truncation_steps 0; at least 1"),
        (lambda: Leaky(0.5)(torch.zeros(0, 2, 3)), "no empty axis"),
        (lambda: Leaky(0.5)(torch.zeros(4, 2, 3, dtype=torch.int64)), "floating point is needed"),
        (lambda: Leaky(torch.rand(5))(torch.zeros(4, 2, 3)), r"decay of shape \(5,\); one value, \(3,\)"),
        (lambda: Leaky(0.5)(torch.zeros(4, 2, 3), torch.zeros(2, 4)), r"initial state of shape \(2, 4\); \(2, 3\) is needed"),
        (lambda: Leaky(0.5, method="prefix")(torch.zeros(4, 2, 3)), "method 'prefix' with reset 'subtract'"),
        (lambda: Leaky(0.5, method="fast")(torch.zeros(4, 2, 3)), "method 'fast'; one of auto, iterative"),
    ],
)
def test_what_cannot_be_says_so(make, text):
    with pytest.raises(BadInput, match=text):
        make()


@pytest.mark.parametrize("layer", ["Leaky", "StateLeaky", "AssociativeLeaky", "DeltaRuleLeaky", "SpikingLIF"])
def test_compiles(layer: str) -> None:
    """`torch.compile` breaks its graph at the native core instead of failing on it; the numbers are the same."""
    arguments = {"Leaky": (0.9,), "StateLeaky": (0.9, 5), "SpikingLIF": ()}.get(layer, (5, 2, 3))
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), getattr(deploy, layer)(*arguments))
    x = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(model, backend="eager")(x)
    for got, expected in zip(compiled, model(x), strict=True):
        assert torch.equal(got, expected)
