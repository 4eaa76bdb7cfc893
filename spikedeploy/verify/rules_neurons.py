"""Running error bounds of the steps that have a memory: `E_t` from `E_{t-1}`, beside the float64 state.

Integrator     E_t = d E_{t-1} + doubt(d) |u_{t-1}| + e_x + roundings
LIF            the same; the reset is taken as decided alike (the judge drops a neuron after the first decision that was not)
MatrixMemory   E_t = alpha E_{t-1} + e_alpha |S_{t-1}| + |v| e_k + |k| e_v + roundings
DeltaMemory    per row, in the 2-norm: I - beta k k^T does not expand it
DiagonalSSM    |E_h| = |A| |E_h| + e_x + roundings, per mode
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spikedeploy import steps as S
from spikedeploy.verify.rounding import TINY, UNIT, Bounded, Real, add, gamma, known, product
from spikedeploy.verify.rules import Moment, Rule


def _before(moment: Moment, name: str) -> Bounded:
    value = moment.before[name]
    return Bounded(value, moment.memory.get(name, np.zeros_like(value)))


def _decay(moment: Moment) -> Bounded:
    exact = known(moment.step.decay)
    doubt = moment.doubt.decay * UNIT * np.maximum(exact.value, 1 - exact.value)
    return Bounded(exact.value, exact.error + doubt)


def _leak(moment: Moment, u: Bounded, x: Bounded) -> Bounded:
    result = add(product(_decay(moment), u), x)
    extra = moment.doubt.parameters * UNIT * (np.abs(u.value) + np.abs(x.value))
    return Bounded(result.value, result.error + extra)


def _settled(moment: Moment, state: Bounded) -> Bounded:
    """A state that may be rounded to the grid of `floor` where it is small; the grid takes no bit from one that is 2^50 times larger."""
    if not moment.doubt.floor:
        return state
    small = (np.abs(state.value) < moment.doubt.floor * 2.0**50 + state.error) & ((state.value != 0) | (state.error > 0))
    return Bounded(state.value, state.error + np.where(small, moment.doubt.floor + 2 * UNIT * np.abs(state.value), 0.0))


def integrator(moment: Moment, x: Bounded) -> Real:
    result = _settled(moment, _leak(moment, _before(moment, "u"), x))
    moment.memory["u"] = result.error
    return result.error


def lif(moment: Moment, x: Bounded) -> tuple[Real, Real]:
    step: S.LIF = moment.step
    before = _before(moment, "u")
    again = _fires(step, before.value) if step.reset != "value" else np.zeros_like(before.value)
    theta = known(step.threshold, moment.doubt.parameters)
    kept = before if step.reset != "zero" else Bounded(before.value * (1 - again), before.error * (1 - again))
    u = _leak(moment, kept, x)
    if step.reset == "subtract":
        u = _where(again > 0, add(u, Bounded(-theta.value, theta.error)), u)
    u = _settled(moment, u)
    moment.decision = u
    if not step.reset_delay or step.reset == "value":
        u = _reset_now(step, u, _fires(step, u.value) - again, theta)
    moment.memory["u"] = u.error
    return np.zeros_like(u.error), u.error


def _reset_now(step: S.LIF, u: Bounded, change: Real, theta: Bounded) -> Bounded:
    """`change` is +1 where the neuron fires now, -1 where the reset of the last step must be undone."""
    if step.reset == "value":
        return _where(change > 0, known(np.broadcast_to(step.reset_value, u.value.shape)), u)
    if step.reset == "zero":
        return _where(change != 0, Bounded(u.value - change * u.value, u.error * (1 - change)), u)
    return _where(change != 0, add(u, Bounded(-change * theta.value, np.abs(change) * theta.error)), u)


def _fires(step: S.LIF, u: Real) -> Real:
    return (u > step.threshold if step.strict else u >= step.threshold).astype(np.float64)


def _where(condition: Real, yes: Bounded, no: Bounded) -> Bounded:
    return Bounded(np.where(condition, yes.value, no.value), np.where(condition, yes.error, no.error))


def matrix_memory(moment: Moment, v: Bounded, k: Bounded, alpha: Bounded) -> Real:
    if moment.step.semantics == "snntorch-1.0.0":
        alpha = Bounded(np.maximum(alpha.value, 1e-8), alpha.error)
        k = product(k, _gate(moment, alpha))
    write = product(Bounded(v.value[:, :, None], v.error[:, :, None]), Bounded(k.value[:, None, :], k.error[:, None, :]))
    keep = product(_before(moment, "S"), Bounded(alpha.value[:, None, :], alpha.error[:, None, :]))
    moment.memory["S"] = _settled(moment, add(keep, write)).error
    return moment.memory["S"]


def _gate(moment: Moment, alpha: Bounded) -> Bounded:
    """`p / (p + 1e-8)`, p held as its logarithm: dg/dlog p = g (1 - g). Below the normal range p is off by TINY, g by 1e8 times that."""
    log_p = moment.after["log_p"]
    error = moment.memory.get("log_p", np.zeros_like(log_p)) + alpha.error / np.maximum(alpha.value - alpha.error, 1e-8)
    error = error + UNIT * (2 * np.abs(np.log(alpha.value)) + np.abs(log_p)) * np.where(alpha.value == 1, 0, 1)
    moment.memory["log_p"] = error
    p = np.exp(log_p)
    gate = p / (p + 1e-8)
    slope = np.minimum(0.25, gate * (1 - gate) * np.exp(np.minimum(error, 50.0)))
    return Bounded(gate, slope * (error + (8 + moment.doubt.functions) * UNIT) + 4 * UNIT * gate + TINY * 1e8)


def delta_memory(moment: Moment, v: Bounded, k: Bounded, alpha: Bounded, beta: Bounded) -> Real:
    state = moment.before["S"]
    error = moment.memory.get("row", np.zeros(state.shape[:2]))
    kept = _norm(state * alpha.value[:, None, :])
    moved = _norm(state * alpha.error[:, None, :])
    size_k, drift_k = _norm(k.value)[:, None] + _norm(k.error)[:, None], _norm(k.error)[:, None]
    rate, drift = beta.value + beta.error, beta.error
    reach = np.abs(v.value) + v.error + (kept + moved + error) * size_k
    grow = (alpha.value + alpha.error).max(axis=-1)[:, None] * np.maximum(1.0, _expansion(size_k, rate))
    error = grow * error + moved * (1 + rate * size_k**2) + rate * (v.error * size_k + reach * drift_k + kept * drift_k * size_k)
    error = error + drift * reach * size_k + gamma(state.shape[-1] + 8) * (kept + rate * reach * size_k) + TINY
    error = error + moment.doubt.floor * state.shape[-1]
    moment.memory["row"] = error
    return np.broadcast_to(error[:, :, None], state.shape)


def _expansion(size_k: Real, rate: Real) -> Real:
    """The 2-norm of `I - beta k k^T` beyond 1 (only where |k| or beta left its range)."""
    return np.abs(1 - rate * size_k**2)


def _norm(x: Real) -> Real:
    return np.asarray(np.sqrt((x * x).sum(axis=-1)))


def diagonal_ssm(moment: Moment, x: Bounded) -> Real:
    step: S.DiagonalSSM = moment.step
    a, c = np.hypot(step.a_re, step.a_im), np.hypot(step.c_re, step.c_im)
    h = np.hypot(moment.before["re"], moment.before["im"])
    error = moment.memory.get("h", np.zeros_like(h))
    inexact = (6 + moment.doubt.parameters) * UNIT * (a * (h + error) + np.abs(x.value)[..., None])
    moment.memory["h"] = a * error + x.error[..., None] + inexact + TINY + 2 * moment.doubt.floor
    now = np.hypot(moment.after["re"], moment.after["im"])
    modes = a.shape[-1]
    return output_error(step, c, now, moment.memory["h"], modes, x)


def output_error(step: S.DiagonalSSM, c: Real, h: Real, error: Real, modes: int, x: Bounded) -> Real:
    """The error of `y = 2 Re sum_m C_m h_m + D x` from that of h."""
    direct = np.abs(step.d) * (x.error + 4 * UNIT * np.abs(x.value))
    return 2 * (c * error).sum(axis=-1) + gamma(2 * modes + 6) * 2 * (c * (h + error)).sum(axis=-1) + direct + TINY


NEURONS: Mapping[type[S.Step], Rule] = {
    S.Integrator: integrator,
    S.LIF: lif,
    S.MatrixMemory: matrix_memory,
    S.DeltaMemory: delta_memory,
    S.DiagonalSSM: diagonal_ssm,
}
"""Per step kind with a memory: the rule for a party that goes step by step."""
