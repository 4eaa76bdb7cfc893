"""Gen3, the delta-rule memory: a write first takes away what its key already recalls."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedeploy.nn.memory_delta import ROUTES
from spikedeploy.nn.memory_layer import MemoryLayer
from spikedeploy.nn.memory_scan import Inputs, Route


class DeltaRuleLeaky(MemoryLayer):
    """A matrix-state spiking memory that overwrites by the delta rule, with decay and write strength that depend on the input.

        v_t = W_v x_t + b_v (d)          k_t = W_k x_t + b_k, then k_t / |k_t| (n)     Q_t = W_q x_t + b_q, as (n, d)
        alpha_t = sigmoid(W_a x_t + b_a) (n)                                          beta_t = sigmoid(w_b x_t + b_b), one number
        S_t = K + beta_t (v_t - K k_t) k_t^T,   K = S_{t-1} Diag(alpha_t)              (d, n)
        P_t = graded_spikes_factor * 1[S_t > threshold],   y_t = vec(P_t Q_t) (d*d),  or  vec(P_t) (d*n) when `use_q_projection` is False

    Not snnTorch's `DeltaLeaky`, which is another neuron. Arguments are those of `AssociativeLeaky`; `topk_k` acts before the
    normalisation, so a sparse key still has length 1. `method` is "iterative", "associative", "native" or "auto": a prefix product
    does not exist, since the transitions do not commute.

    Raises `BadInput` on a size, threshold, method or top-k that cannot be.
    """

    routes: ClassVar[dict[str, Route]] = dict(ROUTES)
    fallback: ClassVar[str] = "associative"
    delta: ClassVar[bool] = True

    def __init__(self, in_dim: int, d_value: int, d_key: int, *arguments: Any, **options: Any) -> None:
        super().__init__(in_dim, d_value, d_key, *arguments, **options)
        self.to_beta = nn.Linear(in_dim, 1)

    def _writers(self) -> tuple[nn.Linear, ...]:
        return *super()._writers(), self.to_beta

    def project(self, x: Tensor) -> Inputs:
        """`v (T, B, d)`, `k (T, B, n)` of length 1, the logits of alpha `(T, B, n)` and `beta (T, B, 1)`, the last two in float64."""
        v, k, z, b = super().project(x)
        return v, F.normalize(k, dim=-1, eps=1e-12), z, torch.sigmoid(b.double())
