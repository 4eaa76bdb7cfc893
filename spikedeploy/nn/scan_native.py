"""The leaky neuron in one fused native call, forward and backward: what `method="native"` runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.nn.allocator import empty
from spikedeploy.nn.neuron import RESETS, Neuron
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.surrogate import Surrogate

SILENT = Surrogate("zero")


@cache
def _built() -> bool:
    return native.available() and hasattr(native.core()[1], "sd_leaky_forward")


def admits(x: Tensor) -> bool:
    """Whether the native core can take `x`."""
    return _built() and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def rows(x: Tensor | None) -> tuple[Tensor | None, int]:
    """`x (T, ...)` with contiguous rows, and the elements from one row to the next: 0 where all rows are the same memory."""
    if x is None:
        return None, 0
    if x.is_contiguous():
        return x, x.numel() // x.shape[0]
    if x.stride(0) == 0:
        return x[0].contiguous(), 0
    return x.contiguous(), x.numel() // x.shape[0]


def _overwrite(spk: Tensor | None, mem: Tensor) -> tuple[Tensor | None, Tensor]:
    """The caller's buffers as outputs: what autograd saved of their old content counts as changed."""
    buffers = [None if buffer is None else buffer.detach() for buffer in (spk, mem)]
    torch.autograd.graph.increment_version([buffer for buffer in buffers if buffer is not None])
    assert buffers[1] is not None
    return buffers[0], buffers[1]


def _fresh(x: Tensor, neuron: Neuron) -> tuple[Tensor | None, Tensor]:
    return empty(x.shape, x.dtype) if neuron.spikes else None, empty(x.shape, x.dtype)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _parameter(p: Tensor | None) -> tuple[int, int, int]:
    """Address, period and whether it is double."""
    return (0, 1, 0) if p is None else (p.data_ptr(), p.numel(), int(p.dtype == torch.float64))


class NativeLeaky(torch.autograd.Function):
    """`(x, decay, threshold, graded, initial, neuron, out) -> (spk, mem, final)`; parameters contiguous, of period dividing the lanes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        decay: Tensor,
        threshold: Tensor | None,
        graded: Tensor | None,
        initial: Tensor | None,
        neuron: Neuron,
        out: tuple[Tensor | None, Tensor] | None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        ffi, lib = native.core()
        surrogate = neuron.surrogate if isinstance(neuron.surrogate, Surrogate) else SILENT
        seq, stride = rows(x)
        assert seq is not None
        wide = x.dtype == torch.float64
        state = torch.float64 if wide or neuron.wide_state else torch.float32
        spk, mem = _overwrite(*out) if out else _fresh(x, neuron)
        final = torch.empty(x.shape[1:], dtype=state) if neuron.final else None
        decay_at, decay_period, decay_wide = _parameter(decay)
        threshold_at, threshold_period, threshold_wide = _parameter(threshold)
        graded_at, graded_period, graded_wide = _parameter(graded)
        job = ffi.new(
            "sd_leaky *",
            (
                x.shape[0], mem[0].numel(), wide, wide or neuron.wide_state, RESETS.index(neuron.reset), neuron.reset_delay, neuron.strict,
                neuron.is_tau, neuron.clamped, neuron.power, surrogate.code, torch.get_num_threads(),
                decay_wide, threshold_wide, graded_wide, decay_period, threshold_period, graded_period, decay_at, threshold_at, graded_at,
                surrogate.k, stride, seq.data_ptr(), _address(initial), mem.data_ptr(), _address(spk), _address(final),
            ),
        )  # fmt: skip
        lib.sd_leaky_forward(job)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mem, None if neuron.reset_delay else seq, decay, threshold, graded, initial)
        ctx.job, ctx.neuron, ctx.grad_out = job, neuron, None
        if spk is None:
            return None, mem, final
        return spk, mem, final

    @staticmethod
    @once_differentiable("leaky neuron, method 'native'", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _, lib = native.core()
        mem, seq, decay, threshold, graded, initial = ctx.saved_tensors
        (grad_spk, spk_stride), (grad_mem, mem_stride) = rows(grads[0]), rows(grads[1])
        grad_final = None if grads[2] is None else grads[2].contiguous()
        wants = ctx.needs_input_grad
        state = torch.float64 if ctx.job.wide_state else torch.float32
        result = [
            empty(mem.shape, mem.dtype) if wants[0] else None,
            *(torch.empty_like(p) if want else None for p, want in zip((decay, threshold, graded), wants[1:4], strict=True)),
            torch.empty(mem.shape[1:], dtype=state) if wants[4] else None,
        ]
        job = ctx.job
        job.decay, job.threshold, job.graded = decay.data_ptr(), _address(threshold), _address(graded)
        job.mem, job.x, job.initial = mem.data_ptr(), _address(seq), _address(initial)
        job.grad_spk, job.grad_spk_stride, job.grad_mem, job.grad_mem_stride = (
            _address(grad_spk),
            spk_stride,
            _address(grad_mem),
            mem_stride,
        )
        job.grad_final, job.threads = _address(grad_final), torch.get_num_threads()
        job.grad_x, job.grad_decay, job.grad_threshold, job.grad_graded, job.grad_initial = map(_address, result)
        if lib.sd_leaky_backward(job):
            raise MemoryError("no memory for the parameter gradients of a leaky neuron")
        return (*result, None, None)


native_leaky: Callable[..., tuple[Tensor | None, Tensor, Tensor | None]] = NativeLeaky.apply
