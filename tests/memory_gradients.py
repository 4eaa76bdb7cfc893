"""The gradients of a matrix memory against autograd through a float64 loop: what they are, how large their terms, how far apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.nn.surrogate import Surrogate

Run = Callable[[Tensor, Tensor], Any]
Spike = Callable[[Tensor], Tensor]
Loop = Callable[[Any, Tensor, Tensor, Spike], tuple[Tensor, Tensor]]


def loss(y: Tensor, last: Tensor) -> Tensor:
    """Every output and every cell of the last state, weighted at random, the same on every call."""
    seed = torch.Generator().manual_seed(5)
    weights = [torch.randn(value.shape, generator=seed).to(value.dtype) for value in (y, last)]
    return (y * weights[0]).sum() + (last * weights[1]).sum()


def gradients(run: Run, layer: nn.Module, x: Tensor, start: Tensor) -> dict[str, Tensor]:
    """Outputs, last state, and the gradients of inputs and parameters by name."""
    x, start = x.clone().requires_grad_(), start.clone().requires_grad_()
    y, last = run(x, start)
    found = torch.autograd.grad(loss(y, last), [x, start, *layer.parameters()], allow_unused=True)
    names = ["x", "start", *(name for name, _ in layer.named_parameters())]
    values = {"y": y.detach(), "last": last.detach()}
    return values | {name: value for name, value in zip(names, found, strict=True) if value is not None}


def sizes(loop: Loop, layer: Any, x: Tensor, start: Tensor, spike: Spike) -> dict[str, Tensor]:
    """Per parameter the sum of |terms|, one for each step and batch item: its gradient if no term cancelled another. `layer` in float64."""
    parts = {name: part for name, part in layer.named_children() if isinstance(part, nn.Linear)}
    given, results, heard = {}, {}, []

    def record(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor], result: Tensor) -> None:
            given[name], results[name] = inputs[0], result

        return hook

    def listening(v: Tensor) -> Tensor:
        heard.append((v, spike(v)))
        return heard[-1][1]

    hooks = [part.register_forward_hook(record(name)) for name, part in parts.items()]
    value = loss(*loop(layer, x, start, listening))
    for hook in hooks:
        hook.remove()
    by_result, by_v, by_spike = (
        torch.autograd.grad(value, wanted, retain_graph=True) for wanted in (list(results.values()), *zip(*heard, strict=True))
    )
    found = {}
    for name, slope in zip(results, by_result, strict=True):
        found[f"{name}.weight"] = torch.einsum("tbo,tbi->oi", slope.abs(), given[name].detach().abs())
        found[f"{name}.bias"] = slope.abs().sum((0, 1))
    found["threshold"] = torch.stack(by_v).abs().sum((0, 1))
    fired = torch.stack([spikes.detach() for _, spikes in heard])
    found["graded_spikes_factor"] = (torch.stack(by_spike) * fired / layer.graded_spikes_factor.detach()).abs().sum()
    return found


def close(found: Tensor, expected: Tensor, bound: float, what: str = "", size: Tensor | None = None) -> None:
    """Within `bound` of the largest value, or of the largest sum of |terms| where values are sums whose terms cancel."""
    scale = max(float((expected if size is None else size).abs().max()), 1e-6)
    worst = float((found.double() - expected.double()).abs().max()) / scale
    assert worst <= bound, f"{what}: {worst:.2e} of the largest {'value' if size is None else 'sum of terms'}, {bound:.0e} allowed"


def agrees_with_the_loop(layer: Any, loop: Loop, x: Tensor, start: Tensor) -> None:
    """Outputs, last state and gradients of a float32 layer, and of the same in float64, against autograd through the float64 loop."""
    wide = deepcopy(layer).double()
    expected = gradients(lambda x, s: loop(wide, x, s, Surrogate()), wide, x.double(), start)
    found = gradients(lambda x, s: wide(x, s, return_state=True), wide, x.double(), start)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, 1e-9, name)
    with torch.no_grad():
        fired = [one.memory(inputs, start).flatten(-2) > one.threshold for one, inputs in ((wide, x.double()), (layer, x))]
    if torch.equal(*fired):  # no spike within float32 rounding of its threshold
        terms = sizes(loop, wide, x.double(), start, Surrogate())
        for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
            close(value, expected[name], 1e-5, name, terms.get(name))
