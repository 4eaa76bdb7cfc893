"""The matrix memories in the native core, forward and backward: what `method="native"` runs.

S never reaches RAM: segments of 32 or 64 steps leave one checkpoint each, and the backward recomputes a segment from it. Nor does the
query `Q_t = W_q x_t + b_q`, the largest tensor of the layer: the kernel forms the rows of it that a spike selects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.nn.allocator import empty
from spikedeploy.nn.memory_scan import Inputs, Route
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.surrogate import Surrogate

STATE, SPIKES, READ = 0, 1, 2  # what the kernel puts out: S, spikes, or what is read with them

Arrays = Mapping[str, Tensor | None]
Settings = dict[str, Any]

PARALLEL_FROM = 1 << 16
"""Cells over time; below, threads cost more than they save."""


def admits(x: Tensor) -> bool:
    """Whether the native core can take `x`."""
    return not why_not(x)


def why_not(x: Tensor) -> str:
    """Why the native core cannot take `x`; empty when it can."""
    if not native.available():
        return f"the native core is not available ({native.why_not()})"
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return f"the native core runs float32 and float64 on a CPU, not {x.dtype} on {x.device.type}"
    return ""


def states(delta: bool) -> Route:
    """The route to all states `(T, B, d, n)` and the last one, float64, from the packed inputs `(T, B, d + 2n [+ 1])`."""

    def route(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        return _call(inputs[0], (), state.new_zeros(1), state, {"delta": int(delta), "output": STATE})

    return route


def spikes(
    packed: Tensor, query: tuple[Tensor, ...], threshold: Tensor, state: Tensor, surrogate: Surrogate, delta: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spikes `(T, B, d*n)`, or `vec(P_t Q_t)` `(T, B, d*d)` with a query, and the last state.

    packed      `(T, B, d + 2n [+ 1])`: v, k, the logits of alpha and, for Gen3 (`delta`, which normalises k), that of beta
    query       none; or `Q (T, B, n*d)`; or `x (T, B, m)`, the weight `(n*d, m)` and the bias `(n*d,)` of its map
    threshold   one number, or one per cell
    """
    settings = {"delta": int(delta), "output": READ if query else SPIKES, "surrogate": surrogate.code, "slope": surrogate.k}
    y, last = _call(packed, query, threshold.double().reshape(-1), state, settings)
    return y.flatten(-2), last


def _call(packed: Tensor, query: tuple[Tensor, ...], limit: Tensor, state: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    arguments = (packed, limit, state, *query)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in arguments)
    result: tuple[Tensor, Tensor] = _Memory.apply(settings, keep, *(x.contiguous() for x in arguments))  # type: ignore[no-untyped-call]
    return result


class _Job:
    """One description of a call of the kernel. The caller keeps the arrays; `result` is the largest of them, about to be written whole."""

    def __init__(self, direction: str, result: Tensor, packed: Tensor, state: Tensor, settings: Settings, arrays: Arrays) -> None:
        ffi, lib = native.core()
        job = ffi.new("sd_memory *", settings)
        job.steps, job.batch = packed.shape[:2]
        job.d, job.n = state.shape[1:]
        job.threads = 1 if job.steps * state.numel() < PARALLEL_FROM else torch.get_num_threads()
        for name, array in arrays.items():
            if array is not None:
                setattr(job, name, ffi.cast("void *", array.data_ptr()))
        suffix = "f64" if packed.dtype == torch.float64 else "f32"
        area = torch.zeros(getattr(lib, f"sd_memory_area_{suffix}")(job, int(direction == "backward")), dtype=torch.uint8)
        job.area = ffi.cast("void *", area.data_ptr())
        lib.sd_memory_announce(ffi.cast("void *", result.data_ptr()), result.numel() * result.element_size())
        getattr(lib, f"sd_memory_{direction}_{suffix}")(job)


QUERIES: dict[int, tuple[str, ...]] = {0: (), 1: ("q",), 3: ("x", "weight", "bias")}
"""The query's tensors, by their number."""


def _gradients(names: tuple[str, ...], tensors: Sequence[Tensor], wanted: Sequence[bool]) -> dict[str, Tensor]:
    """Room for the gradients of the query's tensors; the map's weight and bias have theirs together."""
    together = [any(wanted[1:]) if name in ("weight", "bias") else one for name, one in zip(names, wanted, strict=True)]
    return {f"d{name}": torch.empty_like(one) for name, one, want in zip(names, tensors, together, strict=True) if want}


class _Memory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, keep: bool, packed: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        limit, state, *tensors = others
        (steps, batch), (d, n) = packed.shape[:2], state.shape[1:]
        names = QUERIES[len(tensors)]
        settings = settings | {"thresholds": limit.numel(), "inputs": tensors[0].shape[-1] if "x" in names else 0}
        y = empty((steps, batch, d, d if settings["output"] == READ else n), packed.dtype)
        _, lib = native.core()
        end, segments = torch.empty_like(state), -(-steps // lib.sd_memory_segment(d, n))
        checkpoints = state.new_empty(segments * state.numel()) if keep else None
        arrays = {"in": packed, "threshold": limit, "start": state, "end": end, "checkpoints": checkpoints, "y": y}
        _Job("forward", y, packed, state, settings, arrays | dict(zip(names, tensors, strict=True)))
        ctx.save_for_backward(packed, limit, checkpoints, *tensors)
        ctx.settings, ctx.shape = settings, state.shape
        ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @once_differentiable("matrix memory, method 'native'", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        packed, limit, checkpoints, *tensors = ctx.saved_tensors  # once: under checkpointing a second look is an error
        (steps, batch), (d, n) = packed.shape[:2], ctx.shape[1:]
        dy = packed.new_zeros(steps, batch, d, d if tensors else n) if grads[0] is None else grads[0].contiguous()
        dend = limit.new_zeros(ctx.shape) if grads[1] is None else grads[1].contiguous()
        dpacked, dstart, names = torch.empty_like(packed), torch.empty_like(dend), QUERIES[len(tensors)]
        dlimit = torch.empty_like(dend) if ctx.needs_input_grad[3] else None
        dquery = _gradients(names, tensors, ctx.needs_input_grad[5:])
        arrays = {"in": packed, "threshold": limit, "checkpoints": checkpoints, "dy": dy, "dend": dend, "din": dpacked, "dstart": dstart}
        arrays |= {"dthreshold": dlimit} | dquery | dict(zip(names, tensors, strict=True))
        _Job("backward", dpacked, packed, dend, ctx.settings, arrays)
        if dlimit is not None:
            dlimit = dlimit.sum(0).flatten() if limit.numel() > 1 else dlimit.sum().reshape(1)
        return (None, None, dpacked, dlimit, dstart, *(dquery.get(f"d{name}") for name in names))
