"""The routes of `leaky_scan` against the naive loop in float64, and the properties that every route has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import StateLeaky, Surrogate, leaky_scan, scan_linear
from spikedeploy.nn.surrogate import KINDS, recognise

LINEAR = ("iterative", "convolution", "prefix", "associative", "speculative", *(("native",) if native.available() else ()))
RESETTING = tuple(method for method in ("iterative", "speculative", "native") if method in LINEAR)
CASES = [*itertools.product(LINEAR, ["none"], [True]), *itertools.product(RESETTING, ["subtract", "zero"], [True])]
BOUND = {"iterative": 1e-7, "convolution": 2e-7, "prefix": 1e-7, "associative": 1e-7, "speculative": 1e-7, "native": 1e-7}
"""Membrane error in units of max|u|, float32 with a wide state: half a rounding, and for the FFT its own error."""

shapes = st.tuples(st.integers(1, 67), st.integers(1, 3), st.integers(1, 18))


def naive(x, decay, initial):
    """The specification in NumPy, float64."""
    u, membranes = initial.astype(np.float64), []
    for x_t in x.astype(np.float64):
        u = decay * u + x_t
        membranes.append(u)
    return np.stack(membranes)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(LINEAR), st.integers(0, 2**31), st.booleans(), st.sampled_from([None, 1, 2, 7]))
def test_every_route_gives_the_naive_numbers(shape, method, seed, per_channel, batch_chunk):
    rng = np.random.default_rng(seed)
    x, initial = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1:]).astype(np.float32)
    decay = rng.uniform(0, 1, shape[-1] if per_channel else ()) ** 0.1
    expected = naive(x, decay, initial)
    spk, mem, final = leaky_scan(
        torch.from_numpy(x),
        torch.tensor(decay),
        0.5,
        initial=torch.from_numpy(initial),
        wide_state=True,
        method=method,
        batch_chunk=batch_chunk,
    )
    assert np.abs(mem.numpy() - expected).max() <= BOUND[method] * max(1, np.abs(expected).max())
    assert torch.equal(spk, (mem > 0.5).float())
    assert np.abs(final.numpy() - expected[-1]).max() <= BOUND[method] * max(1, np.abs(expected).max())


@pytest.mark.parametrize("many", [1, 1 << 30])
@pytest.mark.parametrize("shape", [(1003, 1, 1), (1003, 1, 5), (640, 2, 8), (333, 1, 63), (333, 1, 64)])
def test_prefix_in_blocks_of_time_gives_the_naive_numbers(monkeypatch, shape, many):
    for name, value in (("BLOCK", 4096), ("FEW", 64), ("MANY", many)):
        monkeypatch.setattr(scan_linear, name, value)
    rng = np.random.default_rng(shape[2])
    x, initial = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1:]).astype(np.float32)
    decay = rng.uniform(0, 1, shape[2]) ** 0.01
    expected = naive(x, decay, initial)
    given = torch.from_numpy(x)
    _, mem, final = leaky_scan(given, torch.tensor(decay), None, initial=torch.from_numpy(initial), wide_state=True, method="prefix")
    assert np.abs(mem.numpy() - expected).max() <= BOUND["prefix"] * np.abs(expected).max()
    assert np.abs(final.numpy() - expected[-1]).max() <= BOUND["prefix"] * np.abs(expected).max()
    assert np.array_equal(given.numpy(), x)


@pytest.mark.parametrize(("method", "reset", "delay"), CASES)
@pytest.mark.parametrize("tau", [True, False])
@pytest.mark.parametrize("steps", [1, 7])
def test_gradcheck(method, reset, delay, tau, steps):
    torch.manual_seed(4)
    x = torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)
    decay = (torch.rand(3, dtype=torch.float64) + (1 if tau else 0)).requires_grad_()
    threshold = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(x, decay, threshold, initial):  # spikes are steps: their numeric gradient says nothing
        return leaky_scan(x, decay, threshold, tau=tau, initial=initial, reset=reset, reset_delay=delay, method=method)[1:]

    assert torch.autograd.gradcheck(run, (x, decay, threshold, initial))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reset", "delay"), [*itertools.product(["none", "subtract", "zero"], [True]), ("subtract", False), ("zero", False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_gradients_are_those_of_the_loop(kind, reset, delay, dtype):
    torch.manual_seed(2)
    base = [torch.randn(30, 2, 9), torch.rand(9) * 0.9, torch.rand(9) + 0.2, torch.rand(9) + 0.5, torch.randn(2, 9)]
    weights = [torch.randn(30, 2, 9, dtype=dtype), torch.randn(30, 2, 9, dtype=dtype), torch.randn(2, 9, dtype=dtype)]
    grads = []
    for method in ("iterative", "native"):
        x, decay, threshold, graded, initial = leaves = [leaf.to(dtype).requires_grad_() for leaf in base]
        results = leaky_scan(
            x,
            decay,
            threshold,
            graded=graded,
            initial=initial,
            reset=reset,
            reset_delay=delay,
            surrogate=Surrogate(kind, 1.5),
            method=method,
        )
        loss = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
        grads.append(torch.autograd.grad(loss, leaves))
    for expected, got in zip(*grads, strict=True):
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < (2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("method", "reset", "delay"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_route_reads_the_future(method, reset, delay, dtype):
    if method == "convolution":
        return  # the FFT mixes all steps: an infinity in the future spoils the past, and docs/training.md says so
    x = torch.randn(40, 2, 5, dtype=dtype)
    broken = x.clone()
    broken[23:] = float("nan")
    whole, cut = (leaky_scan(y, 0.9, 0.7, reset=reset, reset_delay=delay, method=method) for y in (x, broken))
    assert torch.equal(whole[0][:23], cut[0][:23])
    assert torch.equal(whole[1][:23], cut[1][:23])
    assert cut[1][23:].isnan().all()
    assert not cut[0][23:].any()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(CASES), st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from(["plain", "transposed", "sliced", "expanded"])
)
def test_any_layout_and_any_gradients(case, wanted, layout):
    method, reset, delay = case
    torch.manual_seed(0)
    x = {
        "plain": torch.randn(20, 3, 4),
        "transposed": torch.randn(3, 20, 4).transpose(0, 1),
        "sliced": torch.randn(40, 3, 8)[::2, :, ::2],
        "expanded": torch.randn(3, 4).expand(20, 3, 4),
    }[layout]
    leaves = [x.detach(), torch.rand(4), torch.rand(4), torch.rand(4), torch.randn(3, 4)]
    results, grads = [], []
    for contiguous in (True, False):
        inputs = [
            (leaf.contiguous() if contiguous else leaf.detach()).requires_grad_(want) for leaf, want in zip(leaves, wanted, strict=True)
        ]
        y, decay, threshold, graded, initial = inputs
        spk, mem, final = leaky_scan(y, decay, threshold, graded=graded, initial=initial, reset=reset, reset_delay=delay, method=method)
        results.append((spk, mem, final))
        if any(wanted):
            # a rate (a gradient that is one row for all steps), a plain sum (one number), and only then the rest
            loss = spk.sum(0).square().sum() + mem.sum() + (final.square().sum())
            chosen = [leaf for leaf in inputs if leaf.requires_grad]
            grads.append(torch.autograd.grad(loss, chosen, allow_unused=True))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*grads, strict=True) if any(wanted) else ():
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", LINEAR)
def test_gradients_of_every_route_in_float32(method):
    torch.manual_seed(0)
    layer, spec = (
        StateLeaky(torch.linspace(0.5, 0.999, 8), 8, learn_beta=True, learn_threshold=True, method=m) for m in (method, "iterative")
    )
    x, weights = torch.randn(300, 2, 8), torch.randn(2, 300, 2, 8)
    grads = []
    for module, y in ((spec.double(), x.double().requires_grad_()), (layer, x.clone().requires_grad_())):
        spk, mem = module(y)
        loss = (spk * weights[0] + mem * weights[1]).sum()
        grads.append(torch.autograd.grad(loss, [y, module.tau, module.threshold]))
    for expected, got in zip(*grads, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("method", RESETTING)
def test_not_strict_fires_at_the_threshold(reset, method):
    x = torch.tensor([1.0, 0.5, -0.5, 2.0, 0.0]).view(5, 1, 1)  # dyadic: ties are exact
    fired = {strict: leaky_scan(x, 0.5, 1.0, reset=reset, strict=strict, method=method)[0].flatten().tolist() for strict in (True, False)}
    assert fired[True][0] == 0.0
    assert fired[False][0] == 1.0
    zero = leaky_scan(torch.zeros(3, 1, 1), 0.5, 0.0, strict=False, method=method)[0]
    assert zero.all()


@pytest.mark.skipif(not native.available(), reason="needs the native core")
def test_out_is_written_and_guarded():
    x = torch.randn(12, 2, 3, requires_grad=True)
    out = torch.empty(12, 2, 3), torch.empty(12, 2, 3)
    spk, mem, _ = leaky_scan(x, 0.9, 0.5, out=out)
    assert spk.data_ptr() == out[0].data_ptr()
    assert mem.data_ptr() == out[1].data_ptr()
    assert torch.equal(mem, leaky_scan(x, 0.9, 0.5)[1])
    leaky_scan(x, 0.5, 0.5, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mem.sum().backward()


def test_a_surrogate_of_ones_own():
    own = lambda u: Surrogate("fast_sigmoid", 3.0)(u)  # noqa: E731
    grads = []
    for surrogate, reset in itertools.product((own, Surrogate("fast_sigmoid", 3.0)), ("none", "subtract")):
        torch.manual_seed(0)
        x = torch.randn(20, 2, 3, requires_grad=True)
        spk, _, _ = leaky_scan(x, 0.8, 0.5, reset=reset, surrogate=surrogate)
        grads.append(torch.autograd.grad((spk * torch.randn(20, 2, 3)).sum(), x)[0])
    assert torch.allclose(grads[0], grads[2], atol=1e-6)
    assert torch.allclose(grads[1], grads[3], atol=1e-6)


def test_the_library_s_surrogates_are_recognised():
    from snntorch import surrogate

    assert recognise(surrogate.atan(alpha=3.0)) == Surrogate("atan", 3.0)
    assert recognise(surrogate.fast_sigmoid(slope=7)) == Surrogate("fast_sigmoid", 7.0)
    assert recognise(surrogate.straight_through_estimator()) == Surrogate("straight_through")
    assert recognise(None) == Surrogate("atan", 2.0)
    stochastic = surrogate.SSO()
    assert recognise(stochastic) is stochastic


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = torch.randn(20, 2, 3).to(dtype)
    spk, mem, _ = leaky_scan(x, 0.9, 0.5)
    assert spk.dtype == mem.dtype == dtype
    assert torch.equal(mem, leaky_scan(x.float(), 0.9, 0.5)[1].to(dtype))


def test_a_sequence_of_images():
    x, decay = torch.randn(15, 2, 3, 4, 5), torch.rand(3, 1, 1)
    spk, mem, final = leaky_scan(x, decay, 0.5, reset="zero")
    flat = leaky_scan(x.reshape(15, 2, 60), decay.expand(3, 4, 5).reshape(60), 0.5, reset="zero")
    assert torch.equal(mem.reshape(15, 2, 60), flat[1])
    assert final.shape == (2, 3, 4, 5)
    assert torch.equal(spk.reshape(15, 2, 60), flat[0])


def test_unknown_words_and_routes_that_do_not_apply():
    x = torch.zeros(3, 1, 1)
    with pytest.raises(BadInput, match="a reset needs one"):
        leaky_scan(x, 0.5, None, reset="zero")
    with pytest.raises(BadInput, match="nonlinear in its past"):
        leaky_scan(x, 0.5, reset="zero", method="associative")
    with pytest.raises(BadInput, match="reset 'soft'"):
        leaky_scan(x, 0.5, reset="soft")
    with pytest.raises(BadInput, match="kernels know named surrogates only"):
        leaky_scan(x, 0.5, reset="zero", surrogate=torch.sign, method="native")
