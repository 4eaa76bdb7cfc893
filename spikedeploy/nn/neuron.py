"""What a leaky neuron computes, as plain data: the words that every route of `leaky_scan` understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spikedeploy.nn.surrogate import Spike, Surrogate

Reset = Literal["none", "subtract", "zero"]
Method = Literal["auto", "iterative", "convolution", "prefix", "associative", "speculative", "native", "triton"]

RESETS = ("none", "subtract", "zero")
"""In the order of the native core's enumeration (snnTorch's `reset_dict` has another)."""

METHODS = ("auto", "iterative", "convolution", "prefix", "associative", "speculative", "native", "triton")


@dataclass(frozen=True, slots=True, eq=False)
class Neuron:
    """How a leaky neuron integrates and fires, apart from its parameters.

    is_tau      `decay` holds the time constant tau in steps, and the decay is exp(-1/tau)
    clamped     `decay` is brought into [0, 1] first, and has no gradient outside
    wide_state  the state is float64 whatever the input is
    power       spikes have amplitude graded^power
    spikes      whether spikes are wanted, else the membrane only
    final       whether the state after the last step is wanted
    """

    reset: Reset = "none"
    reset_delay: bool = True
    strict: bool = True
    is_tau: bool = False
    clamped: bool = False
    wide_state: bool = False
    power: int = 1
    surrogate: Surrogate | Spike = field(default_factory=Surrogate)
    spikes: bool = True
    final: bool = False

    @property
    def linear(self) -> bool:
        """Whether the membrane is linear in the input, so that the parallel routes apply."""
        return self.reset == "none"
