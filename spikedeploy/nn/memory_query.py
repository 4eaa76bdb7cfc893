"""The native memories together with their query projection: neither S nor Q is ever held over the sequence.

`Q_t = W_q x_t + b_q` is the largest tensor of the layer, `d * n` numbers per step. Here a piece of it in time is computed into a
buffer that stays in cache, used, and overwritten by the next piece; the backward computes it once more and turns its gradient
into that of `W_q` and `x` at once. The bias is a column of the weight and meets a column of ones behind x: adding it apart would
write the whole of Q once more, and summing its gradient apart would read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikedeploy.nn.memory_native import READ, Job, segment_steps
from spikedeploy.nn.memory_scan import Inputs
from spikedeploy.nn.surrogate import Surrogate

BUFFER = 1 << 20
"""Bytes of Q that are held at a time, where one segment of all batch elements is not more."""


GRADIENTS = ("dv", "dk", "dalpha", "dbeta")
Arrays = dict[str, Tensor | None]


def plain(layer: nn.Linear, x: Tensor) -> bool:
    """Whether `layer` is only a weight and a bias, so that it may be applied piece by piece."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and not any(hooks) and layer.bias is not None and layer.weight.dtype == x.dtype


def read(
    inputs: Inputs, x: Tensor, layer: nn.Linear, threshold: Tensor, state: Tensor, surrogate: Surrogate
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`vec(P_t Q_t)` `(T, B, d*d)` and the last state `(B, d, n)`; threshold: one, or one per cell."""
    v, k, z, *rest = inputs
    limit = threshold.double().expand(state[0].numel())
    arguments = (v, k, torch.sigmoid(z), rest[0] if rest else None, limit, state, x, layer.weight, layer.bias)
    contiguous = (None if a is None else a.contiguous() for a in arguments)
    y, last = _Query.apply(*contiguous, surrogate)  # type: ignore[no-untyped-call]
    return y.flatten(-2), last


class _Pieces:
    """A sequence cut into pieces of whole segments of the kernel, as many as fit the buffer.

    sequences  arrays over time by the kernel's names, passed piece by piece
    fixed      arrays that every call gets whole
    query      x with ones behind `(T, B, m + 1)`, and W_q with b_q behind `(d * n, m + 1)`
    """

    def __init__(self, direction: str, settings: dict[str, Any], sequences: Arrays, fixed: Arrays, query: tuple[Tensor, Tensor]) -> None:
        v, k = sequences["v"], sequences["k"]
        assert v is not None and k is not None
        self.direction, self.sequences, self.fixed, self.query = direction, sequences, fixed, query
        (self.steps, self.batch, d), n = v.shape, k.shape[-1]
        self.segment, self.cells = segment_steps(), self.batch * d * n
        self.size = self.segment * max(1, BUFFER // (self.segment * self.cells * v.element_size()))
        self.q = v.new_empty(min(self.size, self.steps) * self.batch, d * n)
        self.job = Job(v, k, sequences["beta"] is not None, settings)
        self.area = self.job.hold(direction)

    def spans(self) -> list[slice]:
        """The pieces in time."""
        return [slice(begin, min(begin + self.size, self.steps)) for begin in range(0, self.steps, self.size)]

    def flat(self, at: slice) -> Tensor:
        """The input of a piece, a row for every step and batch element, and a one behind."""
        return self.query[0][at].flatten(0, 1)

    def run(self, at: slice, checkpoints: Tensor) -> None:
        """Q of this piece, and the kernel on it; a checkpoint holds one state per segment."""
        x = self.flat(at)
        torch.mm(x, self.query[1].t(), out=self.q[: len(x)])
        self.job.job.steps = at.stop - at.start
        arrays = {name: None if a is None else a[at] for name, a in self.sequences.items()}
        self.job.run(
            self.direction, {**arrays, **self.fixed, "q": self.q, "checkpoints": checkpoints[at.start // self.segment * self.cells :]}
        )


def _with_bias(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1), torch.cat([weight, bias[:, None]], -1)


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        k: Tensor,
        alpha: Tensor,
        beta: Tensor | None,
        limit: Tensor,
        state: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        surrogate: Surrogate,
    ) -> tuple[Tensor, Tensor]:
        steps, batch, d = v.shape
        y, state = v.new_empty(steps, batch, d, d), state.clone()  # the state moves on in place, piece by piece
        checkpoints = state.new_empty(-(-steps // segment_steps()) * state.numel())
        ctx.settings = {"output": READ, "surrogate": surrogate.code, "slope": surrogate.k}
        ctx.set_materialize_grads(False)
        sequences = {"v": v, "k": k, "alpha": alpha, "beta": beta, "y": y}
        pieces = _Pieces(
            "forward", ctx.settings, sequences, {"threshold": limit, "start": state, "end": state}, _with_bias(x, weight, bias)
        )
        for at in pieces.spans():
            pieces.run(at, checkpoints)
        ctx.save_for_backward(v, k, alpha, beta, limit, x, weight, bias, checkpoints)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, k, alpha, beta, limit, x, weight, bias, checkpoints = ctx.saved_tensors
        steps, batch, d = v.shape
        dy = v.new_zeros(steps, batch, d, d) if grads[0] is None else grads[0].contiguous()
        dstate = alpha.new_zeros(batch, d, k.shape[-1]) if grads[1] is None else grads[1].clone(memory_format=torch.contiguous_format)
        results = [None if a is None else torch.empty_like(a) for a in (v, k, alpha, beta)]
        sequences = {"v": v, "k": k, "alpha": alpha, "beta": beta, "dy": dy, **dict(zip(GRADIENTS, results, strict=True))}
        query = _with_bias(x, weight, bias)
        sums = _QuerySums(x, weight, query[1], ctx.needs_input_grad[6:9])
        dlimit, piece_dlimit = torch.zeros_like(dstate), torch.empty_like(dstate)
        fixed = {"threshold": limit, "dend": dstate, "dstart": dstate, "dthreshold": piece_dlimit}
        pieces = _Pieces("backward", ctx.settings, sequences, fixed, query)
        pieces.fixed["dq"] = dq = torch.empty_like(pieces.q) if sums.wanted else None
        for at in reversed(pieces.spans()):
            pieces.run(at, checkpoints)
            dlimit += piece_dlimit
            if dq is not None:
                sums.add(at, pieces.flat(at), dq)
        return (*results, dlimit.sum(0).flatten(), dstate, sums.x, *sums.parameters(), None)


class _QuerySums:
    """The gradients of x, W_q and b_q, from the gradient of Q piece by piece."""

    def __init__(self, x: Tensor, weight: Tensor, whole: Tensor, wanted: Sequence[bool]) -> None:
        self.map, self.wanted = weight, any(wanted)
        self.x = torch.empty_like(x) if wanted[0] else None
        self.whole = torch.zeros_like(whole) if wanted[1] or wanted[2] else None

    def add(self, at: slice, x: Tensor, dq: Tensor) -> None:
        dq = dq[: len(x)]
        if self.whole is not None:
            self.whole.addmm_(dq.t(), x)
        if self.x is not None:
            torch.mm(dq, self.map, out=self.x[at].view(len(x), -1))

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of W_q and b_q."""
        return (None, None) if self.whole is None else (self.whole[:, :-1], self.whole[:, -1])
