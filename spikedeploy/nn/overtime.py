"""A one-step network run over a sequence, for networks written step by step as snnTorch's are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OverTime(nn.Module):
    """`y_t = module(x_t)` for every step of `x (T, B, ...)`, results stacked over time; several values come back as a tuple.

    The states that snnTorch's neurons keep between calls are zero at the start of every sequence. This is the sequential baseline: T
    calls of the module. As a layer of a model it is traced, stored and converted like any other.

        net = OverTime(nn.Sequential(nn.Linear(784, 100), snntorch.Leaky(beta=0.9, init_hidden=True)))
        spikes = net(x)     # (T, B, 784) -> (T, B, 100)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        forget(self.module)
        return stack([self.module(x_t) for x_t in x.unbind(0)])


def forget(module: nn.Module) -> None:
    """Empty the membrane that snnTorch's `Leaky` keeps between calls, and our own `Leaky`'s with `init_hidden`."""
    for layer in remembering(module):
        if layer._buffers["mem"] is not None:
            layer._buffers["mem"] = torch.zeros(0)


def remembering(module: nn.Module) -> list[nn.Module]:
    """The neurons that keep a membrane between calls. A buffer of that name which is stored with the model is something else."""
    return [layer for layer in module.modules() if "mem" in layer._non_persistent_buffers_set]


def stack(results: list[Any]) -> Any:
    """Per-step results, tensors or tuples of them, as one result over time."""
    first = results[0]
    if isinstance(first, (tuple, list)):
        return tuple(stack([result[i] for result in results]) for i in range(len(first)))
    return torch.stack(results)
