"""What conversion costs a SpikingSSM, and what the surrogate cost it in training, kept apart: per layer, on the model's own currents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.nn.hard_reset import hard_reset
from spikedeploy.nn.spiking_ssm import SpikingLIF, SpikingSSMBlock


@dataclass(frozen=True, slots=True)
class SurrogateFinding:
    """One neuron layer of a model on one input.

    layer       path of the neuron
    decisions   how many spikes were compared: T * B * H
    conversion  share of spikes that are the same when the state-space layer runs as in training and step by step, the true neuron behind
                both; None where no state-space layer drives it
    apart       largest difference of the two currents, in thresholds; None likewise
    surrogate   share of spikes on which the surrogate network agrees with the true neuron; None where the model has no surrogate
    lowest, highest   the currents, in thresholds
    fitted      the range of currents that the surrogate network was fitted on; None where there is none
    outside     share of the currents outside that range
    """

    layer: str
    decisions: int
    conversion: float | None
    apart: float | None
    surrogate: float | None
    lowest: float
    highest: float
    fitted: tuple[float, float] | None
    outside: float

    def __str__(self) -> str:
        parts = [f"currents from {self.lowest:.3g} to {self.highest:.3g} thresholds"]
        if self.conversion is not None:
            parts.append(f"conversion keeps {self.conversion:.4%} of {self.decisions} spikes (currents differ by at most {self.apart:.2g})")
        if self.surrogate is not None:
            parts.append(f"the surrogate of training agrees with the neuron on {self.surrogate:.4%}")
        if self.fitted is not None and self.outside:
            low, high = self.fitted
            parts.append(f"{self.outside:.3%} of the currents leave [{low:g}, {high:g}], on which the surrogate was fitted")
        return f"layer '{self.layer}': " + "; ".join(parts)


@contextmanager
def exact_neurons(model: nn.Module) -> Iterator[nn.Module]:
    """The model with every surrogate network set aside: its neurons reset exactly, as the deployed ones do."""
    kept = [(neuron, neuron.sdn) for neuron in model.modules() if isinstance(neuron, SpikingLIF)]
    try:
        for neuron, _ in kept:
            neuron.sdn = None
        yield model
    finally:
        for neuron, network in kept:
            neuron.sdn = network


@torch.no_grad()
def surrogate_in_output(model: nn.Module, x: Tensor) -> float | None:
    """How far the surrogate network moves the model's first output: the largest difference between the model as it was trained and with its
    true neurons; None where it has no surrogate."""
    if not any(isinstance(m, SpikingLIF) and m.sdn is not None for m in model.modules()):
        return None
    with _watched(model):
        trained = model(x)
        with exact_neurons(model):
            deployed = model(x)
    first = [y[0] if isinstance(y, (tuple, list)) else y for y in (trained, deployed)]
    return float((first[0] - first[1]).abs().max())


@torch.no_grad()
def surrogate_findings(model: nn.Module, x: Tensor) -> list[SurrogateFinding]:
    """Run `model` on `x` as it was trained, and look at every `SpikingLIF` in it, in the order of its modules.

    Each layer is judged on what reaches it in that run, so that a difference in one layer is not counted again in the next.
    """
    with _watched(model) as seen:
        model(x)
    return [
        _finding(name, neuron, block, seen[neuron], seen.get(block.s4d) if block else None)
        for name, neuron, block in _neurons(model)
        if neuron in seen
    ]


def _neurons(model: nn.Module) -> Iterator[tuple[str, SpikingLIF, SpikingSSMBlock | None]]:
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, SpikingLIF):
            parent = modules.get(name.rpartition(".")[0])
            yield name, module, parent if isinstance(parent, SpikingSSMBlock) else None


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """In eval mode; collects the input of every neuron (in thresholds) and of the state-space layer of every block."""
    seen: dict[nn.Module, Tensor] = {}
    training = model.training

    def current(module: Any, args: Any, kwargs: Any) -> None:
        scaled = bool(kwargs.get("scaled", args[1] if len(args) > 1 else False))
        seen[module] = args[0] if scaled else args[0] / module.thresholds()

    def driven(module: nn.Module, args: Any) -> None:
        seen[module] = args[0]

    hooks = [neuron.register_forward_pre_hook(current, with_kwargs=True) for _, neuron, _ in _neurons(model)]
    hooks += [block.s4d.register_forward_pre_hook(driven) for _, _, block in _neurons(model) if block]
    try:
        yield (seen, model.eval())[0]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)


def _finding(name: str, neuron: SpikingLIF, block: SpikingSSMBlock | None, current: Tensor, z: Tensor | None) -> SurrogateFinding:
    spikes = hard_reset(current, neuron.tau)[0]
    conversion = apart = surrogate = fitted = None
    outside = 0.0
    if block is not None and z is not None:
        stepped = block.s4d.rollout(z) / neuron.thresholds()
        conversion, apart = _share(hard_reset(stepped, neuron.tau)[0] == spikes), float((stepped - current).abs().max())
    if neuron.sdn is not None:
        low, high = (float(v) for v in neuron.sdn.fitted)
        surrogate, fitted = _share((neuron.sdn(current) + current - 1 >= 0) == (spikes > 0)), (low, high)
        outside = _share((current < low) | (current > high))
    return SurrogateFinding(name, spikes.numel(), conversion, apart, surrogate, float(current.min()), float(current.max()), fitted, outside)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
