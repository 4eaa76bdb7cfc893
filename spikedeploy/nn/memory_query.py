"""The native memories together with their query projection: neither S nor Q is ever held over the sequence.

`Q_t = W_q x_t + b_q` is the largest tensor of the layer, `d * n` numbers per step. Here a piece of time of it at a time is computed into a buffer
that stays in cache, used, and in the backward computed once more, where the gradient of Q takes its turn in a second buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spikedeploy import native
from spikedeploy.nn.memory_native import READ, Job
from spikedeploy.nn.memory_scan import Inputs
from spikedeploy.nn.surrogate import Surrogate

BUFFER = 1 << 20
"""Bytes of Q that are held at a time, if a segment of one step of all batch elements is not more."""


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


def _piece(v: Tensor, k: Tensor) -> int:
    """Steps of a piece: whole segments of the kernel, as many as fit the buffer."""
    segment: int = native.core()[1].sd_memory_segment()
    step = v.shape[1] * v.shape[2] * k.shape[2] * v.element_size()
    return segment * max(1, BUFFER // (segment * step))


def _pieces(steps: int, size: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + size, steps)) for begin in range(0, steps, size))


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
        (steps, batch, d), n, size = v.shape, k.shape[-1], _piece(v, k)
        segment = native.core()[1].sd_memory_segment()
        y, end = v.new_empty(steps, batch, d, d), state.clone()
        checkpoints = state.new_empty(-(-steps // segment) * state.numel())
        ctx.settings = {"output": READ, "surrogate": surrogate.code, "slope": surrogate.k}
        ctx.set_materialize_grads(False)
        job, q = Job(v, k, beta is not None, ctx.settings), v.new_empty(min(size, steps) * batch, d * n)
        area, states = job.hold("forward"), {"threshold": limit, "start": end, "end": end}
        for begin, stop in _pieces(steps, size):
            at = slice(begin, stop)
            job.job.steps = stop - begin
            torch.addmm(bias, x[at].flatten(0, 1), weight.t(), out=q[: (stop - begin) * batch])
            inputs = {"v": v[at], "k": k[at], "alpha": alpha[at], "beta": None if beta is None else beta[at], "q": q}
            job.run("forward", {**inputs, **states, "checkpoints": checkpoints[begin // segment * state.numel() :], "y": y[at]})
        del area
        ctx.save_for_backward(v, k, alpha, beta, limit, x, weight, bias, checkpoints)
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        v, k, alpha, beta, limit, x, weight, bias, checkpoints = ctx.saved_tensors
        (steps, batch, d), n, size = v.shape, k.shape[-1], _piece(v, k)
        segment, cells = native.core()[1].sd_memory_segment(), batch * d * n
        dy = v.new_zeros(steps, batch, d, d) if grads[0] is None else grads[0].contiguous()
        state = torch.zeros(batch, d, n, dtype=torch.float64) if grads[1] is None else grads[1].clone(memory_format=torch.contiguous_format)
        dlimit, per_piece = torch.zeros_like(state), torch.empty_like(state)
        dv, dk, dalpha = (torch.empty_like(a) for a in (v, k, alpha))
        dbeta = None if beta is None else torch.empty_like(beta)
        want_x, want_weight, want_bias = ctx.needs_input_grad[6:9]
        dx = torch.empty_like(x) if want_x else None
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
        rows = min(size, steps) * batch
        job, q = Job(v, k, beta is not None, ctx.settings), v.new_empty(rows, d * n)
        dq = torch.empty_like(q) if want_x or want_weight or want_bias else None
        area, states = job.hold("backward"), {"threshold": limit, "dend": state, "dstart": state, "dthreshold": per_piece}
        for begin, stop in reversed(list(_pieces(steps, size))):
            at, rows = slice(begin, stop), (stop - begin) * batch
            job.job.steps = stop - begin
            flat = x[at].flatten(0, 1)
            torch.addmm(bias, flat, weight.t(), out=q[:rows])
            inputs = {"v": v[at], "k": k[at], "alpha": alpha[at], "beta": None if beta is None else beta[at], "q": q}
            results = {"dv": dv[at], "dk": dk[at], "dalpha": dalpha[at], "dbeta": None if dbeta is None else dbeta[at], "dq": dq}
            job.run("backward", {**inputs, **results, **states, "checkpoints": checkpoints[begin // segment * cells :], "dy": dy[at]})
            dlimit += per_piece
            if dq is not None:
                if want_weight:
                    dweight.addmm_(dq[:rows].t(), flat)
                if want_bias:
                    dbias += dq[:rows].sum(0)
                if dx is not None:
                    torch.mm(dq[:rows], weight, out=dx[at].view(rows, -1))
        del area
        return (dv, dk, dalpha, dbeta, dlimit.sum(0).flatten(), state, dx, dweight, dbias, None)
