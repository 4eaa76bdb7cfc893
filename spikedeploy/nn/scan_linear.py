"""The parallel routes of a leaky membrane without reset, in plain torch: convolution, prefix (two levels) and associative (doubling).

    u_t = d * u_{t-1} + x_t          u_{-1} = initial

All three are one autograd function: the adjoint of the scan is the same scan run backwards in time, so only u is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]


def prefix(x: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """Chunks of about sqrt(T) steps side by side, state in float64: their last values, the carries between, then all from their carry."""
    steps, lanes = x.shape
    length = max(1, isqrt(steps))
    chunks = steps // length
    main = x[: chunks * length].view(chunks, length, lanes)
    u = torch.empty_like(x)
    starts = _carries(main, d, start)
    _run(main.unbind(1), d, starts[:-1].clone(), u[: chunks * length].view(chunks, length, lanes).unbind(1))
    _run(x[chunks * length :], d, starts[-1].clone(), u[chunks * length :])
    return u


def _run(rows: Any, d: Tensor, state: Tensor, to: Any) -> None:
    for row, out in zip(rows, to, strict=True):
        state.mul_(d).add_(row)
        out.copy_(state)


def _carries(main: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """The state before each chunk, and after the last: `(chunks + 1, lanes)`."""
    chunks, length, lanes = main.shape
    local = torch.zeros((chunks, lanes), dtype=torch.float64, device=main.device)
    for row in main.unbind(1):
        local.mul_(d).add_(row)
    carries = torch.empty((chunks + 1, lanes), dtype=torch.float64, device=main.device)
    carries[0] = start
    jump = d**length
    for k in range(chunks):
        torch.addcmul(local[k], jump, carries[k], out=carries[k + 1])
    return carries


def associative(x: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """Hillis and Steele's scan over pairs (decay, value): log2(T) doublings, `u_t += d^k u_{t-k}` for k = 1, 2, 4, ..."""
    u = x.double().clone()
    u[0] += d * start
    span, factor = 1, d
    while span < len(u):
        u[span:] += factor * u[:-span].clone()
        span, factor = 2 * span, factor * factor
    return u.to(x.dtype)


def convolution(x: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """Causal convolution with d^j by FFT in float64."""
    steps = len(x)
    powers = d.expand(x.shape[1]) ** torch.arange(steps, dtype=torch.float64, device=x.device)[:, None]
    size = 2 * steps
    spectrum = torch.fft.rfft(x.double(), size, dim=0) * torch.fft.rfft(powers, size, dim=0)
    u = torch.fft.irfft(spectrum, size, dim=0)[:steps]
    return u.addcmul_(powers, d * start).to(x.dtype)


SCANS: Mapping[str, Scan] = {"convolution": convolution, "prefix": prefix, "associative": associative}
"""Per route: `(x (T, lanes), decay (1 or lanes,) float64, start (lanes,) float64) -> u (T, lanes)` in x's dtype."""


class LinearScan(torch.autograd.Function):
    """`(x (T, lanes), decay float64, start (lanes,) float64, method, chunk) -> u (T, lanes)`; `chunk` lanes at a time bound the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, start: Tensor, method: str, chunk: int) -> Tensor:
        u = _by_lanes(SCANS[method], x, d, start, chunk)
        ctx.save_for_backward(u, d, start)
        ctx.method, ctx.chunk = method, chunk
        return u

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        u, d, start = ctx.saved_tensors
        adjoint = _by_lanes(SCANS[ctx.method], grads[0].flip(0), d, torch.zeros_like(start), ctx.chunk).flip(0)
        grad_d = None
        if ctx.needs_input_grad[1]:
            lanes = adjoint[0].double() * start + torch.einsum("tn,tn->n", adjoint[1:].double(), u[:-1].double())
            grad_d = lanes.sum_to_size(d.shape)
        return adjoint, grad_d, d * adjoint[0].double(), None, None


def _by_lanes(scan: Scan, x: Tensor, d: Tensor, start: Tensor, chunk: int) -> Tensor:
    lanes = x.shape[1]
    if chunk >= lanes:
        return scan(x, d, start)
    d = d.expand(lanes)
    parts = [slice(at, at + chunk) for at in range(0, lanes, chunk)]
    return torch.cat([scan(x[:, part].contiguous(), d[part], start[part]) for part in parts], dim=1)


linear_scan: Callable[[Tensor, Tensor, Tensor, str, int], Tensor] = LinearScan.apply
