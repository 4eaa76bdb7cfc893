"""The iterative route: a loop over time in torch, step for step what `snntorch.Leaky` does. Slow, and the yardstick of the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spikedeploy.nn.neuron import Neuron
from spikedeploy.nn.surrogate import Spike, Surrogate

Quantise = Callable[[Tensor], Tensor]


def fire(mem: Tensor, threshold: Tensor, neuron: Neuron) -> Tensor:
    """H(mem) with its surrogate gradient: 1 where `mem > threshold`, or `>=` where the neuron is not strict."""
    surrogate: Surrogate | Spike = neuron.surrogate
    if isinstance(surrogate, Surrogate):
        return surrogate(mem - threshold, neuron.strict)
    return surrogate(mem - threshold).to(mem.dtype)  # snntorch's give float32, whatever they get


def decay_of(decay: Tensor, neuron: Neuron, state: torch.dtype) -> Tensor:
    """The factor per step in the state's precision, from `decay` or from tau."""
    if neuron.clamped:
        decay = decay.clamp(0, 1)
    return torch.exp(-1 / decay.double()).to(state) if neuron.is_tau else decay.to(state)


def iterate(
    x: Tensor,
    decay: Tensor,
    threshold: Tensor | None,
    graded: Tensor | None,
    initial: Tensor | None,
    neuron: Neuron,
    quantise: Quantise | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """`x (T, ...)` -> spikes (None unless wanted), membranes `(T, ...)` and the last state."""
    state = torch.float64 if neuron.wide_state else x.dtype
    d = decay_of(decay, neuron, state)
    u = torch.zeros(x.shape[1:], dtype=state, device=x.device) if initial is None else initial.to(state)
    spikes, membranes = [], []
    for x_t in x.unbind(0):
        u, mem, fired = _step(u, x_t, d, threshold, neuron, quantise)
        membranes.append(mem)
        if neuron.spikes:
            assert fired is not None
            spikes.append(fired)
    mem = torch.stack(membranes)
    if not neuron.spikes:
        return None, mem, u
    spk = torch.stack(spikes)
    return spk if graded is None else amplify(spk, graded, neuron), mem, u


def amplify(spk: Tensor, graded: Tensor, neuron: Neuron) -> Tensor:
    """Spikes times graded^power, one factor after the other as the library does."""
    for _ in range(neuron.power):
        spk = spk * graded
    return spk


def _step(
    u: Tensor, x: Tensor, d: Tensor, threshold: Tensor | None, neuron: Neuron, quantise: Quantise | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    if threshold is None:
        u = d * u + x
        return u, u.to(x.dtype), None
    again = None if neuron.reset == "none" else fire(u.to(x.dtype), threshold, neuron).detach()
    if neuron.reset == "zero" and again is not None:
        u = (1 - again) * u
    u = d * u + x
    if neuron.reset == "subtract" and again is not None:
        u = u - again * threshold
    u = u if quantise is None else quantise(u)
    mem = u.to(x.dtype)
    seen = mem if quantise is None else quantise(mem)
    fired = fire(seen, threshold, neuron)
    if again is not None and not neuron.reset_delay:
        u = u - (fired - again) * (threshold if neuron.reset == "subtract" else u)
        mem = u.to(x.dtype)
    return u, mem, fired
