"""How the native memories come by their query, a piece of the sequence at a time, forward and backward.

`Q_t = W_q x_t + b_q` is the largest tensor of the layer, `d * n` numbers per step. Here a piece of it in time is computed into a
buffer that stays in cache, used, and overwritten by the next piece; the backward computes it once more and turns its gradient
into that of `W_q` and `x` at once. Two layouts make the products plain: the forward wants `Q (n, d)`, the backward, which needs
`dP = dY Q^T`, wants `Q^T (d, np)`, rows padded as the kernel's are: rows of W_q in another order, chosen once, instead of a transposition
per step. The bias is a row of the transposed weight and meets a column of ones behind x: adding it apart would write the whole of Q
once more, and summing its gradient apart would read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BUFFER = 1 << 20
"""Bytes of Q that are held at a time, where one segment of all batch elements is not more."""


def plain(layer: nn.Linear) -> bool:
    """Whether `layer` is only a weight and a bias, so that it may be applied piece by piece, or together with others."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and not any(hooks) and layer.bias is not None


def _rows(x: Tensor, at: slice) -> Tensor:
    return x[at].flatten(0, 1)


class Query:
    """Where Q comes from and its gradient goes; `wanted` says which of the tensors need one.

    d, n, width    of the memory, and the kernel's columns of a row
    """

    def __init__(self, tensors: Sequence[Tensor], wanted: Sequence[bool], d: int, n: int, width: int) -> None:
        self.wanted = any(wanted)
        self.d, self.n, self.width = d, n, width

    def piece(self, like: Tensor, segment: int, backward: bool) -> int:
        """Steps of a piece, whole segments of `segment`; `like (T, B, ...)` says what is run."""
        cells = like.shape[1] * self.d * (self.width if backward else self.n)
        return segment * max(1, BUFFER // (segment * cells * like.element_size()))

    def forward(self, at: slice) -> Tensor | None:
        """Q of a piece, `(steps * B, n * d)`."""
        raise NotImplementedError

    def backward(self, at: slice) -> Tensor | None:
        """Q^T of a piece, `(steps * B, d * width)`, zero past n; the kernel puts dQ into the first n * d numbers of each row."""
        raise NotImplementedError

    def collect(self, at: slice, dq: Tensor) -> None:
        """Take up the gradient of a piece of Q, `(steps * B, n * d)`."""

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of the tensors."""
        return ()


class NoQuery(Query):
    """The memory's spikes or states are its output."""

    def piece(self, like: Tensor, segment: int, backward: bool) -> int:
        return len(like)

    def forward(self, at: slice) -> Tensor | None:
        return None

    backward = forward


class Given(Query):
    """Q `(T, B, n * d)` computed elsewhere."""

    def __init__(self, tensors: Sequence[Tensor], wanted: Sequence[bool], d: int, n: int, width: int) -> None:
        super().__init__(tensors, wanted, d, n, width)
        (self.q,) = tensors
        self.dq = torch.empty_like(self.q) if self.wanted else None

    def forward(self, at: slice) -> Tensor:
        return _rows(self.q, at)

    def backward(self, at: slice) -> Tensor:
        q = torch.unflatten(_rows(self.q, at), -1, (self.n, self.d))
        whole = q.new_zeros(len(q), self.d, self.width)
        whole[..., : self.n] = q.transpose(1, 2)
        return whole.flatten(1)

    def collect(self, at: slice, dq: Tensor) -> None:
        if self.dq is not None:
            _rows(self.dq, at).copy_(dq)

    def gradients(self) -> tuple[Tensor | None, ...]:
        return (self.dq,)


class Projected(Query):
    """Q from `x (T, B, m)`, `W_q (n * d, m)` and `b_q (n * d,)`."""

    def __init__(self, tensors: Sequence[Tensor], wanted: Sequence[bool], d: int, n: int, width: int) -> None:
        super().__init__(tensors, wanted, d, n, width)
        x, self.weight, bias = tensors
        self.x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
        self.map = torch.cat([self.weight.t(), bias[None]])
        self.back: Tensor | None = None
        self.buffer = x.new_empty(0)
        self.dx = torch.empty_like(x) if wanted[0] else None
        self.dmap = torch.zeros_like(self.map) if wanted[1] or wanted[2] else None

    def _product(self, at: slice, weight: Tensor) -> Tensor:
        x = _rows(self.x, at)
        if len(self.buffer) < len(x):
            self.buffer = x.new_empty(len(x), weight.shape[1])
        return torch.mm(x, weight, out=self.buffer[: len(x)])

    def forward(self, at: slice) -> Tensor:
        return self._product(at, self.map)

    def backward(self, at: slice) -> Tensor:
        if self.back is None:
            by_value = torch.unflatten(self.map, 1, (self.n, self.d)).transpose(1, 2)
            self.back = self.map.new_zeros(len(self.map), self.d, self.width)
            self.back[..., : self.n] = by_value
            self.back = self.back.flatten(1)
        return self._product(at, self.back)

    def collect(self, at: slice, dq: Tensor) -> None:
        if self.dmap is not None:
            self.dmap.addmm_(_rows(self.x, at).t(), dq)
        if self.dx is not None:
            torch.mm(dq, self.weight, out=_rows(self.dx, at))

    def gradients(self) -> tuple[Tensor | None, ...]:
        return (self.dx, None, None) if self.dmap is None else (self.dx, self.dmap[:-1].t(), self.dmap[-1])
