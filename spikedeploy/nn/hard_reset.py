"""The leaky neuron with hard reset, trained exactly: three forms of one recurrence, to the same bits.

    u'_t = tau * u_{t-1} + x_t        s_t = 1[u'_t >= 1]        u_t = u'_t (1 - s_t)

`rollout` is the loop, and the specification; the fused kernel is the second form, and verified chunks are the third (see speculate.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.nn.allocator import empty
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.speculate import speculate
from spikedeploy.nn.uncompiled import uncompiled


def rollout(x: Tensor, tau: float) -> Tensor:
    """The membrane `u'` before reset; x `(T, ...)`. The loop that the others are tested against."""
    u, membrane = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        u = tau * u + current
        membrane.append(u)
        u = torch.where(u >= 1, torch.zeros_like(u), u)
    return torch.stack(membrane)


def triangle(away: Tensor) -> Tensor:
    """The surrogate derivative of the spike, `max(0, 1 - |u' - 1|)`; away = u' - 1."""
    return (1 - away.abs()).clamp_min(0)


def _charge(tau: float, u: Tensor, x: Tensor, *, out: Tensor) -> None:
    """The next u' from the one before reset and the current."""
    torch.mul(torch.where(u >= 1, 0, u), tau, out=out).add_(x)


def _adjoint(tau: float, later: Tensor, direct: Tensor, membrane: Tensor, g_membrane: Tensor | None = None, *, out: Tensor) -> None:
    """dL/du'_t from dL/du'_{t+1}."""
    torch.add(direct, torch.where(membrane >= 1, 0, tau * later), out=out)
    if g_membrane is not None:
        out.add_(g_membrane)


def has_kernel(x: Tensor) -> bool:
    """Whether the native kernel can take `x`."""
    return native.available() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _call(name: str, x: Tensor, *args: Tensor | None, tau: float) -> None:
    ffi, lib = native.core()
    kind, suffix = ("float *", "f32") if x.dtype == torch.float32 else ("double *", "f64")
    pointers = [ffi.NULL if a is None else ffi.cast(kind, a.data_ptr()) for a in (x, *args)]
    getattr(lib, f"sd_hard_reset_{name}_{suffix}")(*pointers, x.shape[0], x[0].numel(), tau, torch.get_num_threads())


class HardReset(torch.autograd.Function):
    """Spikes and membrane from the current, exactly; the gradient of backpropagation through time with the reset detached.

    x `(T, ...)` in units of the threshold -> spikes, membrane `(T, ...)`. Backward, from the last step:

        g_t = dL/ds_t * max(0, 1 - |u'_t - 1|) + dL/du'_t + tau (1 - s_t) g_{t+1}        dL/dx_t = g_t
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: float, use_kernel: bool) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        if use_kernel:
            membrane, spikes = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
            _call("forward", x, membrane, spikes, tau=tau)
        else:
            flat = x.reshape(len(x), -1)
            membrane = speculate(partial(_charge, tau), [flat], torch.zeros_like(flat[0]), tau).reshape(x.shape)
            spikes = (membrane >= 1).to(x)
        ctx.save_for_backward(membrane)
        ctx.set_materialize_grads(False)
        ctx.tau, ctx.use_kernel = tau, use_kernel
        return spikes, membrane

    @staticmethod
    @once_differentiable("hard_reset", "Use `spikedeploy.nn.hard_reset.rollout`.")
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        (membrane,) = ctx.saved_tensors
        g_spikes, g_membrane = grads
        if g_spikes is None and g_membrane is None:
            return None, None, None
        g_spikes = torch.zeros_like(membrane) if g_spikes is None else g_spikes.contiguous()
        g_membrane = None if g_membrane is None else g_membrane.contiguous()
        tau: float = ctx.tau
        if ctx.use_kernel:
            g_x = empty(membrane.shape, membrane.dtype)
            _call("backward", membrane, g_spikes, g_membrane, g_x, tau=tau)
            return g_x, None, None
        return _adjoint_in_chunks(membrane, g_spikes, g_membrane, tau), None, None


def _adjoint_in_chunks(membrane: Tensor, g_spikes: Tensor, g_membrane: Tensor | None, tau: float) -> Tensor:
    """The backward recurrence is the same kind of loop, backwards in time."""
    direct = g_spikes * triangle(membrane - 1)
    flat = [x.reshape(len(x), -1).flip(0) for x in (direct, membrane)]
    if g_membrane is not None:
        # the kernel adds this gradient last, and so does the step here: the bits are the same
        flat.append(g_membrane.reshape(len(direct), -1).flip(0))
    return speculate(partial(_adjoint, tau), flat, torch.zeros_like(flat[0][0]), tau).flip(0).reshape(membrane.shape)


@uncompiled
def hard_reset(x: Tensor, tau: float, *, kernel: bool | None = None) -> tuple[Tensor, Tensor]:
    """Spikes and membrane before reset, `(T, ...)` each, of currents `x (T, ...)` in units of the threshold.

    `kernel` None takes the native kernel where it can be used, False the pure torch form; both give the same bits. Raises `ValueError` for
    an empty sequence, for numbers that are not floating point, and for True where the kernel cannot take `x`.
    """
    if x.ndim < 1 or not len(x) or not x.is_floating_point():
        raise ValueError(f"hard_reset: currents {tuple(x.shape)} of {x.dtype}; (T, ...) floating point with at least one step is needed.")
    use = has_kernel(x) if kernel is None else kernel
    if use and not has_kernel(x):
        raise ValueError(
            f"hard_reset: {x.dtype} on {x.device}; the kernel takes float32 and float64 on the CPU. {native.why_not()}".rstrip()
        )
    return HardReset.apply(x, tau, use)
