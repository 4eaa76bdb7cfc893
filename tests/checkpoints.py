"""Whether two models are one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikedeploy.probe import flatten


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return flatten(model(x))


def same(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    return all(torch.equal(p, q) for p, q in zip(outputs(a, x), outputs(b, x), strict=True))
