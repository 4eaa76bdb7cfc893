"""A second derivative is right, or refused where it is taken and not before: never silently zero."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import S4D, AssociativeLeaky, DeltaRuleLeaky, Leaky, SpikingLIF, StateLeaky, leaky_scan

Run = Callable[[Tensor], Any]


def wide(layer: torch.nn.Module) -> torch.nn.Module:
    return layer.double()


def smooth(u: Tensor) -> Tensor:
    return torch.sigmoid(u)


REFUSED: dict[str, Callable[[], Run]] = {
    "Leaky, chunks": lambda: wide(Leaky(0.9, method="speculative")),
    "SpikingLIF": lambda: wide(SpikingLIF()),
}
NATIVE: dict[str, Callable[[], Run]] = {
    "Leaky": lambda: wide(Leaky(0.9, method="native")),
    "StateLeaky": lambda: wide(StateLeaky(0.9, 4, method="native")),
    "AssociativeLeaky": lambda: wide(AssociativeLeaky(4, 2, 3, method="native")),
    "AssociativeLeaky, S only": lambda: wide(AssociativeLeaky(4, 2, 3, method="native", use_q_projection=False)),
    "DeltaRuleLeaky": lambda: wide(DeltaRuleLeaky(4, 2, 3, method="native")),
    "S4D": lambda: wide(S4D(4, 6, form="scan")),
}
CASES = {**REFUSED, **(NATIVE if native.available() else {})}


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("loss", ["sum", "square"])
def test_a_second_derivative_is_refused_when_it_is_taken(name: str, loss: str) -> None:
    """With a plain sum the incoming gradient is a constant: torch's own guard would let the second derivative be zero."""
    run, x = CASES[name](), torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    value = first(run(x)).sum() if loss == "sum" else first(run(x)).square().sum()
    (expected,) = torch.autograd.grad(value, x, retain_graph=True)
    (once,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(once, expected)
    penalty = (once * 2).square().sum()  # nothing is wrong yet
    with pytest.raises(BadInput, match=r"a derivative of its gradient; it has a first derivative only\. Use "):
        (penalty + value).backward()


@pytest.mark.parametrize("method", ["iterative", "prefix", "associative", "convolution"])
@pytest.mark.parametrize("steps", [1, 7])
def test_linear_routes_have_every_derivative(method: Any, steps: int) -> None:
    x = torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)
    decay = torch.rand(3, dtype=torch.float64).requires_grad_()
    initial = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, decay: Tensor, initial: Tensor) -> Any:
        return leaky_scan(x, decay, None, initial=initial, method=method)[1:]

    assert torch.autograd.gradgradcheck(run, (x, decay, initial))


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
def test_the_loop_has_a_second_derivative(reset: Any) -> None:
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    decay = torch.rand(3, dtype=torch.float64).requires_grad_()

    def run(x: Tensor, decay: Tensor) -> Tensor:
        return leaky_scan(x, decay, 1.0, reset=reset, method="iterative")[1]

    assert torch.autograd.gradgradcheck(run, (x, decay))


@pytest.mark.parametrize(
    ("layer", "method"),
    [*itertools.product([AssociativeLeaky], ["iterative", "prefix", "associative"]), *itertools.product([DeltaRuleLeaky], ["iterative"])],
)
def test_the_torch_forms_of_the_memories_have_a_second_derivative(layer: Any, method: str) -> None:
    module = layer(2, 2, 2, method=method, chunk=2, spike_grad=smooth).double()
    assert torch.autograd.gradgradcheck(module, (torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True),))
