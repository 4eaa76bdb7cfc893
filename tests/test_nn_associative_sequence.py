"""AssociativeLeaky: what must not change its numbers: pieces, the future, layouts, threads, surrogates; and what extremes must not do."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from associative_loops import METHODS, every_method, loop, make, reference_states
from memory_gradients import close, gradients

from spikedeploy import native
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, memory_native
from spikedeploy.nn.surrogate import KINDS, Surrogate


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("kind", KINDS)
def test_every_surrogate_runs_fused(kind: str) -> None:
    surrogate = Surrogate(kind, 3.0)
    layer = make(5, 9, 2, method="native", spike_grad=surrogate).double()
    x, start = torch.randn(70, 2, 2, dtype=torch.float64), torch.randn(2, 5, 9, dtype=torch.float64)
    expected = gradients(lambda x, s: loop(layer, x, s, surrogate), layer, x, start)
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-9, name)


@every_method
def test_only_what_asks_for_a_gradient_gets_one(method: str) -> None:
    layer = make(3, 4, 2, method=method, chunk=8)
    x = torch.randn(20, 2, 2)
    full = gradients(lambda x, s: layer(x, s, return_state=True), layer, x, torch.zeros(2, 3, 4, dtype=torch.float64))
    for only in ("to_v.weight", "to_alpha.bias", "to_q.weight"):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name == only)
        seed = torch.Generator().manual_seed(5)
        y = layer(x)
        assert isinstance(y, torch.Tensor)
        (y * torch.randn(y.shape, generator=seed)).sum().backward()
        got = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        assert list(got) == [only]
        if only == "to_q.weight":
            close(got[only], full[only], 1e-6)
        layer.zero_grad()
    assert not layer.requires_grad_(False)(x).requires_grad


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("use_q", [False, True])
def test_bits_do_not_depend_on_the_number_of_threads(batch: int, delta: bool, use_q: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take one segment of 128 steps after the other, of all batch elements."""
    monkeypatch.setattr(memory_native, "PARALLEL_FROM", 0)
    torch.manual_seed(4)
    d, n, before, runs = 21, 18, torch.get_num_threads(), []
    packed, q = torch.randn(530, batch, d + 2 * n + delta), (torch.randn(530, batch, d * n),) if use_q else ()
    start, limit = torch.randn(batch, d, n, dtype=torch.float64), torch.rand(d * n)
    given = [x.requires_grad_() for x in (packed, start, limit, *q)]
    try:
        for threads in (1, 2, 3, 4, 9):
            torch.set_num_threads(threads)
            y, last = memory_native.spikes(packed, q, limit, start, Surrogate(), delta)
            runs.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), given)])
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layer_type", [AssociativeLeaky, DeltaRuleLeaky])
def test_bits_of_a_layer_do_not_depend_on_the_number_of_threads(batch: int, layer_type: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes the projections too, and sums their gradients over the batch and over time."""
    monkeypatch.setattr(memory_native, "PARALLEL_FROM", 0)
    torch.manual_seed(4)
    layer, before, runs = layer_type(5, 21, 18, threshold=0.3, learn_threshold=True), torch.get_num_threads(), []
    x, start = torch.randn(1070, batch, 5), torch.randn(batch, 21, 18, dtype=torch.float64)
    try:
        for threads in (1, 2, 3, 4, 9):
            torch.set_num_threads(threads)
            runs.append(gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(other[name], value) for name, value in runs[0].items())


FEWER_THREADS = """
import torch
from spikedeploy.nn import AssociativeLeaky, memory_native
memory_native.PARALLEL_FROM = 0
torch.manual_seed(4)
layer, x, runs = AssociativeLeaky(5, 21, 18), torch.randn(1070, 2, 5, requires_grad=True), []
for threads in (1, 4):
    torch.set_num_threads(threads)
    y = layer(x)
    runs.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
print(all(torch.equal(a, b) for a, b in zip(*runs)))
"""


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("setting", [{"OMP_THREAD_LIMIT": "2"}, {"OMP_THREAD_LIMIT": "3"}, {"OMP_DYNAMIC": "true"}])
def test_bits_do_not_depend_on_how_many_threads_openmp_gives(setting: dict[str, str]) -> None:
    """It may give fewer than are asked for."""
    command = [sys.executable, "-c", FEWER_THREADS]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **setting}, timeout=120)
    assert found.stdout == "True\n", found.stderr


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("threshold", [-1e9, 1e9, 0.2])
@pytest.mark.parametrize("t, b, d, n, m", [(1, 1, 1, 1, 1), (131, 2, 17, 33, 9), (65, 3, 40, 20, 17), (40, 1, 48, 64, 33)])
def test_any_rate_and_size(threshold: float, t: int, b: int, d: int, n: int, m: int) -> None:
    """Products go over the cells that fire: all of them, none, some; widths that fill the kernel's vectors and that do not."""
    layer = make(d, n, m, method="native", threshold=threshold, spike_grad="straight_through").double()
    x, start = torch.randn(t, b, m, dtype=torch.float64), torch.randn(b, d, n, dtype=torch.float64)
    expected = gradients(lambda x, s: loop(layer, x, s, Surrogate("straight_through")), layer, x, start)
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-9, name)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("hooked", ["to_q", "to_k"])
def test_maps_with_hooks_are_called(hooked: str) -> None:
    """The kernel makes the plain ones; what a hook sees and changes is made outside of it."""
    layer, seen = make(5, 6, 3, method="native").double(), []
    getattr(layer, hooked).register_forward_hook(lambda module, inputs, y: seen.append(y) or y * 2)
    x, start = torch.randn(70, 2, 3, dtype=torch.float64), torch.zeros(2, 5, 6, dtype=torch.float64)
    found = gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start)
    assert len(seen) == 1
    expected = gradients(lambda x, s: loop(layer, x, s, Surrogate()), layer, x, start)
    for name, value in expected.items():
        close(found[name], value, 1e-9, name)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("retention, steps", [(None, 700), (1000.0, 700), (None, 20_000)])
@pytest.mark.parametrize("kind", ["fast_sigmoid", "sigmoid"])
def test_float32_gradients_where_the_surrogate_is_steep(kind: str, retention: float | None, steps: int) -> None:
    """The kernel makes what writes the state in float64, so the slope of a spike is taken where it is."""
    found, x, seed = [], torch.randn(steps, 1, 16), torch.randn(steps, 1, 256)
    for dtype in (torch.float32, torch.float64):
        options: dict[str, Any] = {
            "spike_grad": kind,
            "initial_retention": retention,
            "threshold": torch.ones(256),
            "learn_threshold": True,
        }
        layer = make(16, 16, 16, method="native", **options).to(dtype)
        given = x.to(dtype, copy=True).requires_grad_()
        wanted = {"x": given, **dict(layer.named_parameters())}
        found.append(dict(zip(wanted, torch.autograd.grad(layer(given), list(wanted.values()), seed.to(dtype)), strict=True)))
    for name, wide in found[1].items():
        close(found[0][name], wide, 1e-5, name)


def test_dyadic_models_are_bit_equal() -> None:
    """alpha = sigmoid(0) = 1/2 and whole weights: every operation is exact, ties at the threshold included."""
    layers = [make(3, 4, 2, method=method) for method in METHODS]
    for layer in layers:
        with torch.no_grad():
            for parameter, value in layer.named_parameters():
                value.zero_() if parameter.startswith("to_alpha") else value.copy_(torch.round(value * 3))
    x = torch.randint(-1, 2, (20, 2, 2)).float()
    with torch.no_grad():
        states, outputs = [layer.memory(x) for layer in layers], [layer(x) for layer in layers]
    assert torch.equal(states[0].double(), torch.from_numpy(reference_states(layers[0], x)))
    assert bool((states[0] == 1).any()), "a tie must occur"
    for other, y in zip(states[1:], outputs[1:], strict=True):
        assert torch.equal(other, states[0])
        assert torch.equal(y, outputs[0])


@every_method
@pytest.mark.parametrize("logit", [-14.0, 14.0])
def test_extreme_decays(method: str, logit: float) -> None:
    """alpha at 1e-6 and at 1 - 1e-6."""
    layer = make(3, 4, 2, method=method)
    with torch.no_grad():
        layer.to_alpha.bias.fill_(logit)
    x = torch.randn(300, 1, 2)
    with torch.no_grad():
        close(layer.memory(x), torch.from_numpy(reference_states(layer, x)), 1e-6)


def test_the_torch_forms_do_not_hold_the_state_of_the_whole_sequence() -> None:
    layer, saved = make(8, 8, 2, method="prefix", chunk=64, use_q_projection=False), []
    x = torch.randn(2048, 1, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(saved) < 2048 * 64, "all saved tensors together are smaller than S over the sequence"
