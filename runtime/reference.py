"""The reference runtime: the plain NumPy loop over time. It IS the specification of every step kind.

    for t in range(T):
        for step in program.steps:
            wires[step.name] = STEP[type(step)](step, *inputs, state)

Arrays are `(B, *shape)` inside a step and `(T, B, *shape)` outside. float64 is the specification; float32 is the same loop in the
precision that hardware has. Nothing here is fast, and nothing here may become clever: everything else is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT, Program, Reduce
from spikedeploy.steps import Shape, Step

Real = npt.NDArray[Any]
State = dict[str, Real]


def affine(step: S.Affine, x: Real, state: State) -> Real:
    y = x @ step.weight.T
    return y if step.bias is None else y + step.bias


def conv2d(step: S.Conv2d, x: Real, state: State) -> Real:
    out, per_group, kh, kw = step.weight.shape
    (sh, sw), (ph, pw), (dh, dw) = step.stride, step.padding, step.dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # (B, C, H', W', kh, kw)
    b, _, h, w = windows.shape[:4]
    windows = windows.reshape(b, step.groups, per_group, h, w, kh, kw)
    weight = step.weight.reshape(step.groups, out // step.groups, per_group, kh, kw)
    y = np.einsum("bgchwij,gocij->bgohw", windows, weight, optimize=True).reshape(b, out, h, w)
    return y if step.bias is None else y + step.bias[:, None, None]


def sum_pool2d(step: S.SumPool2d, x: Real, state: State) -> Real:
    (ph, pw), (sh, sw) = step.padding, step.stride
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    return np.lib.stride_tricks.sliding_window_view(x, step.kernel, axis=(2, 3))[:, :, ::sh, ::sw].sum(axis=(-2, -1))


def scale(step: S.Scale, x: Real, state: State) -> Real:
    y = step.scale * x
    return y if step.offset is None else y + step.offset


def add(step: S.Add, *args: Any) -> Real:
    inputs = args[:-1]
    total = _align(inputs[0], inputs)
    for x in inputs[1:]:
        total = total + _align(x, inputs)
    return total


def mul(step: S.Mul, a: Real, b: Real, state: State) -> Real:
    return _align(a, (a, b)) * _align(b, (a, b))


def _align(x: Real, others: Sequence[Real]) -> Real:
    """Broadcasting looks from the right; a shorter wire needs ones after its batch axis."""
    missing = max(other.ndim for other in others) - x.ndim
    return x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:])


def delay(step: S.Delay, x: Real, state: State) -> Real:
    oldest = state["line"][:, 0].copy()
    state["line"] = np.concatenate([state["line"][:, 1:], x[:, None]], axis=1)
    return oldest


def _erf(x: Real) -> Real:
    from math import erf

    return np.vectorize(erf, otypes=[x.dtype])(x)


def _sigmoid(x: Real) -> Real:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


FUNCTIONS: Mapping[S.Function, Callable[[Real], Real]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (x.dtype.type(0.5) * (1 + _erf(x * x.dtype.type(0.5**0.5)))),
    "gelu_tanh": lambda x: x.dtype.type(0.5) * x * (1 + np.tanh(x.dtype.type((2 / np.pi) ** 0.5) * (x + x.dtype.type(0.044715) * x**3))),
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
}


def layer_norm(step: S.LayerNorm, x: Real, state: State) -> Real:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(variance + x.dtype.type(step.eps))
    y = y if step.weight is None else y * step.weight
    return y if step.bias is None else y + step.bias


def l2_normalize(step: S.L2Normalize, x: Real, state: State) -> Real:
    norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / np.maximum(norm, x.dtype.type(step.eps))


def topk(step: S.TopK, x: Real, state: State) -> Real:
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")[..., : step.k]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return np.where(mask, x, x.dtype.type(0))


def nearest(step: S.Nearest, x: Real, state: State) -> Real:
    return step.levels[np.abs(x[..., None] - step.levels).argmin(axis=-1)]


def integrator(step: S.Integrator, x: Real, state: State) -> Real:
    state["u"] = step.decay * state["u"] + x
    return state["u"]


def fires(step: S.Firing, u: Real) -> Real:
    """H(u): 1 where the neuron fires, else 0, in the dtype of u."""
    return (u > step.threshold if step.strict else u >= step.threshold).astype(u.dtype)


def threshold(step: S.Threshold, x: Real, state: State) -> Real:
    return step.amplitude * fires(step, x)


def lif(step: S.LIF, x: Real, state: State) -> tuple[Real, Real]:
    u = state["u"]
    if step.reset == "value":  # NIR: only an immediate reset exists
        u = step.decay * u + x
        fired = fires(step, u)
        state["u"] = np.where(fired > 0, step.reset_value, u).astype(u.dtype)
        return step.amplitude * fired, state["u"]
    again = fires(step, u)
    u = step.decay * u + x - again * step.threshold if step.reset == "subtract" else step.decay * ((1 - again) * u) + x
    fired = fires(step, u)
    if not step.reset_delay:
        u = u - (fired - again) * (step.threshold if step.reset == "subtract" else u)
    state["u"] = u
    return step.amplitude * fired, u


def matrix_memory(step: S.MatrixMemory, v: Real, k: Real, alpha: Real, state: State) -> Real:
    if step.semantics == "snntorch-1.0.0":
        eps = alpha.dtype.type(1e-8)
        alpha = np.maximum(alpha, eps)
        state["log_p"] = state["log_p"] + np.log(alpha)
        p = np.exp(state["log_p"])
        k = k * (p / (p + eps))
    state["S"] = state["S"] * alpha[:, None, :] + v[:, :, None] * k[:, None, :]
    return state["S"]


def delta_memory(step: S.DeltaMemory, v: Real, k: Real, alpha: Real, beta: Real, state: State) -> Real:
    kept = state["S"] * alpha[:, None, :]
    read = (kept * k[:, None, :]).sum(axis=-1)
    state["S"] = kept + (beta * (v - read))[:, :, None] * k[:, None, :]
    return state["S"]


def diagonal_ssm(step: S.DiagonalSSM, x: Real, state: State) -> Real:
    re, im = state["re"], state["im"]
    state["re"] = step.a_re * re - step.a_im * im + x[..., None]
    state["im"] = step.a_re * im + step.a_im * re
    return 2 * (step.c_re * state["re"] - step.c_im * state["im"]).sum(axis=-1) + step.d * x


STEP: Mapping[type[Step], Callable[..., Any]] = {
    S.Affine: affine,
    S.Conv2d: conv2d,
    S.SumPool2d: sum_pool2d,
    S.Scale: scale,
    S.Reshape: lambda step, x, state: x.reshape(x.shape[0], *step.shape),
    S.Slice: lambda step, x, state: x[..., step.start : step.stop],
    S.Add: add,
    S.Mul: mul,
    S.MatMul: lambda step, a, b, state: a @ b,
    S.Delay: delay,
    S.Activation: lambda step, x, state: FUNCTIONS[step.function](x),
    S.LayerNorm: layer_norm,
    S.L2Normalize: l2_normalize,
    S.Embedding: lambda step, x, state: step.table[x.astype(np.int64)],
    S.TopK: topk,
    S.Nearest: nearest,
    S.Integrator: integrator,
    S.Threshold: threshold,
    S.LIF: lif,
    S.MatrixMemory: matrix_memory,
    S.DeltaMemory: delta_memory,
    S.DiagonalSSM: diagonal_ssm,
}
"""Per step kind: `(step, *inputs, state) -> output`; a step with a memory replaces entries of `state`."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a run gives: `outputs` by name (reduced over time where the program says so), the recorded `wires (T, B, *shape)`,
    the final `states`, and per spiking wire how many spikes there were among how many chances (`spikes`, `decisions`)."""

    outputs: Mapping[str, Real]
    wires: Mapping[str, Real]
    states: Mapping[str, State]
    spikes: Mapping[str, int]
    decisions: Mapping[str, int]

    def rate(self, wire: str) -> float:
        """Spikes per neuron and step."""
        return self.spikes[wire] / self.decisions[wire]


REDUCE: Mapping[Reduce, Callable[[Real], Real]] = {
    "none": lambda y: y,
    "mean": lambda y: y.mean(axis=0),
    "sum": lambda y: y.sum(axis=0),
    "last": lambda y: y[-1],
    "max": lambda y: y.max(axis=0),
}


def why_not_finite(array: Real, dtype: npt.DTypeLike) -> str:
    """In words, what an array of real numbers holds that `dtype` has no finite number for; empty where there is nothing."""
    if not np.isfinite(array).all():
        return "NaN or infinity"
    limit = np.finfo(dtype).max
    beyond = array.dtype.kind == "f" and not (-limit <= array.min() and array.max() <= limit)
    return f"numbers beyond {np.dtype(dtype).name}" if beyond else ""


def check_input(program: Program, x: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> Real:
    """`x` as an array `(T, B, *input_shape)`; raises `BadInput` with the expected shape and what was given.

    dtype  what it will run in; `x` is not cast
    """
    array = np.asarray(x)
    shape = ("T", "B", *program.input_shape)
    needed = f"({', '.join(map(str, shape))}) is needed, T and B at least 1"
    if array.dtype.kind not in "fiub":
        raise BadInput(message("input", f"an array of {array.dtype}", "real numbers are needed"))
    if array.ndim != len(shape) or array.shape[2:] != program.input_shape or 0 in array.shape:
        raise BadInput(message("input", f"an array of shape {array.shape}", needed))
    if program.input_kind == "index":
        rows = min(
            (s.table.shape[0] for s in program.steps if isinstance(s, S.Embedding)),
            default=0,
        )
        if np.any(array != np.floor(array)) or array.min() < 0 or array.max() >= rows:
            raise BadInput(
                message(
                    "input",
                    f"values from {array.min()} to {array.max()}",
                    f"whole numbers from 0 to {rows - 1} are needed",
                )
            )
    elif found := why_not_finite(array, dtype):
        raise BadInput(message("input", found, "finite numbers are needed"))
    return array


def cast(step: Step, dtype: npt.DTypeLike) -> Step:
    """The step with every parameter in `dtype`."""
    arrays: dict[str, Any] = {f.name: v.astype(dtype) for f in fields(step) if isinstance(v := getattr(step, f.name), np.ndarray)}
    return replace(step, **arrays)


def zeros(program: Program, batch: int, dtype: npt.DTypeLike = np.float64) -> dict[str, State]:
    """The state before the first step: per step and state name an array `(B, *shape)` of zeros."""
    return {step: {name: np.zeros((batch, *shape), dtype) for name, shape in states.items()} for step, states in program.states.items()}


def run(
    program: Program,
    x: npt.ArrayLike,
    *,
    dtype: npt.DTypeLike = np.float64,
    record: Collection[str] = (),
    forced: Mapping[str, Real] | None = None,
    states: Mapping[str, Mapping[str, Real]] | None = None,
) -> Run:
    """Run `x (T, B, *input_shape)` step by step.

    record  wires to keep, `(T, B, *shape)` each; outputs and spike counts are kept anyway
    forced  wires whose *readers* see these `(T, B, *shape)` values instead of the computed ones; what is recorded, counted and
            returned stays the computed value (so each layer can be judged on given inputs)
    states  where to start, as `Run.states` holds them; zero when not given

    Raises `BadInput` on an input of another shape or with values that are not finite in `dtype`.
    """
    x = check_input(program, x, dtype)
    steps, forced = [cast(step, dtype) for step in program.steps], forced or {}
    now = zeros(program, x.shape[1], dtype)
    for name, kept in (states or {}).items():
        now[name] = {key: np.array(value, dtype) for key, value in kept.items()}
    keep = set(record) | {output.wire for output in program.outputs}
    history: dict[str, list[Real]] = {wire: [] for wire in keep}
    spiking = [step.name for step in program.spiking]
    spikes = dict.fromkeys(spiking, 0)
    for t in range(len(x)):
        seen: dict[str, Real] = {INPUT: x[t].astype(dtype)}
        computed = dict(seen)
        for step in steps:
            result = STEP[type(step)](step, *(seen[name] for name in step.inputs), now.get(step.name, {}))
            for name, value in zip(step.outputs, result if isinstance(result, tuple) else (result,), strict=True):
                computed[name] = value
                seen[name] = np.asarray(forced[name][t], dtype) if name in forced else value
        for name in keep:
            history[name].append(computed[name])
        for name in spiking:
            spikes[name] += int(np.count_nonzero(computed[name]))
    wires = {name: np.stack(values) for name, values in history.items()}
    return Run(
        outputs={output.name: REDUCE[output.reduce](wires[output.wire]) for output in program.outputs},
        wires=wires,
        states=now,
        spikes=spikes,
        decisions={name: x.shape[0] * x.shape[1] * prod(program.wires[name]) for name in spiking},
    )


def state_shapes(program: Program) -> Mapping[tuple[str, str], Shape]:
    """All states in order, flat: `(step, state) -> shape`."""
    return {(step, name): shape for step, states in program.states.items() for name, shape in states.items()}
