"""Top-k sparsification of the keys and values of a matrix memory, trained with the straight-through estimator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message


def topk_count(value: int | float | None, width: int, where: str = "top-k") -> int | None:
    """How many of `width` entries are kept: a whole number is a count, a float in (0, 1] a fraction (rounded up); None keeps all.

    Raises `BadInput` where that is not a number from 1 to `width`.
    """
    if value is None:
        return None
    count = 0
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        count = int(value)
    elif isinstance(value, float | np.floating) and 0 < value <= 1:
        count = max(1, math.ceil(float(value) * width - 1e-9))
    if not 1 <= count <= width:
        raise BadInput(message(where, repr(value), f"a count from 1 to {width}, or a fraction (a float) in (0, 1], is needed"))
    return count


def topk_mask(x: Tensor, k: int) -> Tensor:
    """Where the `k` entries of largest magnitude of `x (..., width)` are; ties by lowest index."""
    order = torch.sort(-x.detach().abs(), dim=-1, stable=True).indices[..., :k]
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order, True)


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        return torch.where(topk_mask(x, k), x, torch.zeros_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def topk(x: Tensor, k: int | None) -> Tensor:
    """Keep the `k` entries of largest magnitude over the last axis and zero the others; ties by lowest index.

    The gradient is the straight-through estimator: it passes to every entry as if all had been kept, so that an entry outside
    the k largest can still learn its way in. `k` None, or the whole width, changes nothing.
    """
    if k is None or k >= x.shape[-1]:
        return x
    result: Tensor = _TopK.apply(x, k)
    return result
