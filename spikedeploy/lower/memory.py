"""Matrix-state memories (Gen2, Gen3): projections, the memory, spikes on it, the readout."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.lower.builder import Call, Wire, to_array
from spikedeploy.lower.maps import parameter
from spikedeploy.lower.neurons import check_fires, levels_of, sequence
from spikedeploy.steps import Array


def project(call: Call, name: str, x: Wire, layer: Any) -> str:
    """One projection of the input -> Affine."""
    return call.emit(S.Affine(f"{call.name}.{name}", (x.name,), to_array(layer.weight), parameter(layer.bias)))


def gate(call: Call, name: str, short: str, x: Wire, layer: Any) -> str:
    """A projection through a sigmoid."""
    raw = project(call, short, x, layer)
    return call.emit(S.Activation(f"{call.name}.{name}", (raw,), "sigmoid"))


def matrix(call: Call, value: Any, d: int, n: int) -> Array:
    """A scalar, or one entry per cell of S, as `(d, n)` takes it."""
    array = to_array(value)
    if array.size == 1:
        return array.reshape(())
    try:
        return np.array(np.broadcast_to(array, (d * n,)).reshape(d, n) if array.ndim <= 1 else np.broadcast_to(array, (d, n)))
    except ValueError:
        raise call.refuse(f"a parameter of shape {array.shape}", f"() or ({d * n},) is needed") from None


def read_out(call: Call, module: Any, x: Wire, state: str) -> Wire:
    """Spikes of S, then `vec(P Q)` or `vec(P)`."""
    d, n = int(module.d_value), int(module.d_key)
    levels = levels_of(call, module)
    if levels is not None:
        state = call.emit(S.Nearest(f"{call.name}.Sq", (state,), levels))
    spikes = state
    if getattr(module, "output", True):
        check_fires(call, module)
        factor = matrix(call, getattr(module, "graded_spikes_factor", 1.0), d, n)
        spikes = call.emit(S.Threshold(f"{call.name}.spk", (state,), matrix(call, module.threshold, d, n), factor))
    if module.use_q_projection:
        flat = project(call, "q", x, module.to_q)
        q = call.emit(S.Reshape(f"{call.name}.Q", (flat,), (n, d)))
        spikes = call.emit(S.MatMul(f"{call.name}.Y", (spikes, q)))
    width = d * (d if module.use_q_projection else n)
    name = call.emit(S.Reshape(call.name, (spikes,), (width,)))
    return Wire(name, x.axes, (*x.sizes[:-1], width))


def associative(call: Call, module: Any, default: str) -> Wire:
    """Gen2: `MatrixMemory` under `default` semantics, or the one that the caller of `convert` asked for."""
    x = sequence(call, call.wire())
    v, k, alpha = _writes(call, module, x)
    semantics: Any = call.builder.semantics or default
    state = call.emit(S.MatrixMemory(f"{call.name}.S", (v, k, alpha), semantics))
    return read_out(call, module, x, state)


def _writes(call: Call, module: Any, x: Wire) -> tuple[str, str, str]:
    """What writes the state: v, k (largest entries only where the layer says so) and alpha."""
    v, k = project(call, "v", x, module.to_v), project(call, "k", x, module.to_k)
    alpha = gate(call, "alpha", "a", x, module.to_alpha)
    return *_sparse(call, v, k, module), alpha


def delta_rule(call: Call, module: Any) -> Wire:
    """Gen3: keys of length 1, a write strength beta, `DeltaMemory`."""
    x = sequence(call, call.wire())
    v, k, alpha = _writes(call, module, x)
    k = call.emit(S.L2Normalize(f"{call.name}.k_unit", (k,)))
    beta = gate(call, "beta", "b", x, module.to_beta)
    state = call.emit(S.DeltaMemory(f"{call.name}.S", (v, k, alpha, beta)))
    return read_out(call, module, x, state)


def _sparse(call: Call, v: str, k: str, module: Any) -> tuple[str, str]:
    """Top-k of v and k where the layer has it."""
    for_v, for_k = getattr(module, "topk_v", None), getattr(module, "topk_k", None)
    if for_v is not None:
        v = call.emit(S.TopK(f"{call.name}.v_top", (v,), int(for_v)))
    if for_k is not None:
        k = call.emit(S.TopK(f"{call.name}.k_top", (k,), int(for_k)))
    return v, k


def snntorch_associative(call: Call, module: Any) -> Wire:
    """snnTorch's AssociativeLeaky: what its forward computes, unless `recurrence` is asked for."""
    return associative(call, module, "snntorch-1.0.0")


def our_associative(call: Call, module: Any) -> Wire:
    """spikedeploy's AssociativeLeaky: the recurrence, which its every route computes."""
    return associative(call, module, "recurrence")
