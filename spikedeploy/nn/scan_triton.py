"""The leaky neuron on a GPU: what `method="triton"` runs. The same numbers as `native`; tests run it in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.neuron import RESETS, Neuron
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.scan_linear import prefix
from spikedeploy.nn.scan_loop import amplify, decay_of
from spikedeploy.nn.surrogate import Surrogate
from spikedeploy.nn.triton_launch import launch

MANY_LANES = 16384
"""From here on one program per block of lanes fills a GPU, and time is not cut."""

BLOCK, WARPS = 64, 2
"""Lanes of a program, and its warps of 32."""


def chunk_length(steps: int, lanes: int, linear: bool) -> int:
    """Steps per chunk: all of them where a reset forbids cutting or lanes are many."""
    chunks = 1 if not linear else max(1, min(MANY_LANES // lanes, steps // 32))
    return -(-steps // chunks)


class TritonLeaky(torch.autograd.Function):
    """`(x (T, lanes), decay, threshold, amplitude, start, neuron)` -> `spk, mem, final`; parameters `(lanes,)`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, decay: Tensor, threshold: Tensor, amplitude: Tensor, start: Tensor, neuron: Neuron
    ) -> tuple[Tensor, Tensor, Tensor]:
        from spikedeploy.nn import triton_leaky as kernels

        steps, lanes = x.shape
        length = chunk_length(steps, lanes, neuron.linear)
        chunks = -(-steps // length)
        mem, spk = torch.empty_like(x), torch.empty_like(x)
        ends = torch.empty((chunks, lanes), dtype=start.dtype, device=x.device)
        grid = (-(-lanes // BLOCK), chunks)

        def run(initial: Tensor, store: bool) -> None:
            launch(
                kernels.forward, grid, x, mem, spk, ends, initial, decay, threshold, amplitude, steps, length, lanes,
                RESETS.index(neuron.reset), neuron.strict, store, neuron.spikes, BLOCK, num_warps=WARPS,
            )  # fmt: skip

        initial = start[None]
        if chunks > 1:
            run(torch.zeros_like(ends), False)
            carries = prefix(ends.double(), decay.double() ** length, start)[0]
            initial = torch.cat([start[None], carries[:-1].to(start.dtype)])
        run(initial.contiguous(), True)
        ctx.save_for_backward(mem, decay, threshold, amplitude, start)
        ctx.neuron, ctx.length, ctx.grid = neuron, length, grid
        return spk, mem, ends[-1].clone()

    @staticmethod
    @once_differentiable("leaky neuron, method 'triton'", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        from spikedeploy.nn import triton_leaky as kernels

        mem, decay, threshold, amplitude, start = ctx.saved_tensors
        neuron, length, chunks = ctx.neuron, ctx.length, ctx.grid[1]
        steps, lanes = mem.shape
        grad_x = torch.empty_like(mem)
        first, g_decay, g_threshold, g_amplitude = (torch.empty((chunks, lanes), dtype=torch.float64, device=mem.device) for _ in range(4))
        grad_spk, grad_mem = grads[0].contiguous(), grads[1].contiguous()
        surrogate = neuron.surrogate if isinstance(neuron.surrogate, Surrogate) else Surrogate("zero")

        def run(carry: Tensor, store: bool) -> None:
            launch(
                kernels.backward, ctx.grid, mem, grad_mem, grad_spk, start, decay, threshold, amplitude, carry, grad_x, first, g_decay,
                g_threshold, g_amplitude, surrogate.k, steps, length, lanes, RESETS.index(neuron.reset), neuron.strict, store,
                neuron.spikes, surrogate.code, BLOCK, num_warps=WARPS,
            )  # fmt: skip

        carry = grads[2].double()[None]
        if chunks > 1:  # `first` of a chunk is what it hands to the one before: d^length times what it gets, plus its own
            run(torch.zeros_like(first), False)
            own, tail = first.flip(0), steps - (chunks - 1) * length
            got = own[0] + decay.double() ** tail * carry[0]
            later = prefix(own[1:], decay.double() ** length, got)[0].flip(0)
            carry = torch.cat([later[1:], got[None], carry])
        run(carry.contiguous(), True)
        sums = [total.sum(0).to(p.dtype) for total, p in ((g_decay, decay), (g_threshold, threshold), (g_amplitude, amplitude))]
        return (grad_x, *sums, first[0].to(start.dtype), None)


triton_leaky: Callable[..., tuple[Tensor, Tensor, Tensor]] = TritonLeaky.apply


def triton_scan(
    x: Tensor, decay: Tensor, threshold: Tensor | None, graded: Tensor | None, initial: Tensor | None, neuron: Neuron
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """`leaky_scan`'s last step on a GPU. Raises `BadInput` without triton or a GPU, and where the reset is not delayed."""
    if find_spec("triton") is None or not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        found = f"an input on {x.device}" if find_spec("triton") else "triton is not installed"
        raise BadInput(message("leaky neuron, method 'triton'", found, "triton and a CUDA tensor are needed", 'Use method "auto".'))
    if not neuron.reset_delay:
        raise BadInput(
            message("leaky neuron, method 'triton'", "reset_delay=False", "a delayed reset is needed", 'Use method "iterative".')
        )
    lanes, state = x[0].numel(), torch.float64 if neuron.wide_state else x.dtype

    def lane(p: Tensor, dtype: torch.dtype) -> Tensor:
        return p.to(dtype).flatten().repeat(lanes // p.numel())

    theta = x.new_full((1,), float("inf")) if threshold is None else threshold
    amplitude = x.new_ones(1) if graded is None else amplify(torch.ones_like(graded), graded, neuron)
    start = x.new_zeros(lanes, dtype=state) if initial is None else initial.to(state).flatten()
    flat = x.reshape(len(x), lanes).contiguous()
    spk, mem, final = triton_leaky(
        flat, lane(decay_of(decay, neuron, state), state), lane(theta, x.dtype), lane(amplitude, x.dtype), start, neuron
    )
    last = final.view(x.shape[1:]) if neuron.final else None
    return spk.view(x.shape) if neuron.spikes else None, mem.view(x.shape), last
