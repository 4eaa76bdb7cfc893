"""Surrogate gradients and state quantisers as plain data: functions cannot be stored, their names and numbers can.

Every surrogate gradient has the same forward, a step at zero; what differs is the derivative that training used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from snntorch import surrogate
from snntorch.functional.quant import StateQuant
from torch import Tensor

from spikedeploy.nn.surrogate import Surrogate

Plain = dict[str, Any]

SURROGATES: Mapping[str, tuple[str, ...]] = {
    "atan": ("alpha",),
    "fast_sigmoid": ("slope",),
    "sigmoid": ("slope",),
    "straight_through_estimator": (),
    "triangular": ("threshold",),
    "spike_rate_escape": ("beta", "slope"),
    "heaviside": (),
    "SFS": ("slope", "B"),
    "SSO": ("mean", "variance"),
}
"""snnTorch's surrogate gradients and the numbers each is made with. All of them fire where the argument is above zero."""


class Refused(Exception):
    """Why a layer cannot be described: what was found, what is needed, what to do. The caller says which layer."""

    def __init__(self, found: str, needed: str = "", do: str = "") -> None:
        super().__init__(found)
        self.parts = found, needed, do


def describe_surrogate(function: Any) -> Plain:
    """A surrogate gradient as its name and numbers; `custom` when it is nobody's but fires as all of them do."""
    if isinstance(function, Surrogate):
        return {"name": "spikedeploy", "kind": function.kind, "k": function.k}
    if "_surrogate_bypass" in (function, getattr(function, "__name__", "")):
        return {"name": "none"}
    name = getattr(function, "__qualname__", "").split(".")[0]
    if getattr(function, "__module__", "") == "snntorch.surrogate" and name in SURROGATES:
        cells = _cells(function)
        numbers = {key: cells[key] for key in SURROGATES[name]}
        if all(isinstance(value, (int, float)) for value in numbers.values()):
            return {"name": name, **numbers}
    _check_heaviside(function)
    return {"name": "custom"}


def _cells(function: Any) -> dict[str, Any]:
    """What a closure holds, by name."""
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))


def _check_heaviside(function: Any) -> None:
    probe = torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0])
    try:
        fires = function(probe).detach().tolist()
    except Exception as error:  # a user's function may raise anything
        raise Refused(f"its spike_grad fails ({type(error).__name__}: {error})", "a surrogate gradient of snnTorch is needed") from None
    if fires != [0.0, 0.0, 0.0, 1.0, 1.0]:
        raise Refused(
            f"its spike_grad gives {[round(v, 4) for v in fires]} at -1, -1e-6, 0, 1e-6, 1",
            "a neuron that fires 1 above zero and else 0 is needed",
            "Use one of snntorch.surrogate.",
        )


def build_surrogate(plain: Plain) -> Any:
    """The surrogate of that name; the default one for `custom`, whose forward is the same."""
    name = plain["name"]
    if name == "spikedeploy":
        return Surrogate(str(plain["kind"]), float(plain["k"]))
    if name == "custom":
        return surrogate.atan()
    return getattr(surrogate, name)(**{key: float(plain[key]) for key in SURROGATES[name]})


class Quantiser:
    """snnTorch's `state_quant` with given levels: each value becomes the nearest level, gradients pass straight through."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = StateQuant.apply(x, self.levels)
        return result


def quantiser_levels(function: Any) -> Tensor | None:
    """The levels of a `state_quant` function; None where there is none."""
    if not function:
        return None
    if isinstance(function, Quantiser):
        return function.levels
    if getattr(function, "__module__", "") == "snntorch.functional.quant" and function.__qualname__ == "state_quant.<locals>.inner":
        levels: Tensor = _cells(function)["levels"]
        return levels
    raise Refused("its state_quant is a function of your own", "one made by snntorch.functional.quant.state_quant is needed")


def plain_levels(function: Any) -> list[float] | None:
    """The levels as numbers."""
    levels = quantiser_levels(function)
    return None if levels is None else [float(v) for v in levels]


def build_quantiser(levels: list[float] | None) -> Any:
    """The quantiser of those levels; False for none, as snnTorch has it."""
    return Quantiser(torch.tensor(levels, device="cpu")) if levels else False
