"""What a parallel form (the whole sequence at once) may add to the error of the loop: rules that stand in for those of `rules_neurons.py`.

A convolution computes `u_t = sum_k d^k x_{t-k}` from weights `exp(-k/tau)` that err by `(1 + 2/tau) k` units each, in any order of
summation. With `A_t = sum_k d^k |x_{t-k}|` and `B_t = sum_k k d^k |x_{t-k}|`, running sums themselves (`A = d A + |x|`, `B = d (B + A)`),

    E_t <= E_loop + gamma(n) A_t + (1 + 2/tau) u B_t + u max A

where n counts the terms that still matter (`d^k > u`): a smaller one cannot change a sum by more than itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.verify.rounding import UNIT, Bounded, Real, gamma
from spikedeploy.verify.rules import Moment, Rule
from spikedeploy.verify.rules_neurons import delta_memory, diagonal_ssm, integrator, matrix_memory

CHUNK = 256
"""Chunked forms sum logarithms within a chunk of at most this many steps."""


def _running(moment: Moment, decay: Real, write: Real) -> tuple[Real, Real]:
    """`A` and `B` after this step."""
    total, aged = moment.memory.get("A", np.zeros_like(write)), moment.memory.get("B", np.zeros_like(write))
    moment.memory["B"] = decay * (aged + total)
    moment.memory["A"] = decay * total + write
    moment.memory["top"] = np.maximum(moment.memory.get("top", 0.0), moment.memory["A"])
    return moment.memory["A"], moment.memory["B"]


def _terms(decay: Real, time: int) -> Real:
    """How many terms of a geometric sum matter in float32."""
    with np.errstate(divide="ignore"):
        rate = -np.log(np.clip(decay, 1e-300, 1 - 1e-16))
    return np.minimum(time + 1, np.ceil(-np.log(UNIT) / rate))


def convolution(moment: Moment, x: Bounded) -> Real:
    decay = np.asarray(moment.step.decay, np.float64)
    loop = integrator(moment, x)
    total, aged = _running(moment, decay, np.abs(x.value) + x.error)
    rate = -np.log(np.clip(decay, 1e-30, 1.0))
    return loop + gamma(_terms(decay, moment.time) + 4) * total + (1 + 2 * rate) * UNIT * aged + UNIT * moment.memory["top"]


def prefix_memory(moment: Moment, v: Bounded, k: Bounded, alpha: Bounded) -> Real:
    """Ratios of cumulative decays come from sums of logarithms: an error of `u |L|` for every step that a write has aged."""
    loop = matrix_memory(moment, v, k, alpha)
    decay = np.maximum(alpha.value, 1e-8)[:, None, :]
    write = (np.abs(v.value) + v.error)[:, :, None] * (np.abs(k.value) + k.error)[:, None, :]
    total, aged = _running(moment, decay, write)
    depth = _depth(moment, -np.log(np.minimum(decay, 1.0)))
    return loop + gamma(min(moment.time, 2 * CHUNK) + 16) * total + 2 * UNIT * depth * aged


def _depth(moment: Moment, rate: Real) -> Real:
    """|L|: the sum of -log alpha over all steps (the library's form) or over one chunk (ours)."""
    recent = moment.memory.setdefault("rates", [])
    recent.append(rate)
    if moment.step.semantics == "recurrence" and len(recent) > CHUNK:
        moment.memory["L"] = moment.memory["L"] - recent.pop(0)
    moment.memory["L"] = moment.memory.get("L", 0.0) + rate
    return np.asarray(moment.memory["L"])


def chunked_delta(moment: Moment, v: Bounded, k: Bounded, alpha: Bounded, beta: Bounded) -> Real:
    """The WY form solves a triangular system per chunk; with |k| = 1 and beta < 1 its condition stays within the chunk length."""
    loop = delta_memory(moment, v, k, alpha, beta)
    write = (beta.value * np.abs(v.value))[:, :, None] * np.ones_like(loop)
    total, aged = _running(moment, alpha.value.max(axis=-1)[:, None, None], write)
    return loop + gamma(min(moment.time, 64) + 16) * (total + aged)


def fft_convolution(moment: Moment, x: Bounded) -> Real:
    """The kernel, made in float64, is summed over its modes in float32; the transforms err with the norms of kernel and signal."""
    step: S.DiagonalSSM = moment.step
    loop = diagonal_ssm(moment, x)
    a, c = np.hypot(step.a_re, step.a_im), np.hypot(step.c_re, step.c_im)
    total, _ = _running(moment, a, np.abs(x.value)[..., None] * np.ones_like(a))
    kernel = gamma(2 * a.shape[-1] + 8) * 2 * (c * total).sum(axis=-1)
    if "norm" not in moment.memory:
        moment.memory["norm"] = kernel_norm(step, moment.steps_in_all)
    transform = TRANSFORM * UNIT * np.log2(2 * moment.steps_in_all) * moment.memory["norm"] * np.sqrt(moment.memory["energy"])
    return loop + kernel + transform


TRANSFORM = 12
"""Three transforms of at most 4 u log2 N each (Higham, chapter 24)."""


def kernel_norm(step: S.DiagonalSSM, steps: int) -> Real:
    """The 2-norm per channel of the kernel `K_l = 2 Re sum_m C_m A_m^l` over all steps, D included."""
    a, power = step.a_re + 1j * step.a_im, step.c_re + 1j * step.c_im
    energy = step.d**2
    for _ in range(steps):
        energy = energy + (2 * power.real.sum(axis=-1)) ** 2
        power = power * a
    return np.asarray(np.sqrt(energy))


PARALLEL: Mapping[type[S.Step], Rule] = {
    S.Integrator: convolution,
    S.MatrixMemory: prefix_memory,
    S.DeltaMemory: chunked_delta,
    S.DiagonalSSM: fft_convolution,
}
"""Per step kind: the rule for a party that computes the whole sequence at once."""
