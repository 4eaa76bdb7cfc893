"""Verified chunks against the loop, to the bit: `method="speculative"`, which `auto` takes where nothing is compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikedeploy.errors import BadInput
from spikedeploy.nn import Leaky, Surrogate, leaky_scan, scan_speculative, speculate
from spikedeploy.nn.neuron import Neuron
from spikedeploy.nn.scan import choose
from spikedeploy.nn.surrogate import KINDS

RESETS = [("none", True), ("subtract", True), ("zero", True), ("subtract", False), ("zero", False)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and not speculate.apart(a, b).any()


def chunks_of(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut time this short whatever the decay is: guesses are wrong then, and repairs needed."""
    monkeypatch.setattr(speculate, "SHORTEST", steps)
    monkeypatch.setattr(speculate, "memory", lambda decay, dtype: 0)
    monkeypatch.setattr(scan_speculative, "BLOCK", 64)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.sampled_from([1, 2, 9, 64, 100, 257]), st.integers(1, 2), st.sampled_from([1, 3, 17, 150])),
    st.sampled_from(RESETS),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([1, 3, 20, 32]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.integers(0, 2**31),
)
def test_the_bits_and_the_gradients_of_the_loop(
    shape: tuple[int, int, int], how: tuple[Any, bool], words: tuple[bool, bool, bool], shortest: int, decay: float, seed: int
) -> None:
    (reset, delay), (strict, wide_state, wide), generator = how, words, torch.Generator().manual_seed(seed)
    dtype = torch.float64 if wide else torch.float32

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    given = [draw(*shape), (decay + draw(shape[2]) / 100).clamp(0, 1), draw(shape[2]).abs() / 2 + 0.1, draw(1), draw(*shape[1:])]
    weights, outcomes = [draw(*shape), draw(*shape), draw(*shape[1:])], []
    with pytest.MonkeyPatch.context() as monkeypatch:
        chunks_of(shortest, monkeypatch)
        for method in ("iterative", "speculative"):
            x, d, threshold, graded, initial = leaves = [leaf.clone().requires_grad_() for leaf in given]
            results = leaky_scan(
                x, d, threshold, graded=graded, initial=initial, reset=reset, reset_delay=delay, strict=strict, wide_state=wide_state,
                surrogate=Surrogate("fast_sigmoid", 2.0), method=method,
            )  # fmt: skip
            loss = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
            outcomes.append((results, torch.autograd.grad(loss, leaves)))
    (expected, wanted), (got, grads) = outcomes
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
    for a, b in zip(grads, wanted, strict=True):
        assert (a - b).abs().max() <= (2e-5 if dtype == torch.float32 else 1e-10) * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_gradients_are_those_of_the_loop_in_float64(kind: str, reset: Any, delay: bool) -> None:
    """Spikes and membranes of float32, their gradients within 1e-5 of autograd through the loop in float64 on the same numbers."""
    steps = 300 if delay else 20  # through a reset within the step gradients grow without bound
    given = [torch.randn(steps, 2, 5), torch.rand(5) * 0.5 + 0.45, torch.rand(5) + 0.2, torch.rand(5) + 0.5, torch.randn(2, 5)]
    weights, found = torch.randn(2, steps, 2, 5), []
    for method, dtype in (("iterative", torch.float64), ("speculative", torch.float32)):
        x, decay, threshold, graded, initial = leaves = [leaf.to(dtype).requires_grad_() for leaf in given]
        how = {"reset": reset, "reset_delay": delay, "surrogate": Surrogate(kind, 0.5), "method": method}
        spk, mem, _ = leaky_scan(x, decay, threshold, graded=graded, initial=initial, **how)
        found.append([spk.detach() > 0, *torch.autograd.grad((spk * weights[0] + mem * weights[1]).sum(), leaves)])
    (expected_spikes, *expected), (spikes, *got) = found
    assert torch.equal(spikes, expected_spikes), "a membrane within a rounding of its threshold: the two are different networks"
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize(("reset", "delay"), RESETS)
@pytest.mark.parametrize("steps", [1, 7])
def test_gradcheck_in_many_chunks(reset: Any, delay: bool, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(2, monkeypatch)
    draw = partial(torch.randn, dtype=torch.float64)
    x, decay, threshold, initial = draw(9, 2, 3), draw(3).sigmoid(), draw(3).abs() + 0.2, draw(2, 3)
    zero = Surrogate("zero")  # a spike is a step: what its surrogate says is held against the loop above

    def run(*leaves: Tensor) -> Any:
        x, decay, threshold, initial = leaves
        how = {"reset": reset, "reset_delay": delay, "surrogate": zero, "method": "speculative"}
        return leaky_scan(x[:steps], decay, threshold, initial=initial, **how)[1:]

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in (x, decay, threshold, initial)])


@pytest.mark.parametrize("length", [1, 7, 50])
@pytest.mark.parametrize("lanes", [2, 300])
def test_a_state_that_never_forgets_is_right_all_the_same(length: int, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every guess is wrong: few rounds, and then chunk after chunk in order. Each step runs three times at most, and none for ever."""
    chunks_of(length, monkeypatch)
    calls = []

    def count(state: Tensor, x: Tensor, *, out: Tensor) -> None:
        calls.append(1)
        torch.add(state, x, out=out)

    x = torch.randint(1, 9, (253, lanes)).double()
    assert torch.equal(speculate.speculate(count, [x], torch.zeros(lanes).double(), 1.0), x.cumsum(0))
    assert len(calls) <= 253 + 3 * 253 // max(1, min(253 // length, speculate.WIDTH // lanes)) + 2 * length + 253
    x[100] = float("nan")
    spoiled = speculate.speculate(count, [x], torch.zeros(lanes).double(), 1.0)
    assert torch.equal(spoiled[:100], x[:100].cumsum(0))
    assert spoiled[100:].isnan().all()


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("shortest", [2, 16, 300])
@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_it_is_the_library_s_loop_where_membranes_are_denormal(
    reset: Any, decay: float, shortest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks_of(shortest, monkeypatch)
    x = (torch.rand(600, 3, 7) < 0.02) * torch.randn(600, 3, 7) * torch.tensor([1.0, 1e-30, 2e-38]).view(1, 3, 1)
    x[::50] *= -0.0  # signed zeros on the way
    library, mem, membranes = snntorch.Leaky(decay, reset_mechanism=reset), torch.zeros(3, 7), []
    for x_t in x:
        mem = library(x_t, mem)[1]
        membranes.append(mem)
    assert same_bits(Leaky(decay, reset_mechanism=reset, method="speculative")(x)[1], torch.stack(membranes))


@pytest.mark.parametrize(("reset", "delay"), RESETS)
@pytest.mark.parametrize(("dtype", "lanes"), [(torch.float32, 3), (torch.float32, 300), (torch.float64, 3)])
def test_silence_costs_no_more_than_noise(reset: Any, delay: bool, dtype: torch.dtype, lanes: int) -> None:
    """After the last input a state of either sign fades for thousands of steps and comes to rest beside zero. A silent chunk begins so:
    were it not guessed, each would wait for the one before, and all steps would be run one after the other."""
    memory, neuron, calls = speculate.memory(0.9, dtype), Neuron(reset, reset_delay=delay), []
    steps, fading = 40 * memory, int(np.log(float(speculate.resting(torch.tensor(0.9, dtype=dtype)))) / np.log(0.9))
    decay, threshold = torch.linspace(0.4, 0.9, lanes, dtype=dtype), torch.ones(lanes, dtype=dtype)
    x, start = torch.zeros(steps, lanes, dtype=dtype), torch.randn(lanes).to(dtype)
    x[:9], x[steps // 2, ::2] = torch.randn(9, lanes), -0.5

    def step(*given: Tensor, out: Tensor) -> None:
        calls.append(1)
        scan_speculative.step(neuron, *given, out=out)

    found = speculate.speculate(step, [x], start, 0.9, [decay, threshold], speculate.resting(decay))
    assert len(calls) < fading + 6 * memory < steps
    expected = torch.empty_like(x)
    speculate.run(partial(scan_speculative.step, neuron), start, [x], [decay, threshold], expected)
    assert same_bits(found, expected)
    assert expected[-1, -1] == speculate.resting(decay)[-1].copysign(x[steps // 2, -1] if lanes % 2 else x[:9, -1].sum())


@pytest.mark.parametrize("decay", [0.5, 0.51, 0.75, 0.9, 0.999, 1 - 2**-10, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_state_comes_to_rest(decay: float, dtype: torch.dtype) -> None:
    d, smallest = torch.tensor(decay, dtype=dtype), torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rest = speculate.resting(d)
    units = rest / smallest
    state = (units + 40) * smallest
    for _ in range(80_000):
        state, before = state * d, state
        if same_bits(state, before):
            break
    if decay == 0.5:
        assert state == 0 and units == 1  # half a unit is rounded to even: no rest, and `speculate` sees it
    elif decay < 1:
        assert same_bits(state, rest)
    else:
        assert rest == 0


def test_chunks_are_as_long_as_the_memory_of_the_neuron() -> None:
    assert speculate.memory(0.0, torch.float32) == 0
    assert speculate.memory(0.9, torch.float32) == 190
    assert speculate.memory(0.9, torch.float64) > 2 * speculate.memory(0.9, torch.float32)
    assert speculate.memory(1.0, torch.float32) > 10**9
    assert speculate.memory(float("nan"), torch.float32) > 10**9


def test_auto_takes_it_where_nothing_is_compiled() -> None:
    x = torch.empty(1000, 1, 1, device="meta")  # neither a CPU nor a GPU
    assert choose(x, Neuron("subtract")) == "speculative"
    assert choose(x, Neuron("none")) == "speculative"
    assert choose(x[:2], Neuron("zero")) == "iterative"
    assert choose(x, Neuron("none", wide_state=True)) == "prefix"
    assert choose(x, Neuron("zero", surrogate=torch.sigmoid)) == "iterative"


def test_a_surrogate_of_ones_own() -> None:
    x = torch.randn(40, 2, 3, requires_grad=True)
    spk, _, _ = leaky_scan(x, 0.9, 0.5, surrogate=lambda u: Surrogate("sigmoid")(u), method="speculative")
    named, _, _ = leaky_scan(x, 0.9, 0.5, surrogate="sigmoid", method="speculative")
    torch.testing.assert_close(*(torch.autograd.grad(s.sum(), x)[0] for s in (spk, named)))
    with pytest.raises(BadInput, match="named surrogates only"):
        leaky_scan(x, 0.9, 0.5, reset="zero", surrogate=torch.sigmoid, method="speculative")


def test_membranes_without_a_threshold() -> None:
    x = torch.randn(40, 2, 3)
    for a, b in zip(*(leaky_scan(x, 0.9, None, method=m) for m in ("iterative", "speculative")), strict=True):  # type: ignore[arg-type]
        assert (a is None and b is None) or same_bits(a, b)
