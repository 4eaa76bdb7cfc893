"""The matrix memories in the native core, forward and backward: what `method="native"` runs.

S never reaches RAM: segments of 32 or 64 steps leave one checkpoint each, and the backward recomputes a segment from it. Nor does the
query: the sequence is run in pieces of whole segments, and a piece of it is held at a time (`memory_query`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.nn.memory_query import Given, NoQuery, Projected, Query
from spikedeploy.nn.memory_scan import Inputs, Route
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.surrogate import Surrogate

STATE, SPIKES, READ = 0, 1, 2  # what the kernel puts out: S, spikes, or what is read with them

Arrays = Mapping[str, Tensor | None]
Settings = dict[str, Any]

PARALLEL_FROM = 1 << 16
"""Cells over time; below, threads cost more than they save."""

QUERIES: dict[int, type[Query]] = {0: NoQuery, 1: Given, 3: Projected}
"""How the query comes, by the number of its tensors."""


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
    """One description of calls of the kernel: sizes and settings once, then the addresses of a piece as often as there are pieces.

    The caller keeps the arrays. `result (T, B, ...)` is the largest of them, about to be written whole.
    """

    def __init__(self, direction: str, result: Tensor, limit: Tensor, state: Tensor, settings: Settings, fixed: Arrays) -> None:
        self.ffi, self.lib = native.core()
        self.job = self.ffi.new("sd_memory *", settings)
        self.steps = self.job.steps = len(result)
        self.job.batch, self.job.d, self.job.n = state.shape
        small = self.steps * state.numel() < PARALLEL_FROM
        self.job.threads, self.job.thresholds = 1 if small else torch.get_num_threads(), limit.numel()
        suffix = "f64" if result.dtype == torch.float64 else "f32"
        self.call = getattr(self.lib, f"sd_memory_{direction}_{suffix}")
        for name, array in {"threshold": limit, **fixed}.items():
            self._set(name, array)
        bytes_of_area = getattr(self.lib, f"sd_memory_area_{suffix}")(self.job, int(direction == "backward"))
        self.area = torch.zeros(bytes_of_area, dtype=torch.uint8)
        self._set("area", self.area)
        self.segment: int = self.lib.sd_memory_segment(self.job.d, self.job.n)
        self.width: int = self.lib.sd_memory_width(self.job.n)
        self.lib.sd_memory_announce(self.ffi.cast("void *", result.data_ptr()), result.numel() * result.element_size())

    def _set(self, name: str, array: Tensor | None, offset: int = 0) -> None:
        address = self.ffi.NULL if array is None else self.ffi.cast("void *", array.data_ptr() + offset)
        setattr(self.job, name, address)

    def pieces(self, steps: int) -> list[slice]:
        """The sequence in pieces of at most `steps`."""
        return [slice(begin, min(begin + steps, self.steps)) for begin in range(0, self.steps, steps)]

    def run(self, at: slice, sequences: Arrays, checkpoints: Tensor | None, query: Arrays) -> None:
        """The kernel on a piece of the sequences `(T, ...)`; a checkpoint holds one state per segment."""
        self.job.steps = at.stop - at.start
        for name, array in sequences.items():
            self._set(name, array, 0 if array is None else at.start * array.stride(0) * array.element_size())
        for name, array in query.items():
            self._set(name, array)
        self._set("checkpoints", checkpoints, at.start // self.segment * self.job.batch * self.job.d * self.job.n * 8)
        self.call(self.job)


class _Memory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, keep: bool, packed: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        limit, state, *tensors = others
        (steps, batch), (d, n) = packed.shape[:2], state.shape[1:]
        y = packed.new_empty(steps, batch, d, d if settings["output"] == READ else n)
        end = state.clone()  # the state moves on in place, piece by piece
        job = _Job("forward", y, limit, state, settings, {"start": end, "end": end})
        query = QUERIES[len(tensors)](tensors, [False] * len(tensors), d, n, job.width)
        checkpoints = state.new_empty(-(-steps // job.segment) * state.numel()) if keep else None
        for at in job.pieces(query.piece(packed, job.segment, backward=False)):
            job.run(at, {"in": packed, "y": y}, checkpoints, {"q": query.forward(at)})
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
        dstate = limit.new_zeros(ctx.shape) if grads[1] is None else grads[1].clone(memory_format=torch.contiguous_format)
        dpacked, dlimit = torch.empty_like(packed), None
        if ctx.needs_input_grad[3]:
            dlimit, part = torch.zeros_like(dstate), torch.empty_like(dstate)
        fixed = {"dend": dstate, "dstart": dstate, "dthreshold": None if dlimit is None else part}
        job = _Job("backward", dpacked, limit, dstate, ctx.settings, fixed)
        query = QUERIES[len(tensors)](tensors, ctx.needs_input_grad[5:], d, n, job.width)
        for at in reversed(job.pieces(query.piece(packed, job.segment, backward=True))):
            q = query.backward(at)
            job.run(at, {"in": packed, "dy": dy, "din": dpacked}, checkpoints, {"q": q, "dq": q if query.wanted else None})
            if dlimit is not None:
                dlimit += part
            if q is not None:
                query.collect(at, q[:, : n * d])
        if dlimit is not None:
            dlimit = dlimit.sum(0).flatten() if limit.numel() > 1 else dlimit.sum().reshape(1)
        return (None, None, dpacked, dlimit, dstate, *query.gradients())
