"""Gen3's recurrence over a segment of time, in pure torch, two ways.

    K = S_{t-1} Diag(alpha_t),   S_t = K + beta_t (v_t - K k_t) k_t^T = S_{t-1} M_t + beta_t v_t k_t^T
    M_t = Diag(alpha_t) (I - beta_t k_t k_t^T)

A step mixes the cells of a row, so decays do not commute and no prefix product of scalars exists: the routes are the loop, and the
associative scan of the pairs (M, W). With |k| = 1 and alpha, beta in (0, 1) no M is longer than 1, so products of them only shrink.
Routes take `(v (T, B, d), k (T, B, n), z (T, B, n), beta (T, B, 1))`, the last two in float64; see `memory_scan`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spikedeploy.nn.memory_scan import Inputs, Route, interleave, outer


def iterative(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence itself, step by step, in float64 and in the order of the program's `DeltaMemory` step."""
    v, k, z, beta = inputs
    sequences = (v.double(), k.double(), torch.sigmoid(z), beta)
    states = []
    for v_t, k_t, a_t, b_t in zip(*(x.unbind(0) for x in sequences), strict=True):
        kept = state * a_t.unsqueeze(-2)
        read = (kept * k_t.unsqueeze(-2)).sum(-1)
        state = kept + outer(b_t * (v_t - read), k_t)
        states.append(state)
    return torch.stack(states).to(v.dtype), state


def associative(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """A work-efficient associative scan of the pairs (M, W): `(M1, W1) then (M2, W2) = (M1 M2, W1 M2 + W2)`."""
    v, k, z, beta = inputs
    v64, k64, alpha = v.double(), k.double(), torch.sigmoid(z)
    move = torch.diag_embed(alpha) - outer(alpha * k64, beta * k64)
    first = outer(beta[:1] * v64[:1], k64[:1]) + state @ move[:1]
    states = _scan(move, torch.cat([first, outer(beta[1:] * v64[1:], k64[1:])]))
    return states.to(v.dtype), states[-1]


def _scan(move: Tensor, write: Tensor) -> Tensor:
    steps = write.shape[0]
    if steps == 1:
        return write
    even, odd = slice(0, steps - 1, 2), slice(1, steps, 2)
    at_odd = _scan(move[even] @ move[odd], write[even] @ move[odd] + write[odd])
    after = at_odd[: (steps - 1) // 2] @ move[2::2] + write[2::2]
    return interleave(torch.cat([write[:1], after]), at_odd)


ROUTES: Mapping[str, Route] = {"iterative": iterative, "associative": associative}
"""Gen3's pure torch routes by method name."""
