"""Leaky neurons: snnTorch's StateLeaky, LinearLeaky and Leaky -> Integrator, Threshold, LIF."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.lower.builder import Call, Wire, to_array
from spikedeploy.lower.maps import linear
from spikedeploy.steps import Array
from spikedeploy.surrogates import Refused, describe_surrogate, quantiser_levels


def check_beta(call: Call, beta: Array) -> None:
    """Every beta must lie in (0, 1); the first that does not is named."""
    for index in np.ndindex(beta.shape):
        value = float(beta[index])
        if not 0 < value < 1:
            name = f"beta[{', '.join(map(str, index))}]" if beta.size > 1 else "beta"
            shown = "NaN" if np.isnan(value) else f"{value:.6g}"
            do = (
                "The checkpoint was probably saved after training diverged."
                if not np.isfinite(value)
                else "Clamp it, or train that layer again."
            )
            raise call.refuse(f"{name} is {shown}", "every beta must lie in (0, 1)", do)


def decay_of(call: Call, tau: Any) -> Array:
    """`d = exp(-1/tau)` in float64. beta = (tau - 1)/tau is checked, but it is not the decay.

    tau is stored in float32, so d is known to about 1e-7 only; where a number of at most 8 bits lies within that, it is meant: a decay of
    one half stays one half.
    """
    stored = to_array(tau)
    exact = stored.astype(np.float64)
    with np.errstate(all="ignore"):
        check_beta(call, np.asarray((stored - 1) / stored))
    spread = np.spacing(stored.astype(np.float32)).astype(np.float64) if stored.dtype == np.float32 else np.zeros_like(exact)
    decay = np.exp(-1 / exact)
    simple = np.round(decay * 256) / 256
    near = (np.exp(-1 / (exact - spread)) <= simple) & (simple <= np.exp(-1 / (exact + spread))) & (simple > 0) & (simple < 1)
    return np.where(near, simple, decay)


def along(call: Call, x: Wire, value: Array) -> Array:
    """A parameter as the wire takes it: a scalar, `(C,)`, or anything else that broadcasts to the wire's features."""
    if value.size == 1:
        return value.reshape(())
    try:
        fits = np.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise call.refuse(f"a parameter of shape {value.shape} for {x.shape[-1]} channels", f"() or ({x.shape[-1]},) is needed")
    return value


def sequence(call: Call, x: Wire) -> Wire:
    """`x` with axes (T, B, C), as a neuron that takes whole sequences needs it."""
    if x.axes[:2] != ("T", "B"):
        raise call.refuse(
            f"its input has axes {tuple(x.axes)}",
            "time first, then batch: (T, B, C) is needed",
            "Transpose or reshape before the neuron, or train time-major.",
        )
    return x


def channels(call: Call, x: Wire) -> Wire:
    """`x (T, B, C)`, exactly three axes."""
    if len(x.shape) != 1:
        raise call.refuse(f"its input has shape {x.shape} at one step", "(C,) is needed", "Flatten the features before it.")
    return sequence(call, x)


def amplitude(module: Any, times: int) -> Array:
    """What a spike is worth: snnTorch multiplies by `graded_spikes_factor` `times` times, and rounds to the factor's type."""
    factor = to_array(module.graded_spikes_factor)
    return np.asarray(factor.astype(np.float64) ** times).astype(factor.dtype if factor.dtype.kind == "f" else np.float64)


def state_leaky(call: Call, module: Any, x: Wire | None = None) -> Any:
    """Integrator `<path>.mem` and Threshold `<path>`; truncation puts a delay line before, state_quant a Nearest between."""
    x = channels(call, x or call.wire())
    decay = along(call, x, decay_of(call, module.tau))
    current = _truncated(call, x, decay, module.kernel_truncation_steps)
    levels = levels_of(call, module)
    mem = f"{call.name}.mem"
    if levels is None:
        call.emit(S.Integrator(mem, (current,), decay))
    else:
        raw = call.emit(S.Integrator(f"{call.name}.u", (current,), decay))
        call.emit(S.Nearest(mem, (raw,), levels))
    membrane = call.like(x, mem)
    if not module.output:
        return membrane
    check_fires(call, module)
    threshold = along(call, x, to_array(module.threshold))
    call.emit(S.Threshold(call.name, (mem,), threshold, along(call, x, amplitude(module, 2))))
    return call.like(x, call.name), membrane


def _truncated(call: Call, x: Wire, decay: Array, steps: int | None) -> str:
    """`x_t - d^K x_{t-K}`: what the integrator must be fed so that it forgets after K steps."""
    if steps is None:
        return x.name
    if steps < 1:
        raise call.refuse(f"kernel_truncation_steps={steps}", "at least 1 is needed")
    cut = np.asarray(decay**steps)
    if call.builder.truncation == "drop":
        worst = float(np.max(cut / (1 - decay)))
        call.builder.notes.append(
            f"{call.where}: kernel_truncation_steps={steps} was dropped; its membrane differs by at most {worst:.3g} * max|input|."
        )
        return x.name
    late = call.emit(S.Delay(f"{call.name}.delay", (x.name,), int(steps)))
    gone = call.emit(S.Scale(f"{call.name}.cut", (late,), -cut))
    return call.emit(S.Add(f"{call.name}.in", (x.name, gone)))


def linear_leaky(call: Call, module: Any) -> Any:
    """Affine `<path>.linear`, then as StateLeaky."""
    inner = Call(call.builder, f"{call.name}.linear", call.where, "Linear", call.args, call.kwargs, call.result)
    return state_leaky(call, module, linear(inner, module.linear))


def check_fires(call: Call, module: Any) -> None:
    """A spike must be a step of the membrane: a surrogate whose forward is something else cannot be deployed."""
    try:
        describe_surrogate(module.spike_grad)
    except Refused as error:
        raise call.refuse(*error.parts) from None


def levels_of(call: Call, module: Any) -> Array | None:
    """The sorted levels of `state_quant`."""
    try:
        levels = quantiser_levels(getattr(module, "state_quant", None))
    except Refused as error:
        raise call.refuse(*error.parts) from None
    return None if levels is None else np.sort(to_array(levels))


def refuse_options(call: Call, module: Any) -> None:
    """What a neuron with reset may not have."""
    if getattr(module, "inhibition", False):
        raise call.refuse("inhibition=True", "neurons that do not look at each other are needed")
    check_fires(call, module)
    if levels_of(call, module) is not None:
        raise call.refuse(
            "state_quant with a reset or inside the recurrence",
            "an unquantised membrane is needed",
            "Quantised states are supported on StateLeaky.",
        )


def leaky(call: Call, module: Any, x: Wire | None = None) -> tuple[Wire, Wire]:
    """One LIF step, or Integrator and Threshold where reset_mechanism is "none". The decay is beta itself; graded once."""
    x = x or call.wire()
    refuse_options(call, module)
    beta = to_array(module.beta)
    check_beta(call, beta.astype(np.float64))
    decay, threshold = along(call, x, beta), along(call, x, to_array(module.threshold))
    height = along(call, x, amplitude(module, 1))
    reset = module.reset_mechanism
    if reset == "none":
        call.emit(S.Integrator(f"{call.name}.mem", (x.name,), decay))
        call.emit(S.Threshold(call.name, (f"{call.name}.mem",), threshold, height))
    else:
        call.emit(S.LIF(call.name, (x.name,), decay, threshold, reset, bool(module.reset_delay), True, height))
    return call.like(x, call.name), call.like(x, f"{call.name}.mem")


def our_leaky(call: Call, module: Any) -> Any:
    """`spikedeploy.nn.Leaky` over (T, B, ...): both results, or the spikes alone as its forward gives them."""
    spikes, membrane = leaky(call, module, sequence(call, call.wire()))
    return spikes if module.init_hidden and not module.output else (spikes, membrane)


def snntorch_leaky(call: Call, module: Any) -> Any:
    """snnTorch's Leaky advances one step a call: right inside a loop over time, where its input has no time axis."""
    x = call.wire()
    if any("T" in axis for axis in x.axes):
        raise call.refuse(
            "snnTorch's Leaky advances one time step per call, and the forward calls it once on the whole sequence",
            "a neuron that runs over the sequence is needed",
            "Use spikedeploy.nn.Leaky (same parameters, takes (T, B, C)), or wrap the one-step network in spikedeploy.nn.OverTime.",
        )
    if len(call.args) > 1 or call.kwargs:
        raise call.refuse("a membrane is handed in", "a state that starts at zero is needed", "Let the neuron keep its own membrane.")
    spikes, membrane = leaky(call, module, x)
    return spikes if module.init_hidden and not module.output else (spikes, membrane)
