"""The matrix memories in one native call, forward and backward: what `method="native"` runs.

S never reaches RAM: segments of 64 steps leave one checkpoint each, and the backward recomputes a segment from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikedeploy import native
from spikedeploy.nn.memory_scan import Inputs
from spikedeploy.nn.surrogate import Surrogate

STATE, SPIKES, READ = 0, 1, 2  # what the kernel puts out: S, spikes, or what is read with them


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


def states(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """All states `(T, B, d, n)` and the last one, float64."""
    limit = torch.zeros(state.shape[1:], dtype=torch.float64)
    return _call(inputs, None, limit, state, STATE, Surrogate())


def spikes(inputs: Inputs, q: Tensor | None, threshold: Tensor, state: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Spikes `(T, B, d*n)`, or `vec(P_t Q_t)` `(T, B, d*d)` with `q (T, B, n*d)`, and the last state. threshold: one, or `d*n`."""
    limit = threshold.double().expand(state[0].numel())
    y, last = _call(inputs, q, limit, state, SPIKES if q is None else READ, surrogate)
    return y.flatten(-2), last


def _call(inputs: Inputs, q: Tensor | None, limit: Tensor, state: Tensor, output: int, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    v, k, z, *rest = inputs
    beta = rest[0] if rest else None
    arguments = (v, k, torch.sigmoid(z), beta, q, limit, state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments)
    contiguous = (None if x is None else x.contiguous() for x in arguments)
    result: tuple[Tensor, Tensor] = _Memory.apply(*contiguous, output, surrogate, keep)  # type: ignore[no-untyped-call]
    return result


def _suffix(x: Tensor) -> str:
    return "f64" if x.dtype == torch.float64 else "f32"


class _Memory(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        k: Tensor,
        alpha: Tensor,
        beta: Tensor | None,
        q: Tensor | None,
        limit: Tensor,
        state: Tensor,
        output: int,
        surrogate: Surrogate,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        (steps, batch, d), n = v.shape, k.shape[-1]
        segments = -(-steps // native.core()[1].sd_memory_segment())
        checkpoints = torch.empty(batch, segments, d, n, dtype=torch.float64) if keep else None
        y = torch.empty(steps, batch, d, d if output == READ else n, dtype=v.dtype)
        end = torch.empty_like(state)
        saved = (v, k, alpha, beta, q, limit, state, checkpoints)
        ctx.save_for_backward(*saved)
        ctx.settings = {"output": output, "surrogate": surrogate.code, "slope": surrogate.k}
        ctx.set_materialize_grads(False)
        _run("forward", ctx.settings, saved, {"y": y, "end": end})
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under checkpointing a second look is an error
        v, k, alpha, beta, q, limit, state, _ = saved
        shape = (*v.shape, v.shape[-1] if q is not None else k.shape[-1])
        dy = v.new_zeros(shape) if grads[0] is None else grads[0].contiguous()
        dend = torch.zeros_like(state) if grads[1] is None else grads[1].contiguous()
        wanted = {"dv": v, "dk": k, "dalpha": alpha, "dbeta": beta, "dq": q if ctx.needs_input_grad[4] else None}
        results = {name: None if x is None else torch.empty_like(x) for name, x in wanted.items()}
        per_batch, dstart = torch.empty_like(state), torch.empty_like(state)
        more = {"dy": dy, "dend": dend, **results, "dthreshold": per_batch, "dstart": dstart}
        _run("backward", ctx.settings, saved, more)
        dlimit = per_batch.sum(0).reshape(limit.shape) if ctx.needs_input_grad[5] else None
        return (*results.values(), dlimit, dstart, None, None, None)


NAMES = ("v", "k", "alpha", "beta", "q", "threshold", "start", "checkpoints")


def _run(direction: str, settings: dict[str, Any], saved: tuple[Tensor | None, ...], more: dict[str, Tensor | None]) -> None:
    ffi, lib = native.core()
    arrays = {**dict(zip(NAMES, saved, strict=True)), **more}
    v, k = saved[0], saved[1]
    assert v is not None and k is not None
    job = ffi.new("sd_memory *", settings)
    job.steps, job.batch, job.d, job.n = *v.shape, k.shape[-1]
    job.delta, job.threads = int(arrays["beta"] is not None), torch.get_num_threads()
    for name, array in arrays.items():
        if array is not None:
            setattr(job, name, ffi.cast("void *", array.data_ptr()))
    if getattr(lib, f"sd_memory_{direction}_{_suffix(v)}")(job):
        raise MemoryError(f"no memory for the work area of a {v.shape[-1]} x {k.shape[-1]} memory")
