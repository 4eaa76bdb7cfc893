"""AssociativeLeaky: every route against the reference loop (values) and against autograd through a float64 loop (gradients)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from associative_loops import METHODS, every_method, loop, make, reference_states
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_gradients import agrees_with_the_loop, close, gradients, sizes

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.nn import AssociativeLeaky, memory_native
from spikedeploy.nn.surrogate import Surrogate
from spikedeploy.runtime import reference


@every_method
@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 140),
    st.integers(1, 3),
    st.integers(1, 19),
    st.integers(1, 19),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([None, 1e-6, 0.05, 20.0, 1e6]),
)
def test_states_are_those_of_the_reference(
    method: str, t: int, b: int, d: int, n: int, m: int, chunk: int, retention: float | None
) -> None:
    layer = make(d, n, m, method=method, chunk=chunk, initial_retention=retention)
    x, start = torch.randn(t, b, m), torch.randn(b, d, n, dtype=torch.float64)
    expected = torch.from_numpy(reference_states(layer, x, start))
    with torch.no_grad():
        close(layer.memory(x, start), expected, 1e-6)
        _, last = layer(x, start, return_state=True)
    close(last, expected[-1], 1e-6)


@every_method
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 90), st.integers(1, 2), st.integers(1, 18), st.integers(1, 18), st.booleans(), st.sampled_from([None, 1e-3, 1e5]))
def test_outputs_and_gradients_are_those_of_the_float64_loop(
    method: str, t: int, b: int, d: int, n: int, use_q: bool, retention: float | None
) -> None:
    options: dict[str, Any] = {"learn_threshold": True, "learn_graded_spikes_factor": True, "graded_spikes_factor": 1.5}
    layer = make(
        d, n, 3, method=method, chunk=17, use_q_projection=use_q, initial_retention=retention, threshold=torch.rand(d, n), **options
    )
    agrees_with_the_loop(layer, loop, torch.randn(t, b, 3), torch.randn(b, d, n, dtype=torch.float64))


def long_reference(layer: AssociativeLeaky, x: torch.Tensor) -> torch.Tensor:
    """S by the reference runtime's memory step alone: a whole program would take its time over 65,536 steps."""
    v, k, alpha = layer.double().to_v(x.double()), layer.to_k(x.double()), torch.sigmoid(layer.to_alpha(x.double()))
    step, state, states = S.MatrixMemory("S", ("v", "k", "a")), {"S": np.zeros((x.shape[1], layer.d_value, layer.d_key))}, []
    for inputs in zip(*(i.detach().numpy() for i in (v, k, alpha)), strict=True):
        states.append(reference.matrix_memory(step, *inputs, state))
    layer.float()
    return torch.from_numpy(np.stack(states))


@pytest.mark.parametrize("retention", [0.053, 9999.0])  # mean alpha 0.05 and 0.9999
def test_sixty_five_thousand_steps(retention: float) -> None:
    layer = make(2, 3, 2, initial_retention=retention, chunk=256)
    x = torch.randn(65_536, 1, 2)
    expected = long_reference(layer, x)
    for method in METHODS[1:]:
        layer.method = method
        with torch.no_grad():
            found = layer.memory(x)
        each = (found.double() - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))
        assert float(each.max()) < 1e-5, f"{method}, at every step"
        close(found, expected, 1e-6, method)


@every_method
def test_long_gradients_are_those_of_the_float64_loop(method: str) -> None:
    layer = make(3, 2, 2, method=method, initial_retention=9999.0, chunk=64)
    exact = make(3, 2, 2).double()
    exact.load_state_dict(layer.state_dict())
    x, start = torch.randn(400, 1, 2) / 4, torch.zeros(1, 3, 2, dtype=torch.float64)
    linear = {"spike_grad": lambda u: u}
    layer.spike_grad = linear["spike_grad"]
    expected = gradients(lambda x, s: loop(exact, x, s, linear["spike_grad"]), exact, x.double(), start)
    terms = sizes(loop, exact, x.double(), start, linear["spike_grad"])
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-5, name, terms.get(name))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("alpha", [1e-6, 0.9999])
def test_float32_keeps_the_gradients_of_float64_over_65536_steps(alpha: float) -> None:
    """The float64 form is the one held against the loop above; here only the length is new."""
    torch.manual_seed(0)
    packed = torch.randn(65_536, 1, 7)
    packed[..., 5:] += math.log(alpha / (1 - alpha))
    q, start, found = torch.randn(65_536, 1, 6), torch.randn(1, 3, 2), []
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype, copy=True).requires_grad_() for x in (packed, q)]
        y, last = memory_native.spikes(given[0], (given[1],), torch.tensor(1.0), start.double(), Surrogate())
        found.append([last.detach(), *torch.autograd.grad(y, given, torch.cos(torch.arange(y.numel(), dtype=dtype)).reshape(y.shape))])
    for narrow, wide in zip(*found, strict=True):
        close(narrow, wide, 1e-5)


@every_method
@pytest.mark.parametrize("use_q", [True, False])
def test_gradcheck(method: str, use_q: bool) -> None:
    layer = make(3, 2, 2, method=method, use_q_projection=use_q, chunk=4, spike_grad=torch.sigmoid, learn_threshold=True).double()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: torch.Tensor, start: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, start, True))

    x, start = torch.randn(7, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, start, *layer.parameters()))
