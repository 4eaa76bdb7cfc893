"""ONNX nodes of the step kinds with a memory, and of the threshold. Rows as in `onnx_maps`; equations: `spikedeploy.steps`.

Every state is an input and an output of the cell, float32, zero at the start. A state that decays by a factor between 1/2 and 1 would stick
at a denormal number once its input is silent, and every later step would take ten times as long; so it is rounded to a grid of 2^-103.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from spikedeploy import steps as S
from spikedeploy.exporters import onnx_maps as maps
from spikedeploy.exporters.onnx_graph import Graph
from spikedeploy.steps import Step

GRID = 2.0**-80
"""Added and taken away again: what is below 2^-105 vanishes, what is above 2^-55 keeps every bit, and what lies between moves by at most
2^-104 or one rounding. So far above the denormals, because a state may stick on the grid and is then multiplied by small weights."""


def _settled(g: Graph, value: str, part: str) -> str:
    """`value` without denormals; two nodes. A runtime that optimises them away loses nothing but time."""
    return g.node("Sub", [g.node("Add", [value, g.real(GRID)], f"{part}lifted"), g.real(GRID)], f"{part}settled", doc="denormals become 0")


def _sticks(decay: S.Array) -> bool:
    return bool(np.any((decay > 0.5) & (decay < 1)))


def delay(g: Graph, step: S.Delay, x: str) -> str:
    """`line` is a queue: the oldest leaves in front, the newest enters behind."""
    line = g.past("line")
    newest = g.unsqueeze(x, 1, "newest")
    if step.steps > 1:
        rest = g.node("Slice", [line, g.integers(1), g.integers(step.steps), g.integers(1)], "rest")
        newest = g.node("Concat", [rest, newest], "line", axis=1)
    g.keep("line", newest)
    return g.node("Gather", [line, g.zero_index()], axis=1, doc=f"x from {step.steps} steps ago")


def _leaky(g: Graph, step: S.Integrator | S.LIF, u: str, x: str) -> str:
    leaked = g.node("Mul", [u, g.constant("decay", step.decay)], "leaked")
    total = g.node("Add", [leaked, x], "membrane", doc="u = decay u + x")
    return _settled(g, total, "") if _sticks(step.decay) else total


def integrator(g: Graph, step: S.Integrator, x: str) -> str:
    u = _leaky(g, step, g.past("u"), x)
    g.keep("u", u)
    return u


def _fires(g: Graph, step: S.Firing, u: str, theta: str, part: str) -> str:
    return g.node("Greater" if step.strict else "GreaterOrEqual", [u, theta], part)


def _spikes(g: Graph, step: S.Firing, fires: str) -> str:
    if np.all(step.amplitude == 1):
        return g.node("Cast", [fires], to=TensorProto.FLOAT, doc="1 where it fires")
    spike = g.node("Cast", [fires], "spike", to=TensorProto.FLOAT)
    return g.node("Mul", [spike, g.constant("amplitude", step.amplitude)], doc="amplitude where it fires")


def threshold(g: Graph, step: S.Threshold, x: str) -> str:
    g.decision[step.name] = x
    return _spikes(g, step, _fires(g, step, x, g.constant("threshold", step.threshold), "fires"))


def lif(g: Graph, step: S.LIF, x: str) -> tuple[str, str]:
    theta = g.constant("threshold", step.threshold)
    again = "" if step.reset == "value" else _fires(g, step, g.past("u"), theta, "again")
    u = MEMBRANE[step.reset](g, step, x, theta, again)
    g.decision[step.name] = u
    fires = _fires(g, step, u, theta, "fires")
    spikes = _spikes(g, step, fires)
    if step.reset == "value":
        u = g.node("Where", [fires, g.constant("reset_value", step.reset_value), u], "reset", doc="reset_value where it fires")
    elif not step.reset_delay:
        u = _reset_now(g, step, u, theta, fires, again)
    g.keep("u", u)
    return spikes, u


def _plain(g: Graph, step: S.LIF, x: str, theta: str, again: str) -> str:
    return _leaky(g, step, g.past("u"), x)


def _subtract(g: Graph, step: S.LIF, x: str, theta: str, again: str) -> str:
    fall = g.node("Where", [again, theta, g.real(0.0)], "fall", doc="what fired is reset one step later")
    return g.node("Sub", [_leaky(g, step, g.past("u"), x), fall], "lowered")


def _zero(g: Graph, step: S.LIF, x: str, theta: str, again: str) -> str:
    kept = g.node("Where", [again, g.real(0.0), g.past("u")], "kept", doc="what fired is reset one step later")
    return _leaky(g, step, kept, x)


MEMBRANE: Mapping[str, Callable[[Graph, S.LIF, str, str, str], str]] = {"subtract": _subtract, "zero": _zero, "value": _plain}
"""Per kind of reset: the membrane on which the neuron decides."""


def _reset_now(g: Graph, step: S.LIF, u: str, theta: str, fires: str, again: str) -> str:
    """snnTorch's immediate reset: `u - (H(u) - r) theta` or `u - (H(u) - r) u`."""
    now, before = (g.node("Cast", [mask], part, to=TensorProto.FLOAT) for mask, part in ((fires, "now"), (again, "before")))
    fresh = g.node("Sub", [now, before], "fresh")
    fall = g.node("Mul", [fresh, theta if step.reset == "subtract" else u], "drop")
    return g.node("Sub", [u, fall], "reset")


def matrix_memory(g: Graph, step: S.MatrixMemory, v: str, k: str, alpha: str) -> str:
    if step.semantics == "snntorch-1.0.0":
        alpha, k = _library(g, step, k, alpha)
    kept = g.node("Mul", [g.past("S"), g.unsqueeze(alpha, 1, "alpha")], "kept", doc="S Diag(alpha)")
    write = g.node("Mul", [g.unsqueeze(v, 2, "v"), g.unsqueeze(k, 1, "k")], "write", doc="v k^T")
    return _remember(g, kept, write)


def _remember(g: Graph, kept: str, write: str) -> str:
    state = _settled(g, g.node("Add", [kept, write], "sum", doc="S Diag(alpha) + v k^T"), "")
    g.keep("S", state)
    return state


def _library(g: Graph, step: S.MatrixMemory, k: str, alpha: str) -> tuple[str, str]:
    """The clamped decay, and k weakened as snnTorch's parallel form weakens it: p / (p + 1e-8), p the product of all decays so far."""
    eps = g.real(1e-8)
    log_p = g.node("Add", [g.past("log_p"), _log_decay(g, step, alpha, eps)], "log_p", doc="the logarithm of p: zero at the start")
    g.keep("log_p", log_p)
    p = g.node("Exp", [log_p], "p")
    fade = g.node("Div", [p, g.node("Add", [p, eps], "p_eps")], "fade", doc="p / (p + 1e-8)")
    return g.node("Max", [alpha, eps], "decay"), g.node("Mul", [k, fade], "k_faded")


def _log_decay(g: Graph, step: S.MatrixMemory, alpha: str, eps: str) -> str:
    """log max(alpha, 1e-8). Of a sigmoid it is -softplus(-x): runtimes' sigmoids are good to 1e-7, but not relative to a small alpha."""
    writer = g.program.writer(step.inputs[2])
    if not (isinstance(writer, S.Activation) and writer.function == "sigmoid"):
        return g.node("Log", [g.node("Max", [alpha, eps], "floor")], "log_alpha")
    positive = g.node("Softplus", [g.node("Neg", [g.value[writer.inputs[0]]], "minus")], "softplus")
    return g.node("Max", [g.node("Neg", [positive], "log_sigmoid"), g.real(float(np.log(1e-8)))], "log_alpha")


def delta_memory(g: Graph, step: S.DeltaMemory, v: str, k: str, alpha: str, beta: str) -> str:
    kept = g.node("Mul", [g.past("S"), g.unsqueeze(alpha, 1, "alpha")], "kept", doc="S Diag(alpha)")
    read = g.node("MatMul", [kept, g.unsqueeze(k, 2, "k_column")], "read", doc="S Diag(alpha) k")
    error = g.node("Sub", [g.unsqueeze(v, 2, "v"), read], "error")
    step_size = g.node("Mul", [error, g.unsqueeze(beta, 2, "beta")], "correction", doc="beta (v - r)")
    return _remember(g, kept, g.node("Mul", [step_size, g.unsqueeze(k, 1, "k")], "write"))


def diagonal_ssm(g: Graph, step: S.DiagonalSSM, x: str) -> str:
    """Complex modes as two real arrays; C is stored doubled, which is exact."""
    re, im = g.past("re"), g.past("im")
    a_re, a_im = g.constant("a_re", step.a_re), g.constant("a_im", step.a_im)
    turn_re = g.node("Sub", [g.node("Mul", [re, a_re], "re_re"), g.node("Mul", [im, a_im], "im_im")], "turn_re")
    new_re = _settled(g, g.node("Add", [turn_re, g.unsqueeze(x, 2, "x")], "re", doc="Re(A h + x)"), "re_")
    turn_im = g.node("Add", [g.node("Mul", [im, a_re], "im_re"), g.node("Mul", [re, a_im], "re_im")], "im", doc="Im(A h)")
    new_im = _settled(g, turn_im, "im_")
    g.keep("re", new_re)
    g.keep("im", new_im)
    real = g.node("Mul", [new_re, g.constant("c_re", 2 * step.c_re)], "c_re_re")
    imaginary = g.node("Mul", [new_im, g.constant("c_im", 2 * step.c_im)], "c_im_im")
    modes = g.reduce("ReduceSum", g.node("Sub", [real, imaginary], "modes"), 2, "y", keep=False)
    return g.node("Add", [modes, g.node("Mul", [x, g.constant("d", step.d)], "through")], doc="y = 2 Re(C h) + D x")


NODES: Mapping[type[Step], Callable[..., Any]] = {
    S.Affine: maps.affine,
    S.Conv2d: maps.conv2d,
    S.SumPool2d: maps.sum_pool2d,
    S.Scale: maps.scale,
    S.Reshape: maps.reshape,
    S.Slice: maps.slice_,
    S.Add: maps.add,
    S.Mul: maps.mul,
    S.MatMul: lambda g, step, a, b: g.node("MatMul", [a, b]),
    S.Delay: delay,
    S.Activation: maps.activation,
    S.LayerNorm: maps.layer_norm,
    S.L2Normalize: maps.l2_normalize,
    S.Embedding: maps.embedding,
    S.TopK: maps.topk,
    S.Nearest: maps.nearest,
    S.Integrator: integrator,
    S.Threshold: threshold,
    S.LIF: lif,
    S.MatrixMemory: matrix_memory,
    S.DeltaMemory: delta_memory,
    S.DiagonalSSM: diagonal_ssm,
}
"""Per step kind: `(graph, step, *values) -> value`, or the values of all its wires."""
