"""The default surrogate gradient of the matrix memories: snnTorch's arctangent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _ATan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        half: float = ctx.alpha / 2
        return half / (1 + (math.pi * half * x) ** 2) * grads[0], None


def atan(alpha: float = 2.0) -> Callable[[Tensor], Tensor]:
    """`1[x > 0]` with the gradient `alpha/2 / (1 + (pi/2 alpha x)^2)` (snnTorch 1.0.0, `surrogate.atan`)."""

    def spike(x: Tensor) -> Tensor:
        result: Tensor = _ATan.apply(x, alpha)  # type: ignore[no-untyped-call]
        return result

    return spike
