"""What Gen2 and Gen3 have in common: projections, spikes on the matrix state, read-out, and long sequences in bounded memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spikedeploy.errors import BadInput, message
from spikedeploy.nn import memory_native
from spikedeploy.nn.full_precision import full_precision
from spikedeploy.nn.memory_scan import Inputs, Route
from spikedeploy.nn.surrogate import Spike, Surrogate, recognise
from spikedeploy.nn.topk import topk, topk_count
from spikedeploy.nn.uncompiled import uncompiled


def _count(where: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(message(where, f"{name}={value!r}", f"{name} must be a positive integer"))


def retention_bias(horizon: float | Sequence[float] | Tensor, width: int, where: str = "initial_retention") -> Tensor:
    """The bias `ln(horizon)` that makes `sigmoid(bias) = horizon / (horizon + 1)`: a write fades to 1/e in about `horizon + 1/2` steps."""
    steps = torch.as_tensor(horizon, dtype=torch.get_default_dtype())
    if steps.shape not in ((), (width,)) or not bool((torch.isfinite(steps) & (steps > 0)).all()):
        raise BadInput(message(where, repr(horizon), f"positive finite steps are needed, one number or {width}"))
    return steps.log().expand(width)


def plain(layer: nn.Linear) -> bool:
    """Whether `layer` is only a weight and a bias, so that it may be applied step by step, or together with others."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is nn.Linear and not hooked and layer.bias is not None


def why_no_triton(x: Tensor) -> str:
    """Why the Triton kernel cannot take `x`; empty when it can. Triton's interpreter also takes tensors on a CPU."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton runs on a GPU, not on {x.device.type}"
    return ""


class MemoryLayer(nn.Module):
    """Base of the matrix-state layers; subclasses say which projections write the state and by which routes it is run."""

    routes: ClassVar[Mapping[str, Route]]
    """Pure torch routes by method name; `native` and `auto` exist besides."""
    fallback: ClassVar[str] = "prefix"
    """What `auto` takes where there is neither native core nor GPU kernel."""
    delta: ClassVar[bool] = False
    """Whether a write goes by the delta rule."""
    on_gpu: ClassVar[bool] = False
    """Whether there is a Triton kernel: method "triton"."""
    threshold: Tensor
    graded_spikes_factor: Tensor

    def __init__(
        self,
        in_dim: int,
        d_value: int,
        d_key: int,
        num_spiking_neurons: int | None = None,
        use_q_projection: bool = True,
        *,
        threshold: float | Tensor = 1.0,
        learn_threshold: bool = False,
        spike_grad: Surrogate | Spike | str | None = None,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        state_quant: Spike | None = None,
        initial_retention: float | Sequence[float] | Tensor | None = None,
        topk_k: int | float | None = None,
        topk_v: int | float | None = None,
        method: str = "auto",
        chunk: int = 128,
        batch_chunk: int | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        _count(
            where, in_dim=in_dim, d_value=d_value, d_key=d_key, chunk=chunk, **({} if batch_chunk is None else {"batch_chunk": batch_chunk})
        )
        cells = d_value * d_key
        if num_spiking_neurons not in (None, cells):
            raise BadInput(message(where, f"num_spiking_neurons={num_spiking_neurons}", f"it must equal d_value * d_key = {cells}"))
        self.in_dim, self.d_value, self.d_key, self.num_spiking_neurons = in_dim, d_value, d_key, cells
        self.use_q_projection, self.output = use_q_projection, True
        self.chunk, self.batch_chunk = chunk, batch_chunk
        self.to_v, self.to_k, self.to_alpha = nn.Linear(in_dim, d_value), nn.Linear(in_dim, d_key), nn.Linear(in_dim, d_key)
        self.to_q = nn.Linear(in_dim, cells) if use_q_projection else None
        self.spike_grad = recognise(spike_grad)
        self.state_quant = state_quant
        self.topk_k, self.topk_v = topk_count(topk_k, d_key, f"{where} topk_k"), topk_count(topk_v, d_value, f"{where} topk_v")
        self._hold("threshold", self._per_cell("threshold", threshold), learn_threshold)
        self._hold("graded_spikes_factor", self._per_cell("graded_spikes_factor", graded_spikes_factor), learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.as_tensor(0))  # the library's checkpoints hold it; this neuron has no reset
        self.method = self.check_method(method)
        if initial_retention is not None:
            with torch.no_grad():
                self.to_alpha.bias.copy_(retention_bias(initial_retention, d_key, f"{where} initial_retention"))

    def check_method(self, method: str) -> str:
        """`method` itself; raises `BadInput` for one that this family does not admit, saying why."""
        admitted = (*self.routes, "native", *(("triton",) if self.on_gpu else ()), "auto")
        if method == "convolution":
            found = "method='convolution' needs a decay that is the same at every step"
            raise BadInput(message(type(self).__name__, found, f"here it depends on the input, which admits {', '.join(admitted)}"))
        if method not in admitted:
            raise BadInput(message(type(self).__name__, f"method={method!r}", f"one of {', '.join(admitted)} is needed"))
        return method

    def _per_cell(self, name: str, given: float | Tensor) -> Tensor:
        value = torch.as_tensor(given)
        cells = (self.d_value, self.d_key)
        if value.shape == cells:
            value = value.flatten()
        if value.shape not in ((), (1,), (math.prod(cells),)):
            found = f"{name} of shape {tuple(value.shape)}"
            raise BadInput(
                message(type(self).__name__, found, f"one number, or one per cell as {cells} or ({math.prod(cells)},), is needed")
            )
        return value

    def _hold(self, name: str, value: Tensor, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(value.clone()))
        else:
            self.register_buffer(name, value)

    # --- what is written --------------------------------------------------------------------------------------------

    def _writers(self) -> tuple[nn.Linear, ...]:
        """The maps whose results write the state, in the order of `_packed`."""
        return self.to_v, self.to_k, self.to_alpha

    def _packed(self, x: Tensor) -> Tensor:
        """What the maps make of `x (T, B, in_dim)`, side by side: one product for all of them where they are plain."""
        maps = self._writers()
        if all(plain(one) for one in maps):
            weight, bias = (torch.cat([getattr(one, name) for one in maps]) for name in ("weight", "bias"))
            packed = F.linear(x, weight, bias)
        else:
            packed = torch.cat([one(x) for one in maps], -1)
        if self.topk_k is None and self.topk_v is None:
            return packed
        v, k, *rest = torch.split(packed, self._widths(), -1)
        return torch.cat([topk(v, self.topk_v), topk(k, self.topk_k), *rest], -1)

    def _widths(self) -> list[int]:
        return [one.out_features for one in self._writers()]

    def project(self, x: Tensor) -> Inputs:
        """What writes the state at every step: `v (T, B, d)`, `k (T, B, n)`, and the logits of alpha `z (T, B, n)` in float64.

        Logits and not alpha: near 1 the rounding of alpha to float32 would be the whole error of the layer.
        """
        v, k, z, *rest = torch.split(self._packed(x), self._widths(), -1)
        return v, k, z.double(), *rest

    def _check(self, x: Tensor, state: Tensor | None) -> Tensor:
        where, cells = type(self).__name__, (self.d_value, self.d_key)
        if x.dim() != 3 or x.shape[-1] != self.in_dim or 0 in x.shape:
            needed = f"(T, B, {self.in_dim}) is needed, T and B at least 1"
            raise BadInput(message(where, f"an input of shape {tuple(x.shape)}", needed))
        if state is None:
            return torch.zeros(x.shape[1], *cells, dtype=torch.float64, device=x.device)
        if state.shape != (x.shape[1], *cells):
            raise BadInput(message(where, f"a state of shape {tuple(state.shape)}", f"{(x.shape[1], *cells)} is needed"))
        return state.double()

    # --- running ----------------------------------------------------------------------------------------------------

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes of membranes `(..., d*n)`: the forward of `spike_grad` times `graded_spikes_factor`; with `output` False the membranes."""
        if self.state_quant:
            mem = self.state_quant(mem).to(mem.dtype)
        if not self.output:
            return mem
        spikes = recognise(self.spike_grad)(mem - self.threshold) * self.graded_spikes_factor
        return spikes.to(mem.dtype)  # the library's functions give float32, whatever they get

    def _segment(self, route: Route, state: Tensor, q: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        states, state = route(inputs, state)
        spikes = self.fire(states.flatten(-2))
        if q is None:
            return spikes, state
        (steps, batch), d, n = q.shape[:2], self.d_value, self.d_key
        read = spikes.reshape(steps, batch, d, n) @ q.reshape(steps, batch, n, d)
        return read.flatten(-2), state

    def _torch(self, route: Route, inputs: Inputs, q: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
        """Segment after segment; the backward recomputes one segment at a time, so memory does not hold S over the sequence."""
        parts = zip(*(torch.split(x, self.chunk) for x in inputs), strict=True)
        queries: Sequence[Tensor | None] = [None] * -(-len(inputs[0]) // self.chunk) if q is None else torch.split(q, self.chunk)
        outputs = []
        for part, query in zip(parts, queries, strict=True):
            arguments: tuple[Any, ...] = (route, state, query, *part)
            if (len(queries) > 1 or self.batch_chunk) and torch.is_grad_enabled():
                y, state = checkpoint(self._segment, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                y, state = self._segment(*arguments)
            outputs.append(y)
        return torch.cat(outputs), state

    def route(self, x: Tensor) -> str:
        """The method that a call on `x` takes: `method`, with `auto` resolved by device, dtype and what is installed.

        Raises `BadInput` for a method that does not exist, and where `native` or `triton` is asked for and cannot be had.
        """
        self.check_method(self.method)
        if self.method == "auto":
            on_gpu = self.on_gpu and x.is_cuda and not why_no_triton(x)
            return "native" if memory_native.admits(x) else "triton" if on_gpu else self.fallback
        why = {"native": memory_native.why_not, "triton": why_no_triton}.get(self.method)
        if why is not None and why(x):
            raise BadInput(message(f"{type(self).__name__} method={self.method!r}", why(x), "", "Use method='auto'."))
        return self.method

    def _route(self, x: Tensor) -> tuple[Route, Inputs]:
        """What runs `x`, and what it takes: the native core all projections as they are, the others `project`."""
        method = self.route(x)
        if method == "native":
            return memory_native.states(self.delta), (self._packed(x),)
        if method == "triton":
            from spikedeploy.nn import triton_memory

            return triton_memory.states, self.project(x)
        return self.routes[method], self.project(x)

    def _given(self, x: Tensor, query: bool) -> dict[str, Tensor]:
        """What the native core takes: x and the maps that it can make itself, and the results of the others, which have hooks or top-k."""
        writers, given = self._writers(), {}
        made = self.topk_k is not None or self.topk_v is not None or not all(map(plain, writers))
        maps = {} if made else dict(zip(memory_native.MAPS, writers, strict=False))
        if made:
            given["in"] = self._packed(x)
        if query and (to_q := self.to_q) is not None:
            if plain(to_q):
                maps["q"] = to_q
            else:
                given["q"] = to_q(x)
        if maps:
            given["x"] = x
        for name, one in maps.items():
            given[f"weight_{name}"], given[f"bias_{name}"] = one.weight, one.bias
        return given

    @full_precision
    def memory(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """All states `S (T, B, d, n)` of an input `(T, B, in_dim)`: what is compared with the recurrence. It holds S in memory."""
        start = self._check(x, state)
        if self.route(x) == "native":
            return memory_native.run(self._given(x, query=False), start, self.delta)[0]
        run, inputs = self._route(x)
        states, _ = run(inputs, start)
        return states

    @uncompiled
    @full_precision
    def forward(self, x: Tensor, state: Tensor | None = None, return_state: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`x (T, B, in_dim)` -> `y (T, B, d*d)`, or `(T, B, d*n)` without the query; the state is `(B, d, n)`, float64 when returned.

        Passing the returned state on continues the sequence: pieces give the same numbers as the whole.
        Raises `BadInput` on another shape.
        """
        start = self._check(x, state)
        size = self.batch_chunk or x.shape[1]
        if size >= x.shape[1]:
            y, last = self._piece(x, start)
        else:
            parts = zip(x.split(size, 1), start.split(size), strict=True)
            pieces = [self._piece(part, first) for part, first in parts]
            y, last = torch.cat([y for y, _ in pieces], 1), torch.cat([last for _, last in pieces])
        return (y, last) if return_state else y

    def _piece(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Some batch elements from beginning to end."""
        surrogate = recognise(self.spike_grad)
        if self.route(x) == "native" and isinstance(surrogate, Surrogate) and self._fuses():
            return self._fused(x, start, surrogate)
        run, inputs = self._route(x)
        return self._torch(run, inputs, None if self.to_q is None else self.to_q(x), start)

    def _fuses(self) -> bool:
        """Whether what is read is spikes times one factor; a factor per cell belongs to the spikes, not to what is read with them."""
        one_factor = self.to_q is None or self.graded_spikes_factor.numel() == 1
        return self.output and not self.state_quant and one_factor

    def _fused(self, x: Tensor, start: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
        """State, spikes and read-out in the native core."""
        y, last = memory_native.run(self._given(x, query=True), start, self.delta, self.threshold, surrogate)
        return y if self._plain_spikes() else y * self.graded_spikes_factor, last

    def _plain_spikes(self) -> bool:
        factor = self.graded_spikes_factor
        return not factor.requires_grad and factor.numel() == 1 and float(factor) == 1.0
