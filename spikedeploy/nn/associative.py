"""Gen2, the associative memory: snnTorch's `AssociativeLeaky` computed as its recurrence says, stable at any length."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.memory_layer import MemoryLayer
from spikedeploy.nn.memory_scan import ROUTES, Route


class AssociativeLeaky(MemoryLayer):
    """A matrix-state spiking memory with a decay that depends on the input.

        v_t = W_v x_t + b_v (d)     k_t = W_k x_t + b_k (n)     alpha_t = sigmoid(W_a x_t + b_a) (n)     Q_t = W_q x_t + b_q, as (n, d)
        S_t = S_{t-1} Diag(alpha_t) + v_t k_t^T                 (d, n)
        P_t = graded_spikes_factor * 1[S_t > threshold]         (d, n)
        y_t = vec(P_t Q_t) (d*d),   or   vec(P_t) (d*n) when `use_q_projection` is False

    Constructor, parameter names and state_dict are those of snnTorch 1.0.0's class of this name, so a checkpoint moves both ways.
    The numbers are those of the recurrence; the library's own forward is not (its writes vanish once the product of decays
    falls below 1e-8), see docs/gen2.md.

    in_dim, d_value (d), d_key (n), num_spiking_neurons (d*n or None), use_q_projection: as in snnTorch.
    threshold             one number or one per cell, `(d, n)` or `(d*n,)`; learned when `learn_threshold`
    spike_grad            surrogate gradient, as snnTorch's (default arctangent); any callable on `S - threshold`
    graded_spikes_factor  amplitude of a spike, one or per cell; learned when `learn_graded_spikes_factor`
    state_quant           quantiser of S before firing, as snnTorch's
    initial_retention     steps that a write should last at first: the bias of alpha becomes ln(horizon); one number or `(n,)`
    topk_k, topk_v        keep only the largest entries of k and v (count, or fraction as a float); straight-through gradient
    method                "iterative", "prefix", "associative", "native", "triton" or "auto"; no convolution: the decay varies with time
    chunk                 steps of a segment: the backward of the torch forms recomputes one segment at a time
    batch_chunk           batch elements that are run at a time, where memory is short; None runs all

    The attribute `output` is snnTorch's: set to False, S itself is read instead of its spikes.

    Raises `BadInput` on a size, threshold, method or top-k that cannot be.
    """

    routes: ClassVar[dict[str, Route]] = dict(ROUTES)
    on_gpu: ClassVar[bool] = True

    @classmethod
    def from_num_spiking_neurons(cls, in_dim: int, num_spiking_neurons: int, use_q_projection: bool = True, **options: Any) -> Self:
        """The layer with `d = n = sqrt(num_spiking_neurons)`."""
        side = math.isqrt(max(num_spiking_neurons, 0))
        if side < 1 or side * side != num_spiking_neurons:
            found = f"num_spiking_neurons={num_spiking_neurons}"
            raise BadInput(message(cls.__name__, found, "a positive perfect square is needed for d = n"))
        return cls(in_dim, side, side, num_spiking_neurons, use_q_projection, **options)
