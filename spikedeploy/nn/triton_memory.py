"""Gen2's recurrence over a segment of time on a GPU: one program per batch element and block of rows, S in registers.

Imported only where Triton is installed. With TRITON_INTERPRET=1 it also runs on a CPU, which is how it is tested.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikedeploy.nn.memory_scan import Inputs
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.triton_launch import launch

CELLS = 1024
"""Cells of S that one program holds in registers, in float64."""


@triton.jit
def _forward(v, k, alpha, start, states, end, steps, batch, d, n, ROWS: tl.constexpr, COLS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    i, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    at, cells = i[:, None] * n + j[None, :], (i < d)[:, None] & (j < n)[None, :]
    s = tl.load(start + b * d * n + at, cells, 0.0)
    for t in range(steps):
        row = t * batch + b
        a = tl.load(alpha + row * n + j, j < n, 0.0)
        write = tl.load(v + row * d + i, i < d, 0.0).to(tl.float64)[:, None] * tl.load(k + row * n + j, j < n, 0.0).to(tl.float64)[None, :]
        s = s * a[None, :] + write
        tl.store(states + row * d * n + at, s, cells)
    tl.store(end + b * d * n + at, s, cells)


@triton.jit
def _backward(
    v, k, alpha, start, states, dstates, dend, dv, dk, dalpha, dstart, steps, batch, d, n, ROWS: tl.constexpr, COLS: tl.constexpr
):
    b = tl.program_id(0).to(tl.int64)
    i, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    at, cells = i[:, None] * n + j[None, :], (i < d)[:, None] & (j < n)[None, :]
    part = tl.program_id(1) * steps * batch  # each block of rows has sums of its own: no atomics, so always the same bits
    g = tl.load(dend + b * d * n + at, cells, 0.0)
    for back in range(steps):
        t = steps - 1 - back
        row = t * batch + b
        a = tl.load(alpha + row * n + j, j < n, 0.0)
        vt = tl.load(v + row * d + i, i < d, 0.0).to(tl.float64)
        kt = tl.load(k + row * n + j, j < n, 0.0).to(tl.float64)
        later = (i + t > i)[:, None]  # the interpreter wants a tensor, not a number
        before = tl.load(states + (row - batch) * d * n + at, cells & later, 0.0).to(tl.float64)
        before += tl.load(start + b * d * n + at, cells & (later == 0), 0.0)
        g += tl.load(dstates + row * d * n + at, cells, 0.0).to(tl.float64)
        tl.store(dv + row * d + i, tl.sum(g * kt[None, :], 1), i < d)
        tl.store(dk + (part + row) * n + j, tl.sum(g * vt[:, None], 0), j < n)
        tl.store(dalpha + (part + row) * n + j, tl.sum(g * before, 0), j < n)
        g = g * a[None, :]
    tl.store(dstart + b * d * n + at, g, cells)


class _Memory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, k: Tensor, alpha: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        (steps, batch, d), n = v.shape, k.shape[-1]
        states, end = v.new_empty(steps, batch, d, n), torch.empty_like(start)
        columns = triton.next_power_of_2(n)
        ctx.shape = {"ROWS": max(1, min(triton.next_power_of_2(d), CELLS // columns)), "COLS": columns}
        ctx.grid = (batch, triton.cdiv(d, ctx.shape["ROWS"]))
        launch(_forward, ctx.grid, v, k, alpha, start, states, end, steps, batch, d, n, **ctx.shape)
        ctx.save_for_backward(v, k, alpha, start, states)
        return states, end

    @staticmethod
    @once_differentiable("matrix memory, the Triton kernel", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        v, k, alpha, start, states = ctx.saved_tensors
        (steps, batch, d), n, blocks = v.shape, k.shape[-1], ctx.grid[1]
        dv, dstart = torch.empty_like(v), torch.empty_like(start)
        dk, dalpha = (alpha.new_empty(blocks, *k.shape) for _ in range(2))
        dstates, dend = (grad.contiguous() for grad in grads)
        launch(
            _backward, ctx.grid, v, k, alpha, start, states, dstates, dend, dv, dk, dalpha, dstart, steps, batch, d, n, **ctx.shape
        )  # fmt: skip
        return dv, dk.sum(0).to(k.dtype), dalpha.sum(0), dstart


def states(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """All states `(T, B, d, n)` of a segment and the last one in float64; a route as those of `memory_scan`."""
    v, k, z = inputs
    result: tuple[Tensor, Tensor] = _Memory.apply(*(x.contiguous() for x in (v, k, torch.sigmoid(z), state)))
    return result
