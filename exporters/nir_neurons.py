"""Neurons as NIR nodes. Every parameter is broadcast to the full shape of the layer, float64; readers want it so."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spikedeploy import steps as S
from spikedeploy.exporters.nir_build import Builder, Wire, per_channel
from spikedeploy.steps import Array, Shape

_SPEC = "Use --profile generic or spec."


def time_constant(build: Builder, decay: Array) -> tuple[Array, Array]:
    """tau with the given decay over one step, and r = 1/(1-d): the gain that undoes `tau v' = -v + r x`.

    euler: 1 - dt/tau = d; exact: exp(-dt/tau) = d.
    """
    decay = np.asarray(decay, np.float64)
    if np.any(decay >= 1):
        raise build.refuse(
            "a decay of 1 (no leak)", "every decay must lie below 1: its time constant would be infinite", "Use --target onnx."
        )
    if build.discretisation == "exact":
        if np.any(decay <= 0):
            raise build.refuse("a decay of 0", "every decay must lie above 0 under exact discretisation", "Use the euler one.")
        return -build.dt / np.log(decay), 1 / (1 - decay)
    return build.dt / (1 - decay), 1 / (1 - decay)


def full(value: Array | float, shape: Shape) -> Array:
    """The value at every neuron, float64."""
    return np.broadcast_to(np.asarray(value, np.float64), shape).copy()


def one_threshold(build: Builder, name: str, wire: Wire, theta: Array) -> tuple[Wire, Array]:
    """For readers with one threshold per layer: the current divided by theta, and 1."""
    if not build.profile.one_threshold:
        return wire, theta
    if np.any(theta < 0):
        raise build.refuse(
            "a threshold below zero", f"profile '{build.profile.name}' needs thresholds of at least 0", "Use --profile spec or norse."
        )
    if len(np.unique(theta)) == 1:
        return wire, theta
    if np.any(theta == 0):
        raise build.refuse("thresholds that differ, with a zero", "weights are divided by them", "Use --profile spec or norse.")
    build.notes.append(
        f"{build.where}: weights divided by the thresholds, which become 1; membranes of this layer are in units of their threshold"
    )
    return build.scaled(name, wire, theta, "scaled", divide=True), np.array(1.0)


def cuba(
    build: Builder, name: str, source: Wire, shape: Shape, *, syn: Array, mem: Array, theta: Array, v_reset: Array | float = 0.0
) -> str:
    """CubaLIF whose synapse decays by `syn` and whose membrane by `mem`; both with unit gain."""
    tau_syn, w_in = time_constant(build, syn)
    tau_mem, r = time_constant(build, mem)
    if not np.any(mem):
        tau_mem = tau_mem * build.profile.membrane_steps
    values = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": r, "w_in": w_in, "v_threshold": theta, "v_reset": v_reset, "v_leak": 0.0}
    return build.add(name, "CubaLIF", source.nodes, **{key: full(value, shape) for key, value in values.items()})


def grouped(build: Builder, name: str, source: Wire, shape: Shape, decay: Array, theta: Array) -> str:
    """One CubaLIF for each decay: 0/1 matrices pick its channels from the current and put their
    spikes back in place; all exact."""
    channel = per_channel(decay, (shape[0], *(1,) * (len(shape) - 1)))
    if channel is None:
        raise build.refuse("decays that differ inside a channel", f"profile '{build.profile.name}' takes one per channel", _SPEC)
    channel, places, eye = channel.reshape(-1), [], np.eye(shape[0])
    for k, value in enumerate(np.unique(channel)):
        rows = np.flatnonzero(channel == value)
        part = (len(rows), *shape[1:])
        picked = Wire((_mix(build, f"{name}.pick{k}", source.nodes, eye[rows], shape),), part)
        node = cuba(build, f"{name}.group{k}", picked, part, syn=np.array(value), mem=np.array(0.0), theta=theta.reshape(-1)[0])
        places.append(_mix(build, f"{name}.place{k}", (node,), eye[:, rows], part))
    zero, joined = np.array(0.0), Wire(tuple(places), shape)
    return cuba(build, name, joined, shape, syn=zero, mem=zero, theta=np.array(0.5))  # relays: the layer under its own name


def _mix(build: Builder, wire: str, sources: Iterable[str], matrix: Array, shape: Shape) -> str:
    """A matrix over channels: Affine on vectors, a 1 x 1 convolution on maps."""
    bias = np.zeros(len(matrix))
    if len(shape) == 1:
        return build.add(wire, "Affine", sources, weight=matrix, bias=bias)
    whole = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "input_shape": shape[1:]}
    return build.add(wire, "Conv2d", sources, weight=matrix[:, :, None, None], bias=bias, **whole)


def leaky(build: Builder, name: str, source: Wire, shape: Shape, decay: Array) -> str:
    """LI with unit gain: v_t = d v_{t-1} + x_t; without leak it is NIR's I, v' = r x."""
    if np.all(decay == 1) and "I" in build.profile.nodes:
        return build.add(name, "I", source.nodes, r=np.full(shape, 1 / build.dt))
    tau, r = time_constant(build, decay)
    return build.add(name, "LI", source.nodes, tau=full(tau, shape), r=full(r, shape), v_leak=np.zeros(shape))


def lif(build: Builder, name: str, source: Wire, shape: Shape, decay: Array, theta: Array, v_reset: Array | float) -> str:
    """LIF with unit gain and a reset: as LIF where the profile speaks of it, as CubaLIF with an instant synapse elsewhere."""
    if build.profile.form == "cuba":
        return cuba(build, name, source, shape, syn=np.array(0.0), mem=decay, theta=theta, v_reset=v_reset)
    tau, r = time_constant(build, decay)
    values = {"tau": tau, "r": r, "v_threshold": theta, "v_reset": v_reset, "v_leak": 0.0}
    return build.add(name, "LIF", source.nodes, **{key: full(value, shape) for key, value in values.items()})


def membrane_needed(build: Builder, step: S.Integrator) -> bool:
    """True when anything but thresholds on it needs the membrane as a node (thresholds that nobody hears are gone by now)."""
    readers = build.program.readers(step.name)
    return not readers or any(not isinstance(reader, S.Threshold) for reader in readers)


def put_integrator(build: Builder, step: S.Integrator) -> None:
    """A membrane: a node of its own in the LI form or where more than its threshold needs it; else the threshold brings it."""
    if build.profile.channels_last and membrane_needed(build, step):
        raise build.refuse("a membrane that leaves the neuron", f"the reader of profile '{build.profile.name}' knows spikes only", _SPEC)
    if build.profile.form == "li-threshold" or membrane_needed(build, step):
        if build.profile.input_range:
            raise build.refuse(
                "a membrane that leaves the neuron", f"the reader of profile '{build.profile.name}' knows spikes only", _SPEC
            )
        source, shape = build.plain(step.inputs[0]), build.program.wires[step.name]
        name = leaky(build, step.name, source, shape, step.decay)
        build.wires[step.name] = Wire((name,), shape)


def put_threshold(build: Builder, step: S.Threshold) -> None:
    """The spike of a neuron without reset."""
    if not step.strict:
        raise build.refuse("it fires at its threshold (>=)", "NIR's neurons fire above it (>)", "Use --target onnx.")
    shape, theta = build.program.wires[step.name], np.asarray(step.threshold, np.float64)
    before = build.program.writer(step.inputs[0])
    if step.inputs[0] in build.wires:
        source, decay, name = build.plain(step.inputs[0]), np.array(0.0), step.inputs[0]
        if build.profile.form == "li-threshold" or isinstance(before, S.Integrator):
            _spikes(build, step, build.add(step.name, "Threshold", source.nodes, threshold=full(theta, shape)), shape)
            return
    else:
        assert isinstance(before, S.Integrator)
        source, decay, name = build.plain(before.inputs[0]), before.decay, before.inputs[0]
    if build.profile.form in ("sinabs", "rockpool"):
        _spikes(build, step, LIFTED[build.profile.form](build, step.name, source, full(decay, shape), full(theta, shape)), shape)
        return
    if build.profile.form == "lif":
        _spikes(build, step, lif(build, step.name, source, shape, decay, theta, 0.0), shape)
        return
    source, folded = one_threshold(build, name, source, theta)
    if folded is not theta:
        build.rescaled.add(step.inputs[0])
    if build.profile.one_decay and len(np.unique(decay)) > 1:
        _spikes(build, step, grouped(build, step.name, source, shape, decay, folded), shape)
    else:
        _spikes(build, step, cuba(build, step.name, source, shape, syn=decay, mem=np.array(0.0), theta=folded), shape)


def _spikes(build: Builder, step: S.Firing, node: str, shape: Shape) -> None:
    amplitude = None if np.all(step.amplitude == 1) else np.asarray(step.amplitude, np.float64)
    build.wires[step.name] = Wire((node,), shape, amplitude)


# --- readers whose neurons fire at the threshold and more than once a step: the threshold is lifted to B, the current by B - theta -----


def _lifted(build: Builder, source: Wire, decay: Array, theta: Array) -> tuple[Array, Array]:
    """B and B - theta: B is the smallest power of two above what any membrane can exceed its threshold by.

    The lift ends at the last float32 before B, so that a membrane exactly at its threshold stays silent, as `>` says.
    """
    kind, params = build.nodes[source.nodes[0]]
    before = [a for a, b in build.edges if b == source.nodes[0]]
    if kind != "Affine" or len(source.nodes) != 1 or len(before) != 1:
        raise build.refuse("neurons that no matrix feeds", f"profile '{build.profile.name}' bounds membranes by their weights", _SPEC)
    analog = build.nodes[before[0]][0] in ("Input", "Flatten")
    weight, bias = (np.asarray(params[key], np.float64) for key in ("weight", "bias"))
    most = np.abs(weight).sum(axis=1) * build.profile.input_range if analog else np.maximum(weight, 0).sum(axis=1)
    reach = np.max(np.maximum(most + bias, 0) / (1 - np.minimum(decay, 1 - 1e-9)) - theta)
    top = 2.0 ** np.ceil(np.log2(max(reach * (1 + 1e-6), 1.0)))
    if analog:
        build.notes.append(
            f"{build.where}: right for inputs up to {build.profile.input_range:g} in size; float32 resolves {top * 2**-24:.1e} here"
        )
    return np.full(theta.shape, top), top - theta - top * 2.0**-24


def sinabs(build: Builder, name: str, source: Wire, decay: Array, theta: Array) -> str:
    """LI (decay exp(-1/tau), unit gain) -> Affine (+ lift) -> LIF of no memory that fires at B."""
    top, lift = _lifted(build, source, decay, theta)
    tau = np.where(decay > 0, -build.dt / np.log(np.where(decay > 0, decay, 0.5)), FORGETS * build.dt)
    shape = theta.shape
    mem = build.add(f"{name}.mem", "LI", source.nodes, tau=tau, r=np.ones(shape), v_leak=np.zeros(shape))
    raised = build.add(f"{name}.lift", "Affine", (mem,), weight=np.eye(len(theta)), bias=lift)
    values = {"tau": np.full(shape, FORGETS * build.dt), "r": np.ones(shape), "v_leak": np.zeros(shape), "v_reset": np.zeros(shape)}
    return build.add(name, "LIF", (raised,), **values, v_threshold=top)


def rockpool(build: Builder, name: str, source: Wire, decay: Array, theta: Array) -> str:
    """CubaLIF: i = d (i + x), so weights are divided by d; v = i + v_leak, so v_leak is the lift; r says what dt is."""
    top, lift = _lifted(build, source, decay, theta)
    decay = np.where(decay > 0, decay, 2.0**-90)
    _, params = build.nodes[source.nodes[0]]
    params["weight"], params["bias"] = params["weight"] / decay[:, None], params["bias"] / decay
    shape, fast = theta.shape, 1 / 200
    values = {
        "tau_syn": -build.dt / np.log(decay),
        "tau_mem": np.full(shape, build.dt * fast),
        "r": np.full(shape, fast - 1),
        "v_leak": lift,
    }
    return build.add(name, "CubaLIF", source.nodes, **values, v_reset=np.zeros(shape), w_in=np.ones(shape), v_threshold=top)


FORGETS = 1e-3
"""A time constant, in steps, after which nothing is left: exp(-1000) is zero in every float."""
LIFTED = {"sinabs": sinabs, "rockpool": rockpool}


def put_lif(build: Builder, step: S.LIF) -> None:
    """A neuron with reset: exact when the reset sets the membrane (to zero), whenever it acts; NIR has no reset by subtraction."""
    if build.profile.input_range:
        raise build.refuse("a reset", f"profile '{build.profile.name}' carries neurons without reset", _SPEC)
    if step.reset == "subtract":
        raise build.refuse(
            "a reset by subtraction", "NIR's neurons reset to a value", 'Train with reset_mechanism="zero" or "none", or use --target onnx.'
        )
    if not step.strict:
        raise build.refuse("it fires at its threshold (>=)", "NIR's neurons fire above it (>)", "Use --target onnx.")
    theta = np.asarray(step.threshold, np.float64)
    to = np.asarray(step.reset_value, np.float64) if step.reset == "value" else np.array(0.0)
    if step.reset == "zero" and np.any(theta < 0):
        raise build.refuse("a threshold below zero with a reset to zero", "the neuron would fire for ever", "Use --target onnx.")
    if build.profile.one_threshold and np.any(to):
        raise build.refuse(f"a reset to {to.ravel()[0]}", f"profile '{build.profile.name}' resets to 0", "Use --profile spec.")
    if f"{step.name}.mem" in {name for other in build.program.steps for name in other.inputs}:
        raise build.refuse("another layer reads its membrane", "NIR's neurons put out spikes only", "Use --target onnx.")
    if build.profile.one_decay and len(np.unique(step.decay)) > 1:
        raise build.refuse("decays that differ, with a reset", f"profile '{build.profile.name}' takes one per layer", _SPEC)
    shape = build.program.wires[step.name]
    source, folded = one_threshold(build, step.inputs[0], build.plain(step.inputs[0]), theta)
    if folded is not theta:
        build.rescaled.add(f"{step.name}.mem")
    _spikes(build, step, lif(build, step.name, source, shape, step.decay, folded, to), shape)
