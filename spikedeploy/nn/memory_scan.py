"""Gen2's recurrence over a segment of time, in pure torch, three ways; none divides by a product of decays.

    S_t = S_{t-1} Diag(alpha_t) + v_t k_t^T,    alpha_t = sigmoid(z_t)

A product of decays underflows, and dividing by it is what breaks the library's parallel form. Here decays are only ever *multiplied*:
a cumulative decay is held as its logarithm (float64) and used as `exp(L_t - L_r)` with r < t, which is at most 1.

Every route takes `(v (T, B, d), k (T, B, n), z (T, B, n) float64)` and the state `(B, d, n)` in float64, and returns all states
`(T, B, d, n)` and the last one in float64, so that the carry from segment to segment adds no rounding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Inputs = tuple[Tensor, ...]
Route = Callable[[Inputs, Tensor], tuple[Tensor, Tensor]]


def outer(v: Tensor, k: Tensor) -> Tensor:
    """`v k^T`: `(..., d)`, `(..., n)` -> `(..., d, n)`."""
    return v.unsqueeze(-1) * k.unsqueeze(-2)


def iterative(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence itself, step by step, in float64."""
    v, k, z = inputs
    states = []
    # unbind, not x[t]: indexing makes the backward quadratic in T
    for v_t, k_t, a_t in zip(v.double().unbind(0), k.double().unbind(0), torch.sigmoid(z).unbind(0), strict=True):
        state = state * a_t.unsqueeze(-2) + outer(v_t, k_t)
        states.append(state)
    return torch.stack(states).to(v.dtype), state


def prefix(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix sums and products on two levels: sqrt(T) chunks run side by side from zero, then each receives its decayed carry."""
    v, k, z = inputs
    steps, dtype = v.shape[0], v.dtype
    size = max(1, math.isqrt(steps))
    groups = -(-steps // size)
    v, k, z = (_chunks(x, groups, size, fill) for x, fill in ((v, 0.0), (k, 0.0), (z, math.inf)))
    log_alpha = F.logsigmoid(z)
    decay = log_alpha.cumsum(1).exp()  # (groups, size, B, n), from the beginning of the chunk
    local = _side_by_side(v, k, log_alpha.expm1().to(dtype))
    carries, ends = [], zip(local[:, -1].double().unbind(0), decay[:, -1].unbind(0), strict=True)
    for end, factor in ends:
        carries.append(state)
        state = state * factor.unsqueeze(-2) + end
    carry = torch.stack(carries).to(dtype).unsqueeze(1)
    states = local + carry * decay.to(dtype).unsqueeze(-2)
    return states.flatten(0, 1)[:steps], state


def _chunks(x: Tensor, groups: int, size: int, fill: float) -> Tensor:
    """`(T, ...)` -> `(groups, size, ...)`, filled up with steps that write nothing and forget nothing (z = inf)."""
    missing = groups * size - x.shape[0]
    whole = x if missing == 0 else torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)])
    return whole.reshape(groups, size, *x.shape[1:])


def _side_by_side(v: Tensor, k: Tensor, change: Tensor) -> Tensor:
    """All chunks `(groups, size, B, ...)` at once, each from a zero state -> `(groups, size, B, d, n)`.

    `change` is alpha - 1: near 1 a rounded alpha errs the same way at every step, a rounded change does not.
    """
    columns = zip(v.unbind(1), k.unbind(1), change.unsqueeze(-2).unbind(1), strict=True)
    states: list[Tensor] = []
    for v_i, k_i, change_i in columns:
        write = outer(v_i, k_i)
        states.append(states[-1] + torch.addcmul(write, states[-1], change_i) if states else write)
    return torch.stack(states, 1)


def associative(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """A work-efficient associative scan of the pairs (log decay, write): `(l1, b1) then (l2, b2) = (l1 + l2, e^l2 b1 + b2)`."""
    v, k, z = inputs
    log_alpha = F.logsigmoid(z)
    local = _scan(log_alpha, outer(v, k))
    decay = log_alpha.cumsum(0).exp().unsqueeze(-2)
    states = local + state.to(v.dtype) * decay.to(v.dtype)
    return states, state * decay[-1] + local[-1].double()


def _scan(log_alpha: Tensor, write: Tensor) -> Tensor:
    steps = write.shape[0]
    if steps == 1:
        return write
    decay = log_alpha.exp().to(write.dtype).unsqueeze(-2)
    even, odd = slice(0, steps - 1, 2), slice(1, steps, 2)
    at_odd = _scan(log_alpha[even] + log_alpha[odd], write[even] * decay[odd] + write[odd])
    after = decay[2::2] * at_odd[: (steps - 1) // 2] + write[2::2]
    at_even = torch.cat([write[:1], after])
    return interleave(at_even, at_odd)


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    """`even[0], odd[0], even[1], ...` along time; `even` may be one longer."""
    pairs = torch.stack([even[: len(odd)], odd], 1).flatten(0, 1)
    return torch.cat([pairs, even[len(odd) :]])


ROUTES: Mapping[str, Route] = {"iterative": iterative, "prefix": prefix, "associative": associative}
"""Gen2's pure torch routes by method name."""
