"""The matrix memories in the native core, forward and backward: what `method="native"` runs.

S never reaches RAM: segments of 32 to 128 steps leave one checkpoint each, and the backward recomputes a segment from it. Nor does the
query `Q_t = W_q x_t + b_q`, the largest tensor of the layer: the kernel takes x and the maps, and forms the rows of Q that a spike selects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.errors import BadInput, message
from spikedeploy.nn.allocator import borrow, empty, give_back
from spikedeploy.nn.memory_scan import Inputs, Route
from spikedeploy.nn.once import once_differentiable
from spikedeploy.nn.surrogate import Surrogate

STATE, SPIKES, READ = 0, 1, 2  # what the kernel puts out: S, spikes, or what is read with them

MAPS = ("v", "k", "alpha", "beta", "q")
"""The maps of x, in the order of the native core."""

PER_MAP = ("weight", "bias", "dweight", "dbias")
"""What the native core takes for each of them."""

PLACES = {f"{field}_{name}": (field, place) for field in PER_MAP for place, name in enumerate(MAPS)}

Arrays = Mapping[str, Tensor | None]
Settings = dict[str, Any]

SUFFIX = {torch.float32: "f32", torch.float64: "f64"}

PARALLEL_FROM = 1 << 16
"""Cells over time; below, threads cost more than they save."""


def admits(x: Tensor) -> bool:
    """Whether the native core can take `x`."""
    return not why_not(x)


def why_not(x: Tensor) -> str:
    """Why the native core cannot take `x`; empty when it can."""
    if not native.available():
        return f"the native core is not available ({native.why_not()})"
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64):
        return f"the native core runs float32 and float64 on a CPU, not {x.dtype} on {x.device.type}"
    return ""


def states(delta: bool) -> Route:
    """The route to all states `(T, B, d, n)` and the last one, float64, from what writes them, packed `(T, B, d + 2n [+ 1])`."""

    def route(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        return run({"in": inputs[0]}, state, delta)

    return route


def spikes(
    packed: Tensor, query: tuple[Tensor, ...], threshold: Tensor, state: Tensor, surrogate: Surrogate, delta: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spikes `(T, B, d*n)`, or `vec(P_t Q_t)` `(T, B, d*d)` with a query `(Q (T, B, n*d),)`, and the last state: `run` on packed inputs."""
    return run({"in": packed, **dict(zip(("q",), query, strict=False))}, state, delta, threshold, surrogate)


def run(
    given: Mapping[str, Tensor], state: Tensor, delta: bool, threshold: Tensor | None = None, surrogate: Surrogate | None = None
) -> tuple[Tensor, Tensor]:
    """What the memory puts out and its last state: all states `(T, B, d, n)`; with a surrogate gradient the spikes `(T, B, d*n)`; with a
    query besides, `vec(P_t Q_t)` `(T, B, d*d)`.

    given       by name: `x (T, B, m)` and per map its `weight_v (d, m)`, `bias_v (d,)`, and so on for k, alpha, beta and q; instead of
                the first four `in (T, B, d + 2n [+ 1])`, their results side by side, instead of the last `q (T, B, n*d)`
    delta       Gen3, which normalises k
    threshold   one number, or one per cell

    Raises `BadInput` where these do not fit each other.
    """
    _check(given, state, delta)
    output = STATE if surrogate is None else READ if "q" in given or "weight_q" in given else SPIKES
    settings: Settings = {"delta": int(delta), "output": output}
    if surrogate is not None:
        settings |= {"surrogate": surrogate.code, "slope": surrogate.k}
    arguments = {"threshold": state.new_zeros(1) if threshold is None else threshold, "start": state, **given}
    arrays = [x.contiguous() for x in arguments.values()]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in arrays)
    found: tuple[Tensor, Tensor] = _Memory.apply(settings, keep, tuple(arguments), *arrays)
    return found


def _check(given: Mapping[str, Tensor], state: Tensor, delta: bool) -> None:
    """The kernel takes sizes and type of all arrays from a few of them, and looks at nothing else."""
    first = next(iter(given.values()))
    dtype, width = first.dtype, given["x"].shape[-1] if "x" in given else 0
    shapes = _shapes(tuple(given), first.shape[0], *state.shape, width, delta)
    for (name, one), needed in zip(given.items(), shapes, strict=True):
        if one.shape != needed or one.dtype != dtype or not one.is_cpu:
            found = f"{name.replace('_', ' of ')} {tuple(one.shape)} in {one.dtype} on {one.device.type}"
            raise BadInput(message("a matrix memory", found, f"{needed} in {dtype}, as its input, on a CPU is needed"))


@lru_cache
def _shapes(names: tuple[str, ...], steps: int, batch: int, d: int, n: int, inputs: int, delta: bool) -> tuple[tuple[int, ...], ...]:
    """What `run` needs, by name."""
    rows = {"v": d, "k": n, "alpha": n, "beta": 1, "q": d * n}
    shapes = {"in": (steps, batch, d + 2 * n + delta), "q": (steps, batch, d * n), "x": (steps, batch, inputs)}
    maps = {f"weight_{of}": (count, inputs) for of, count in rows.items()} | {f"bias_{of}": (count,) for of, count in rows.items()}
    known: dict[str, tuple[int, ...]] = {**shapes, **maps}
    return tuple(known[name] for name in names)


def _core(what: str, dtype: torch.dtype) -> Callable[..., Any]:
    return cast(Callable[..., Any], getattr(native.core()[1], f"sd_memory_{what}_{SUFFIX[dtype]}"))


def _job(settings: Settings, arrays: Arrays) -> Any:
    """What the kernel takes; a gradient that is not wanted has no array."""
    fields, maps = dict(settings), {field: [0] * len(MAPS) for field in PER_MAP}
    for name, array in arrays.items():
        if array is not None:
            if name in PLACES:
                field, place = PLACES[name]
                maps[field][place] = array.data_ptr()
            else:
                fields[name] = array.data_ptr()
    return native.core()[0].new("sd_memory *", fields | maps)


def _run(direction: str, dtype: torch.dtype, job: Any) -> None:
    area = borrow(_core("area", dtype)(job, direction == "backward"))
    job.area = area.data_ptr()
    _core(direction, dtype)(job)
    give_back(area)


class _Memory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: Settings, keep: bool, names: tuple[str, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        limit, state, given = tensors[:3]
        (steps, batch), (d, n), output = given.shape[:2], state.shape[1:], settings["output"]
        threads = 1 if steps * state.numel() < PARALLEL_FROM else torch.get_num_threads()
        inputs = tensors[names.index("x")].shape[2] if "x" in names else 0
        sizes = {"steps": steps, "batch": batch, "d": d, "n": n, "inputs": inputs, "threads": threads, "thresholds": limit.numel()}
        settings = settings | sizes
        y = empty((steps, batch, *((d, n) if output == STATE else (d * (d if output == READ else n),))), given.dtype)
        end, limits = torch.empty_like(state), limit.double()
        job = _job(settings, {**dict(zip(names, tensors, strict=True)), "threshold": limits, "y": y, "end": end})
        kept = empty((_core("kept", y.dtype)(job),), torch.uint8) if keep else None
        job.kept = 0 if kept is None else kept.data_ptr()
        _run("forward", y.dtype, job)
        ctx.save_for_backward(kept, *tensors)
        ctx.settings, ctx.names, ctx.limits = settings, names, limits
        ctx.set_materialize_grads(False)
        return y, end

    @staticmethod
    @once_differentiable("matrix memory, method 'native'", 'Use method "iterative".')
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors  # once: under checkpointing a second look is an error
        limit, state, given = tensors[:3]
        settings, dy, dend = ctx.settings, *(None if grad is None else grad.contiguous() for grad in grads)
        if dy is None:
            d, n, output = settings["d"], settings["n"], settings["output"]
            dy = given.new_zeros(*given.shape[:2], d * (d if output == READ else n))
        found = _room(ctx.names, tensors, ctx.needs_input_grad[3:])
        limits = found["dthreshold"] = torch.empty_like(state) if ctx.needs_input_grad[3] else None
        arrays = {**dict(zip(ctx.names, tensors, strict=True)), **found, "threshold": ctx.limits, "kept": kept, "dy": dy, "dend": dend}
        _run("backward", given.dtype, _job(settings, arrays))
        if limits is not None:
            found["dthreshold"] = (limits.sum(0) if limit.numel() > 1 else limits.sum()).reshape(limit.shape).to(limit.dtype)
        return (None, None, None, *(found.get(f"d{name}") for name in ctx.names))


def _room(names: tuple[str, ...], tensors: Sequence[Tensor], wanted: tuple[bool, ...]) -> dict[str, Tensor | None]:
    """Room for the gradients by name."""
    return {f"d{name}": torch.empty_like(one) for name, one, need in zip(names, tensors, _needed(names, wanted), strict=True) if need}


@lru_cache
def _needed(names: tuple[str, ...], wanted: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which gradients the kernel puts out: some always, and those that are wanted, of a map both or none."""
    maps = {PLACES[name][1] for name, want in zip(names, wanted, strict=True) if want and name in PLACES}
    always = ("in", "start")
    return tuple(want or name in always or (name in PLACES and PLACES[name][1] in maps) for name, want in zip(names, wanted, strict=True))
