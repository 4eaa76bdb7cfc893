"""Surrogate gradients: what stands in for the derivative of the Heaviside step `H(u)`, u = membrane - threshold.

| name                        | dH/du                                     | parameter        |
|-----------------------------|-------------------------------------------|------------------|
| `atan` (default)            | (k/2) / (1 + (pi/2 * k * u)^2)            | alpha, k = 2     |
| `fast_sigmoid`              | 1 / (1 + k*abs(u))^2                      | slope, k = 25    |
| `sigmoid`                   | k * s(ku) * (1 - s(ku)), s the logistic   | slope, k = 25    |
| `straight_through`          | 1                                         |                  |
| `triangular`                | k * max(0, 1 - k*abs(u))                  | k = 1            |
| `snntorch_triangular`       | k where u < 0, -k elsewhere               | threshold, k = 1 |
| `zero`                      | 0                                         |                  |

The functions of `snntorch.surrogate` are recognised and run fused; its `triangular` has the sign change of the last but one row, and its
`sigmoid` overflows to NaN below u = -88/k in float32, which is not reproduced. Any other callable `f(u) -> spikes` works too, unfused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message

KINDS = ("zero", "atan", "fast_sigmoid", "sigmoid", "straight_through", "triangular", "snntorch_triangular")
"""In the order of the native core's enumeration."""

DEFAULT: Mapping[str, float] = {"atan": 2.0, "fast_sigmoid": 25.0, "sigmoid": 25.0}

SNNTORCH: Mapping[str, str] = {
    "atan": "atan",
    "fast_sigmoid": "fast_sigmoid",
    "sigmoid": "sigmoid",
    "straight_through_estimator": "straight_through",
    "triangular": "snntorch_triangular",
}
"""Factories of `snntorch.surrogate` -> names of ours."""

Spike = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A surrogate gradient by name; called with `u`, it gives `H(u)` (1 where u > 0) with that gradient.

    k  steepness, as in the table above; the kind's default when not given
    """

    kind: str = "atan"
    k: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(message("surrogate gradient", f"{self.kind!r}", f"one of {', '.join(KINDS)} is needed"))
        if self.k == 0.0:
            object.__setattr__(self, "k", DEFAULT.get(self.kind, 1.0))

    @property
    def code(self) -> int:
        """The kind's number in the native core."""
        return KINDS.index(self.kind)

    def slope(self, u: Tensor) -> Tensor:
        """dH/du at `u`."""
        return SLOPE[self.kind](u, self.k)

    def __call__(self, u: Tensor, strict: bool = True) -> Tensor:
        return step(u, self, strict)


def _sigmoid_slope(u: Tensor, k: float) -> Tensor:
    e = torch.exp(-k * u.abs())
    return k * e / (1 + e) ** 2


SLOPE: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "zero": lambda u, k: torch.zeros_like(u),
    "atan": lambda u, k: k / 2 / (1 + (pi / 2 * k * u) ** 2),
    "fast_sigmoid": lambda u, k: 1 / (1 + k * u.abs()) ** 2,
    "sigmoid": _sigmoid_slope,
    "straight_through": lambda u, k: torch.ones_like(u),
    "triangular": lambda u, k: k * (1 - k * u.abs()).clamp(min=0),
    "snntorch_triangular": lambda u, k: torch.where(u >= 0, -k, k).to(u.dtype),
}


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate, strict: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        # straight into u's dtype: a tensor of bool and a conversion cost ten times as much
        return (torch.gt if strict else torch.ge)(u, 0, out=torch.empty_like(u))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.slope(u), None, None


step: Callable[[Tensor, Surrogate, bool], Tensor] = _Step.apply
"""`(u, surrogate, strict) -> H(u)`, differentiable."""


def _closure(function: Any) -> dict[str, Any]:
    cells = getattr(function, "__closure__", None) or ()
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, cells, strict=True)}


def recognise(spike_grad: Surrogate | Spike | str | None) -> Surrogate | Spike:
    """A `Surrogate` for a name, None (atan) or a function made by `snntorch.surrogate`; any other callable as it is."""
    if spike_grad is None:
        return Surrogate()
    if isinstance(spike_grad, str):
        return Surrogate(spike_grad)
    if isinstance(spike_grad, Surrogate):
        return spike_grad
    if not callable(spike_grad):
        raise BadInput(message("surrogate gradient", f"{spike_grad!r}", "a name, a Surrogate or a callable is needed"))
    name = getattr(spike_grad, "__qualname__", "").removesuffix(".<locals>.inner")
    if getattr(spike_grad, "__module__", "") != "snntorch.surrogate" or name not in SNNTORCH:
        return spike_grad
    values = list(_closure(spike_grad).values())
    if any(not isinstance(value, int | float) or value == 0 for value in values):
        return spike_grad
    return Surrogate(SNNTORCH[name], *(float(value) for value in values))
