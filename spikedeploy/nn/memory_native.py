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


def segment_steps() -> int:
    """Steps from one checkpoint of the kernel to the next."""
    steps: int = native.core()[1].sd_memory_segment()
    return steps


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


NAMES = ("v", "k", "alpha", "beta", "q", "threshold", "start", "checkpoints")


class Job:
    """One call description of the kernel: sizes and settings once, arrays by name as often as there are calls."""

    def __init__(self, v: Tensor, k: Tensor, delta: bool, settings: dict[str, Any]) -> None:
        self.ffi, self.lib = native.core()
        self.job = self.ffi.new("sd_memory *", settings)
        self.job.steps, self.job.batch, self.job.d, self.job.n = *v.shape, k.shape[-1]
        self.job.delta, self.job.threads = int(delta), torch.get_num_threads()
        self.suffix = "f64" if v.dtype == torch.float64 else "f32"

    def hold(self, direction: str) -> Tensor:
        """The work area of many calls; keep it as long as the job."""
        area = torch.zeros(getattr(self.lib, f"sd_memory_area_{self.suffix}")(self.job, int(direction == "backward")), dtype=torch.uint8)
        self.job.area = self.ffi.cast("void *", area.data_ptr())
        return area

    def run(self, direction: str, arrays: dict[str, Tensor | None]) -> None:
        """`direction` is "forward" or "backward"; arrays must be contiguous."""
        for name, array in arrays.items():
            setattr(self.job, name, self.ffi.NULL if array is None else self.ffi.cast("void *", array.data_ptr()))
        if getattr(self.lib, f"sd_memory_{direction}_{self.suffix}")(self.job):
            raise MemoryError(f"no memory for the work area of a {self.job.d} x {self.job.n} memory")


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
        segments = -(-steps // segment_steps())
        checkpoints = torch.empty(batch, segments, d, n, dtype=torch.float64) if keep else None
        y = torch.empty(steps, batch, d, d if output == READ else n, dtype=v.dtype)
        end = torch.empty_like(state)
        saved = (v, k, alpha, beta, q, limit, state, checkpoints)
        ctx.save_for_backward(*saved)
        ctx.settings = {"output": output, "surrogate": surrogate.code, "slope": surrogate.k}
        ctx.set_materialize_grads(False)
        Job(v, k, beta is not None, ctx.settings).run("forward", {**dict(zip(NAMES, saved, strict=True)), "y": y, "end": end})
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
        Job(v, k, beta is not None, ctx.settings).run("backward", {**dict(zip(NAMES, saved, strict=True)), **more})
        dlimit = per_batch.sum(0).reshape(limit.shape) if ctx.needs_input_grad[5] else None
        return (*results.values(), dlimit, dstart, None, None, None)
