"""One interface to a leaky neuron over a whole sequence, whatever computes it: `leaky_scan`."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from spikedeploy import native
from spikedeploy.errors import BadInput, message
from spikedeploy.nn import scan_native
from spikedeploy.nn.neuron import METHODS, RESETS, Method, Neuron, Reset
from spikedeploy.nn.scan_linear import linear_scan
from spikedeploy.nn.scan_loop import Quantise, amplify, decay_of, fire, iterate
from spikedeploy.nn.scan_speculative import speculative
from spikedeploy.nn.surrogate import Spike, Surrogate, recognise
from spikedeploy.nn.uncompiled import uncompiled

Parameter = Tensor | float
Result = tuple[Tensor | None, Tensor, Tensor | None]

WORTH_CHUNKS = 8
"""Steps from which on `speculative` is faster than `iterative`, measured."""


def leaky_scan(
    x: Tensor,
    decay: Parameter,
    threshold: Parameter | None = 1.0,
    *,
    reset: Reset = "none",
    reset_delay: bool = True,
    strict: bool = True,
    tau: bool = False,
    initial: Tensor | None = None,
    graded: Parameter | None = None,
    surrogate: Surrogate | Spike | str | None = None,
    wide_state: bool = False,
    method: Method = "auto",
    batch_chunk: int | None = None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """A leaky neuron over a whole sequence: spikes, membranes and the state after the last step.

        r_t = H(u_{t-1} - threshold)          s_t = graded * H(u_t - threshold)
        u_t = decay * u_{t-1} + x_t - r_t * threshold      "subtract"
        u_t = decay * (1 - r_t) * u_{t-1} + x_t            "zero"
        u_t = decay * u_{t-1} + x_t                        "none"

    x            `(T, B, ...)`, float32 or float64 (other floats are computed in float32)
    decay        factor per step, or with `tau=True` the time constant: `decay = exp(-1/tau)`; scalar, `(C,)` or broadcast to `x[0]`
    threshold    like decay; None for membranes without spikes (reset "none" only)
    reset_delay  False: the reset acts within the step, `u_t -= (H(u_t) - r_t) * threshold` or `* u_t`
    strict       H(v) is `v > 0`, else `v >= 0`
    initial      u before the first step, `x[0]`'s shape; zero when not given
    graded       amplitude of spikes, like decay
    surrogate    what replaces dH/dv: see `spikedeploy.nn.surrogate`; resets carry no gradient (snnTorch's `detach`)
    wide_state   keep u in float64 between the steps of a float32 sequence; `final` is then float64
    method       see docs/training.md; "auto" takes what is fastest where it runs
    batch_chunk  batch items scanned at a time by convolution, prefix and associative, which bounds their temporary memory
    out          `(spk, mem)` to write into (native only); their former contents must no longer be needed by a backward pass

    Returns `(spk, mem, final)`; spk is None when threshold is. Raises `BadInput` on shapes that do not fit or a route that does not apply.
    Source: snnTorch 1.0.0, `snntorch/_neurons/leaky.py`.
    """
    neuron = Neuron(
        reset, reset_delay or reset == "none", strict, is_tau=tau, wide_state=wide_state, surrogate=recognise(surrogate),
        spikes=threshold is not None, final=True,
    )  # fmt: skip
    spk, mem, final = scan(x, decay, threshold, graded, initial, neuron, method, batch_chunk, out)
    assert final is not None
    return spk, mem, final


@uncompiled
def scan(
    x: Tensor,
    decay: Parameter,
    threshold: Parameter | None,
    graded: Parameter | None,
    initial: Tensor | None,
    neuron: Neuron,
    method: Method = "auto",
    batch_chunk: int | None = None,
    out: tuple[Tensor | None, Tensor] | None = None,
    quantise: Quantise | None = None,
) -> Result:
    """`leaky_scan` on a prepared `Neuron`; final is None unless `neuron.final`. `quantise` acts on the state at every step."""
    check_sequence(x)
    check_route(threshold, neuron, method, batch_chunk, quantise)
    if x.dtype not in (torch.float32, torch.float64):
        spk, mem, final = scan(x.float(), decay, threshold, graded, initial, neuron, method, batch_chunk, quantise=quantise)
        return None if spk is None else spk.to(x.dtype), mem.to(x.dtype), final
    d, threshold, graded = fit("decay", decay, x), _optional("threshold", threshold, x), _optional("graded", graded, x)
    if initial is not None:
        initial = _state(initial, x, neuron)
    route = "iterative" if quantise else choose(x, neuron) if method == "auto" else method
    if route == "iterative" and (quantise or not neuron.linear):
        spk, mem, last = iterate(x, d, threshold, graded, initial, neuron, quantise)
        return spk, mem, last if neuron.final else None
    if route in ("native", "triton"):
        return _fused(route, x, d, threshold, graded, initial, neuron, out)
    if route == "speculative":
        return _speculative(x, d, threshold, graded, initial, neuron)
    return _linear(x, d, threshold, graded, initial, neuron, route, batch_chunk)


def choose(x: Tensor, neuron: Neuron) -> Method:
    """The fastest route where `x` lies: native on the CPU, Triton on a GPU; without them prefix if the state is wide and nothing resets,
    else the loop in verified chunks, whose bits a narrow state promises, or the loop itself where steps are few."""
    fused = neuron.linear or isinstance(neuron.surrogate, Surrogate)
    if fused and scan_native.admits(x):
        return "native"
    if fused and neuron.reset_delay and x.is_cuda and find_spec("triton") is not None:
        return "triton"
    if neuron.linear and neuron.wide_state and x.shape[0] > 1:
        return "prefix"
    return "speculative" if fused and x.shape[0] >= WORTH_CHUNKS else "iterative"


def check_sequence(x: Tensor) -> None:
    """Raises `BadInput` for what is no sequence of numbers `(T, B, ...)`."""
    if x.dim() < 2 or x.numel() == 0:
        raise BadInput(message("leaky neuron", f"an input of shape {tuple(x.shape)}", "(T, B, ...) is needed, with no empty axis"))
    if not x.is_floating_point():
        raise BadInput(message("leaky neuron", f"an input of {x.dtype}", "floating point is needed", "Call `x.float()`."))


def check_route(
    threshold: Parameter | None, neuron: Neuron, method: str, batch_chunk: int | None = None, quantise: Quantise | None = None
) -> None:
    """Raises `BadInput` for a method that does not exist, or that this neuron does not admit."""
    if batch_chunk is not None and (not isinstance(batch_chunk, int) or batch_chunk < 1):
        raise BadInput(message("leaky neuron", f"batch_chunk {batch_chunk!r}", "at least 1 batch item, a whole number, or None is needed"))
    if quantise is not None and method not in ("auto", "iterative"):
        found = f"method {method!r} with a state that is quantised at every step"
        raise BadInput(message("leaky neuron", found, "no other route than the loop applies", 'Use "iterative" or "auto".'))
    if neuron.reset not in RESETS:
        raise BadInput(message("leaky neuron", f"reset {neuron.reset!r}", f"one of {', '.join(RESETS)} is needed"))
    if method not in METHODS:
        raise BadInput(message("leaky neuron", f"method {method!r}", f"one of {', '.join(METHODS)} is needed"))
    if neuron.linear:
        return
    if threshold is None:
        raise BadInput(message("leaky neuron", f"reset {neuron.reset!r} without a threshold", "a reset needs one"))
    if method in ("convolution", "prefix", "associative"):
        raise BadInput(
            message("leaky neuron", f"method {method!r} with reset {neuron.reset!r}", "a reset makes the membrane nonlinear in its past",
                    'Use "speculative", "native", "iterative" or "auto".')
        )  # fmt: skip
    if method in ("native", "triton", "speculative") and not isinstance(neuron.surrogate, Surrogate):
        raise BadInput(
            message("leaky neuron", f"method {method!r} with a reset and a surrogate of your own", "the kernels know named surrogates only",
                    'Use method "iterative", or a name of spikedeploy.nn.surrogate.')
        )  # fmt: skip


def _optional(name: str, p: Parameter | None, x: Tensor) -> Tensor | None:
    return None if p is None else fit(name, p, x).to(x.dtype)


def fit(name: str, p: Parameter, x: Tensor) -> Tensor:
    """A parameter of one value, of one per channel (the last axis), or else expanded to `x[0]`."""
    if not isinstance(p, Tensor):
        return torch.tensor(p, dtype=x.dtype, device=x.device)
    if p.dtype not in (torch.float32, torch.float64):
        p = p.float()
    if p.numel() == 1:
        return p if p.dim() == 0 else p.reshape(())
    if p.shape == x.shape[-1:]:
        return p.contiguous()
    try:
        return p.expand(x.shape[1:]).contiguous()
    except RuntimeError:
        needed = f"one value, ({x.shape[-1]},) or a shape that broadcasts to {tuple(x.shape[1:])} is needed"
        raise BadInput(message("leaky neuron", f"{name} of shape {tuple(p.shape)}", needed)) from None


def _state(initial: Tensor, x: Tensor, neuron: Neuron) -> Tensor:
    if initial.shape != x.shape[1:]:
        raise BadInput(message("leaky neuron", f"an initial state of shape {tuple(initial.shape)}", f"{tuple(x.shape[1:])} is needed"))
    return initial.to(torch.float64 if neuron.wide_state else x.dtype).contiguous()


def _fused(
    route: str,
    x: Tensor,
    decay: Tensor,
    threshold: Tensor | None,
    graded: Tensor | None,
    initial: Tensor | None,
    neuron: Neuron,
    out: Any,
) -> Result:
    if isinstance(neuron.surrogate, Surrogate) or not neuron.spikes:
        return _kernel(route, x, decay, threshold, graded, initial, neuron, out)
    silent = replace(neuron, spikes=False, surrogate=Surrogate())
    _, mem, final = _kernel(route, x, decay, None, None, initial, silent, None)
    return _spikes(mem, threshold, graded, neuron), mem, final


def _kernel(route: str, x: Tensor, *rest: Any) -> Result:
    if route == "triton":
        from spikedeploy.nn.scan_triton import triton_scan

        return triton_scan(x, *rest[:-1])
    if not scan_native.admits(x):
        found = native.why_not() or f"an input on {x.device}"
        raise BadInput(
            message("leaky neuron, method 'native'", found, "the compiled core and a CPU tensor are needed", 'Use method "auto".')
        )
    return scan_native.native_leaky(x, *rest)


def _speculative(
    x: Tensor,
    decay: Tensor,
    threshold: Tensor | None,
    graded: Tensor | None,
    initial: Tensor | None,
    neuron: Neuron,
) -> Result:
    lanes, state = x[0].numel(), torch.float64 if neuron.wide_state else x.dtype
    own = None if isinstance(neuron.surrogate, Surrogate) else replace(neuron, spikes=False)
    d = _lanes(decay_of(decay, neuron, state), lanes)
    limit = x.new_zeros(1) if threshold is None else _lanes(threshold, lanes)
    amplitude = x.new_ones(1) if graded is None else _lanes(amplify(torch.ones_like(graded), graded, neuron), lanes)
    start = x.new_zeros(lanes, dtype=state) if initial is None else initial.flatten()
    spk, mem, last = speculative(x.reshape(len(x), lanes).contiguous(), d, limit, amplitude, start, own or neuron)
    mem, final = mem.view(x.shape), last.view(x.shape[1:]) if neuron.final else None
    return spk.view(x.shape) if spk is not None else _spikes(mem, threshold, graded, neuron), mem, final


def _lanes(p: Tensor, lanes: int) -> Tensor:
    """A parameter as one value or one per lane."""
    return p.flatten() if p.numel() == 1 else p.flatten().repeat(lanes // p.numel())


def _linear(
    x: Tensor,
    decay: Tensor,
    threshold: Tensor | None,
    graded: Tensor | None,
    initial: Tensor | None,
    neuron: Neuron,
    route: str,
    chunk: int | None,
) -> Result:
    lanes, state = x[0].numel(), torch.float64 if neuron.wide_state else x.dtype
    wide = state if route == "iterative" else torch.float64
    d = _lanes(decay_of(decay, neuron, wide), lanes)
    start = x.new_zeros(lanes, dtype=wide) if initial is None else initial.to(wide).flatten()
    width = lanes if chunk is None else chunk * (lanes // x.shape[1])
    flat, last = linear_scan(x.reshape(len(x), lanes).contiguous(), d, start, route, width)
    mem, final = flat.view(x.shape), last.view(x.shape[1:]).to(state) if neuron.final else None
    return _spikes(mem, threshold, graded, neuron), mem, final


def _spikes(mem: Tensor, threshold: Tensor | None, graded: Tensor | None, neuron: Neuron) -> Tensor | None:
    if not neuron.spikes or threshold is None:
        return None
    spk = fire(mem, threshold, neuron)
    return spk if graded is None else amplify(spk, graded, neuron)
