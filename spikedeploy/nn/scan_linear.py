"""The routes of a leaky membrane without reset, in plain torch: iterative, prefix (two levels), associative (doubling), convolution.

    u_t = d * u_{t-1} + x_t          u_{-1} = start

All are one autograd function: the adjoint of the scan is the same scan run backwards in time, so only u is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from math import gcd
from typing import Any

import torch
from torch import Tensor

WIDTH, SHORT, NARROW = 16384, 8, 256
"""Of the prefix route: lanes times chunks, enough for few operations, not too many for the cache; the shortest chunk; the lanes below which
a row of chunks is in pieces too short to work on where it lies."""

BLOCK, LENGTH, ROW, FEW = 1 << 20, 16, 1024, 8192
"""Where lanes are few: elements of a block of time, which bound what is held in float64; steps of a chunk; elements one operation should
find side by side; elements up to which what counts is the number of operations, which doublings keep lowest. Measured, as the above."""

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
        last = torch.zeros((chunks, lanes), dtype=torch.float64, device=x.device)
        for row in rows:
            torch.addcmul(row, last, d, out=last)
        carries, last = prefix(last, d**length, start)
        _advance(rows, d, torch.cat([state[None], carries[:-1]]), to)
        state = last
    _advance(x[whole:], d, state, u[whole:])
    return u, state


def _narrow(x: Tensor, d: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Block after block of time, in float64; in a block chunks side by side, each from zero, then with what comes from before it."""
    (steps, lanes), u, state = x.shape, torch.empty_like(x), start.to(torch.float64, copy=True)
    whole = steps - steps % LENGTH if steps > LENGTH else 0
    span = LENGTH * (BLOCK // (LENGTH * lanes))
    for at in range(0, whole, span):
        part = slice(at, min(at + span, whole))
        rows, to = (y[part].view(-1, LENGTH, lanes).transpose(0, 1) for y in (x, u))
        states = torch.empty(rows.shape, dtype=torch.float64, device=x.device).copy_(rows)
        state = _side_by_side(states, d, state)
        to.copy_(states)
    _advance(x[whole:], d, state, u[whole:])
    return u, state


def _side_by_side(rows: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """`rows (LENGTH, chunks, lanes)`, inputs as float64, become the states; returns the last. The chunks' ends are such a scan too."""
    length, chunks, lanes = rows.shape
    fold = gcd(chunks, max(1, ROW // lanes))  # chunks that lie side by side count as lanes
    wide, powers = rows.view(length, -1, fold * lanes), d.expand(lanes) ** torch.arange(1, length + 1, device=d.device)[:, None]
    powers = powers.repeat(1, fold)[:, None]
    for before, row in pairwise(wide.unbind(0)):
        row.addcmul_(before, powers[0])
    ends, last = prefix(rows[-1], d**length, start)
    handed = torch.cat([start[None], ends[:-1]]).view(-1, fold * lanes)
    wide.addcmul_(powers, handed)
    return last


def _advance(rows: Iterable[Tensor], d: Tensor, state: Tensor, to: Iterable[Tensor]) -> None:
    for row, out in zip(rows, to, strict=True):
        torch.addcmul(row, state, d, out=state)
        out.copy_(state)


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
