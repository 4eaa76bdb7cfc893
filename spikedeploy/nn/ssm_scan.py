"""The S4D recurrence as one fused native kernel, with its gradient: what a CPU trains with several times faster than with an FFT.

h_t = a h_{t-1} + x_t        y_t = Re sum_m c_m h_{t,m} + d x_t        (c holds the factor 2)
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.uncompiled import uncompiled


def has_kernel(x: Tensor) -> bool:
    """Whether the native kernel can take `x`."""
    return native.available() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _call(name: str, arrays: list[Tensor | None], sums: Tensor | None, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    ffi, lib = native.core()
    kind, suffix = ("float *", "f32") if dtype == torch.float32 else ("double *", "f64")
    pointers = [ffi.NULL if a is None else ffi.cast(kind, a.data_ptr()) for a in arrays]
    pointers += [] if sums is None else [ffi.cast("double *", sums.data_ptr())]
    if getattr(lib, f"sd_ssm_{name}_{suffix}")(*pointers, *sizes, torch.get_num_threads()):
        raise MemoryError("S4D: no memory for the states of a segment")


class DiagonalScan(torch.autograd.Function):
    """x `(T, B, H)`, parameters `(4M + 1, H)`: rows of a_re, a_im, c_re, c_im, then d -> y `(T, B, H)`.

    States are kept once per segment of about sqrt(T) steps; backward computes the others again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor) -> Tensor:
        steps, batch, features = x.shape
        modes, segment = len(parameters) // 4, isqrt(steps - 1) + 1
        x, parameters = x.contiguous(), parameters.contiguous()
        y, marks = torch.empty_like(x), None
        if any(ctx.needs_input_grad):
            marks = x.new_empty(batch, -(-steps // segment), 2, modes, features)
        ctx.sizes = (steps, batch, features, modes, segment)
        _call("forward", [x, parameters, y, marks], None, ctx.sizes, x.dtype)
        ctx.save_for_backward(x, parameters, marks)
        return y

    @staticmethod
    @once_differentiable("S4D, the native kernel", 'Use form="fft".')
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, parameters, marks = ctx.saved_tensors
        g_x, g_parameters = torch.empty_like(x), torch.zeros(parameters.shape, dtype=torch.float64)
        _call("backward", [x, parameters, marks, grads[0].contiguous(), g_x], g_parameters, ctx.sizes, x.dtype)
        return g_x, g_parameters.to(parameters.dtype)


@uncompiled
def diagonal_scan(x: Tensor, a: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y `(T, B, H)` of x `(T, B, H)`; a, c complex `(H, M)` with the factor 2 in c, d `(H,)`; arithmetic in the dtype of x."""
    rows = torch.cat([a.real.T, a.imag.T, c.real.T, c.imag.T, d[None]]).to(x.dtype)
    return DiagonalScan.apply(x, rows)
