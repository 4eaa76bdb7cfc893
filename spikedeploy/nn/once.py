"""First derivatives only: what an autograd function whose backward is no torch expression says when a second one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message

Grads = tuple[Tensor | None, ...]


class _Refuse(torch.autograd.Function):
    """The gradients as they are; differentiating them is an error. `anchor` requires a gradient, so that autograd comes by."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, what: str, do: str, *grads: Tensor | None) -> Grads:
        ctx.what, ctx.do = what, do
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Grads:
        raise BadInput(message(ctx.what, "a derivative of its gradient", "it has a first derivative only", ctx.do))


def once_differentiable(what: str, do: str) -> Callable[[Callable[..., Grads]], Callable[..., Grads]]:
    """Decorates `backward` of `what`: `create_graph=True` gives the first derivative, and a second raises `BadInput` with `do`.

    torch's decorator of this name lets a second derivative pass as zero where the incoming gradient is a constant, as that of a sum is.
    """

    def decorate(backward: Callable[..., Grads]) -> Callable[..., Grads]:
        @wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> Grads:
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():
                found = backward(ctx, *grads)
            refused: Grads = _Refuse.apply(torch.zeros((), requires_grad=True), what, do, *found)
            return refused

        return once

    return decorate
