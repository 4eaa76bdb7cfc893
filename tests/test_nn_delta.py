"""DeltaRuleLeaky (Gen3): every route against the reference loop (values) and against autograd through a float64 loop (gradients)."""

from __future__ import annotations

from typing import Any

import memory_layers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_gradients import agrees_with_the_loop, close
from memory_layers import read

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.errors import BadInput
from spikedeploy.nn import DeltaRuleLeaky
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference

METHODS = memory_layers.ROUTES[DeltaRuleLeaky]
every_method = pytest.mark.parametrize("method", METHODS)


def affine(name: str, layer: torch.nn.Linear) -> S.Affine:
    return S.Affine(name, ("input",), layer.weight.detach().numpy(), layer.bias.detach().numpy())


def reference_states(layer: DeltaRuleLeaky, x: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
    """S by the reference runtime in float64."""
    steps = (
        affine("v", layer.to_v),
        affine("k", layer.to_k),
        S.L2Normalize("key", ("k",)),
        affine("z", layer.to_alpha),
        S.Activation("alpha", ("z",), "sigmoid"),
        affine("b", layer.to_beta),
        S.Activation("beta", ("b",), "sigmoid"),
        S.DeltaMemory("S", ("v", "key", "alpha", "beta")),
    )
    program = Program((layer.in_dim,), steps, (Output("S", "S"),))
    states = None if start is None else {"S": {"S": start.numpy()}}
    return torch.from_numpy(reference.run(program, x.detach().numpy(), states=states).outputs["S"])


def loop(layer: DeltaRuleLeaky, x: torch.Tensor, state: torch.Tensor, spike: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The other form of the equation: S (Diag(alpha) (I - beta k k^T)) + beta v k^T, one step after the other."""
    outputs, eye = [], torch.eye(layer.d_key, dtype=x.dtype)
    v, k, alpha, beta = layer.to_v(x), layer.to_k(x), torch.sigmoid(layer.to_alpha(x)), torch.sigmoid(layer.to_beta(x))
    k = k / k.norm(dim=-1, keepdim=True)
    q = None if layer.to_q is None else layer.to_q(x)
    for t in range(len(x)):
        b = beta[t][:, :, None]
        move = torch.diag_embed(alpha[t]) @ (eye - b * k[t][:, :, None] * k[t][:, None, :])
        state = state @ move + b * v[t][:, :, None] * k[t][:, None, :]
        outputs.append(read(layer, state, None if q is None else q[t], spike))
    return torch.stack(outputs), state


def make(d: int, n: int, m: int, **options: Any) -> DeltaRuleLeaky:
    layer: DeltaRuleLeaky = memory_layers.make(DeltaRuleLeaky, d, n, m, **options)
    return layer


@every_method
@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 140),
    st.integers(1, 3),
    st.integers(1, 19),
    st.integers(1, 19),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([None, 1e-6, 20.0, 1e6]),
)
def test_states_are_those_of_the_reference(
    method: str, t: int, b: int, d: int, n: int, m: int, chunk: int, retention: float | None
) -> None:
    layer = make(d, n, m, method=method, chunk=chunk, initial_retention=retention)
    x, start = torch.randn(t, b, m), torch.randn(b, d, n, dtype=torch.float64)
    expected = reference_states(layer, x, start)
    with torch.no_grad():
        close(layer.memory(x, start), expected, 2e-6)
        _, last = layer(x, start, return_state=True)
    close(last, expected[-1], 2e-6)


@every_method
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 90), st.integers(1, 2), st.integers(1, 18), st.integers(2, 18), st.booleans())
def test_outputs_and_gradients_are_those_of_the_float64_loop(method: str, t: int, b: int, d: int, n: int, use_q: bool) -> None:
    options: dict[str, Any] = {"use_q_projection": use_q, "threshold": torch.full((d, n), 0.2), "learn_threshold": True}
    layer = make(d, n, 3, method=method, chunk=17, **options)
    agrees_with_the_loop(layer, loop, torch.randn(t, b, 3), torch.randn(b, d, n, dtype=torch.float64))


@every_method
@pytest.mark.parametrize("use_q", [True, False])
def test_gradcheck(method: str, use_q: bool) -> None:
    layer = make(3, 2, 2, method=method, use_q_projection=use_q, chunk=4, spike_grad=torch.sigmoid, learn_threshold=True).double()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: torch.Tensor, start: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, start, True))

    x, start = torch.randn(6, 1, 2, dtype=torch.float64, requires_grad=True), torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, start, *layer.parameters()))


@pytest.mark.parametrize("retention", [0.053, 9999.0])
def test_sixty_five_thousand_steps(retention: float) -> None:
    layer = make(2, 3, 2, initial_retention=retention)
    x, states, state = torch.randn(65_536, 1, 2), [], {"S": np.zeros((1, 2, 3))}
    wide = make(2, 3, 2, initial_retention=retention).double()
    inputs = [i.detach() for i in wide.project(x.double())]
    inputs[2] = torch.sigmoid(inputs[2])
    for row in zip(*(i.numpy() for i in inputs), strict=True):
        states.append(reference.delta_memory(S.DeltaMemory("S", ("v", "k", "a", "b")), *row, state))
    expected = torch.from_numpy(np.stack(states))
    for method in METHODS[1:]:
        layer.method = method
        with torch.no_grad():
            close(layer.memory(x), expected, 2e-6, method)


def test_a_written_value_is_read_back_and_overwritten() -> None:
    """The point of the delta rule: with beta = 1 and nothing forgotten, a key recalls exactly what was last written to it."""
    layer = make(3, 4, 2).double()
    with torch.no_grad():
        layer.to_beta.bias.fill_(50.0)
        layer.to_alpha.bias.fill_(50.0)
        for part in (layer.to_beta, layer.to_alpha):
            part.weight.zero_()
        x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [1.0, 2.0]], dtype=torch.float64)[:, None]
        v, k, _, _ = layer.project(x)
        recalled = layer.memory(x) @ k.unsqueeze(-1)
    torch.testing.assert_close(recalled.squeeze(-1), v)


@pytest.mark.parametrize("method", ["convolution", "prefix"])
def test_routes_that_do_not_exist_are_refused(method: str) -> None:
    with pytest.raises(BadInput, match=method):
        DeltaRuleLeaky(2, 2, 2, method=method)


def test_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "switched off")
    layer, x = make(2, 3, 2), torch.randn(5, 1, 2)
    assert layer.route(x) == "associative"
    close(layer.memory(x).detach(), reference_states(layer, x), 2e-6)


def test_a_method_set_later_is_checked_too() -> None:
    layer = DeltaRuleLeaky(4, 3, 2)
    layer.method = "foo"
    with pytest.raises(BadInput, match="method='foo'"):
        layer(torch.zeros(2, 1, 4))
