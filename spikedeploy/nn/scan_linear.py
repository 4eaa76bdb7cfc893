"""The routes of a leaky membrane without reset, in plain torch: iterative, prefix (two levels), associative (doubling), convolution.

    u_t = d * u_{t-1} + x_t          u_{-1} = start

All are one autograd function: the adjoint of the scan is the same scan run backwards in time, so only u is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import gcd
from typing import Any

import torch
from torch import Tensor

WIDTH, SHORT, NARROW = 16384, 8, 64
"""Of the prefix route: lanes times chunks, enough for few operations, not too many for the cache; the shortest chunk; the lanes below which
a row of chunks is in pieces too short to work on where it lies."""

BLOCK, ROW, FEW, MANY = 1 << 20, 1024, 8192, 1 << 18
"""Where lanes are few: elements of a block of time, which bound what is held beside the result; elements one operation should find side
by side; elements up to which what counts is the number of operations, which doublings keep lowest; and from which chunks are twice as long.
Measured, as the above."""

Scan = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def iterative(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Step after step in the state's precision, `start`'s: in float32 the very roundings of `snntorch.Leaky`."""
    u, state = torch.empty_like(x), start.clone()
    for row, out in zip(x, u, strict=True):
        state.mul_(d).add_(row)
        out.copy_(state)
    return u, state


def prefix(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks side by side, state in float64: their last values, the carries between by the same scan, then all from their carry."""
    steps, lanes = x.shape
    if lanes < NARROW:
        return _narrow(x, d, start) if x.numel() > FEW else associative(x, d, start)
    length = -(-steps // max(1, min(WIDTH // lanes, steps // SHORT)))
    chunks, u, state = steps // length, torch.empty_like(x), start.to(torch.float64, copy=True)
    whole = chunks * length if chunks > 1 else 0
    if whole:
        rows, to = (y[:whole].view(chunks, length, lanes).transpose(0, 1) for y in (x, u))
        state = _side_by_side(rows, d, d, start, to)
    _advance(x[whole:], d, state, u[whole:])
    return u, state


def _narrow(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Block after block of time, moved so that the rows of its chunks lie together, and moved back."""
    (steps, lanes), u, state = x.shape, torch.empty_like(x), start.to(torch.float64, copy=True)
    length = 32 if x.numel() >= MANY else 16
    whole = steps - steps % length if steps > length else 0
    span = length * (BLOCK // (length * lanes))
    for at in range(0, whole, span):
        part = slice(at, min(at + span, whole))
        rows, to = (y[part].view(-1, length, lanes).transpose(0, 1) for y in (x, u))
        fold = gcd(rows.shape[1], max(1, ROW // lanes))  # chunks that lie side by side count as lanes
        moved = torch.empty(rows.shape, dtype=x.dtype, device=x.device).copy_(rows)
        wide = moved.view(length, -1, fold * lanes)
        state = _side_by_side(wide, d, d.expand(lanes).repeat(fold), state, wide)
        to.copy_(moved)
    _advance(x[whole:], d, state, u[whole:])
    return u, state


def _side_by_side(rows: Tensor, d: Tensor, wide: Tensor, start: Tensor, to: Tensor) -> Tensor:
    """`rows (length, chunks, lanes)` to the states `to`, the same memory or another; returns the last.

    `wide` is d for all lanes of a row, where some chunks count as lanes.
    """
    last = torch.zeros(rows.shape[1:], dtype=torch.float64, device=rows.device)
    for _ in _states(rows, wide, last):
        pass
    ends, final = prefix(last.view(-1, len(start)), d ** len(rows), start)
    _advance(rows, wide, torch.cat([start[None], ends[:-1]]).view(last.shape), to)
    return final


def _states(rows: Iterable[Tensor], d: Tensor, state: Tensor) -> Iterator[Tensor]:
    """`state`, advanced by one row after another; a row that is not float64 is converted where the next one will be, in the cache."""
    held = torch.empty_like(state)
    for row in rows:
        yield torch.addcmul(row if row.dtype == state.dtype else held.copy_(row), state, d, out=state)


def _advance(rows: Iterable[Tensor], d: Tensor, state: Tensor, to: Iterable[Tensor]) -> None:
    for now, out in zip(_states(rows, d, state), to, strict=True):
        out.copy_(now)


def associative(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Hillis and Steele's scan over pairs (decay, value): log2(T) doublings, `u_t += d^k u_{t-k}` for k = 1, 2, 4, ..."""
    u = x.to(torch.float64, copy=True)
    u[0] += d * start
    span, factor = 1, d
    while span < len(u):
        u[span:] += factor * u[:-span].clone()
        span, factor = 2 * span, factor * factor
    return u.to(x.dtype), u[-1].clone()


def convolution(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Causal convolution with d^j by FFT in float64."""
    steps = len(x)
    powers = d.expand(x.shape[1]) ** torch.arange(steps, dtype=torch.float64, device=x.device)[:, None]
    size = 2 * steps
    spectrum = torch.fft.rfft(x.double(), size, dim=0) * torch.fft.rfft(powers, size, dim=0)
    u = torch.fft.irfft(spectrum, size, dim=0)[:steps].addcmul_(powers, d * start)
    return u.to(x.dtype), u[-1].clone()


SCANS: Mapping[str, Scan] = {"iterative": iterative, "convolution": convolution, "prefix": prefix, "associative": associative}
"""Per route: `(x (T, lanes), decay (1 or lanes,), start (lanes,)) -> u (T, lanes)` in x's dtype and the last u; decay and start float64,
but for the iterative route of a neuron whose state is float32."""


class LinearScan(torch.autograd.Function):
    """`(x (T, lanes), decay, start (lanes,), method, chunk) -> u (T, lanes), last (lanes,)`; `chunk` lanes at a time bound the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, d: Tensor, start: Tensor, method: str, chunk: int) -> tuple[Tensor, Tensor]:
        u, last = _by_lanes(SCANS[method], x, d, start, chunk)
        ctx.save_for_backward(u, d, start)
        ctx.method, ctx.chunk = method, chunk
        return u, last

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        u, d, start = ctx.saved_tensors
        backwards, wide = torch.cat([grads[0][:-1], (grads[0][-1] + grads[1])[None]]).flip(0), d.double()
        zero = torch.zeros_like(start, dtype=torch.float64)
        adjoint = linear_scan(backwards, wide, zero, ctx.method, ctx.chunk)[0].flip(0)  # so that it has a derivative itself
        first, grad_d = adjoint[0].double(), None
        if ctx.needs_input_grad[1]:
            lanes = first * start + torch.einsum("tn,tn->n", adjoint[1:].double(), u[:-1].double())
            grad_d = lanes.sum_to_size(d.shape).to(d.dtype)
        return adjoint, grad_d, (wide * first).to(start.dtype), None, None


def _by_lanes(scan: Scan, x: Tensor, d: Tensor, start: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    lanes = x.shape[1]
    if chunk >= lanes:
        return scan(x, d, start)
    d = d.expand(lanes)
    parts = [slice(at, at + chunk) for at in range(0, lanes, chunk)]
    results = [scan(x[:, part].contiguous(), d[part], start[part]) for part in parts]
    return torch.cat([u for u, _ in results], dim=1), torch.cat([last for _, last in results])


linear_scan: Callable[[Tensor, Tensor, Tensor, str, int], tuple[Tensor, Tensor]] = LinearScan.apply
