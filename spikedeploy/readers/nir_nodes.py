"""NIR's equations, one row per node kind: a node becomes the steps that compute it at time steps of length dt.

Written from the equations in the documentation of the `nir` package, and from nothing else. A spike is `v > v_threshold`, strictly. The
differential equation `tau v' = -v + J` becomes

    euler   v_t = (1 - dt/tau) v_{t-1} + (dt/tau) J_t
    exact   v_t = exp(-dt/tau) v_{t-1} + (1 - exp(-dt/tau)) J_t         (J constant during the step)

stage after stage within one step: the membrane of CubaLI and CubaLIF sees the synaptic current of the same step, and the reset acts at
the end of the step in which the neuron fired. States start at zero. NIR leaves all three open; norse, snnTorch and spyx do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, message
from spikedeploy.readers.nir_file import Node
from spikedeploy.steps import Array, Shape, Step

Discretisation = Literal["euler", "exact", "sinabs", "rockpool", "nengo"]
FORGOTTEN = 2.0**-24
"""What is left of a membrane below this is less than float32 can add to it: nothing."""
DIALECTS = ("sinabs", "rockpool")
"""How two readers compute that do not follow NIR's equations; files made for them are checked in their own terms.

    sinabs    LI, LIF   v_t = exp(-dt/tau) v_{t-1} + x_t                              r is ignored
    rockpool  CubaLIF   i_t = exp(-dt/tau_syn) (i_{t-1} + x_t)                        r and w_in are ignored
                        v_t = exp(-dt/tau_mem) v_{t-1} + i_t + v_leak
    both                floor(v / v_threshold) spikes, at the threshold too, each lowering v by v_threshold

Only membranes that forget everything are read in these terms (`exp(-dt/tau)` is zero): then one spike at most, and no reset to speak of.
"""
TIGHT = 1e-14
"""Values are stored as ratios (dt/tau, 1/(1-d)); what lies this close to a shorter number is that number."""


@dataclass(slots=True)
class Site:
    """One node being read: where it stands, what flows in, how time is cut, and the steps written so far."""

    name: str
    node: Node
    source: str
    shape: Shape
    dt: float
    discretisation: Discretisation
    notes: list[str]
    taken: Container[str] = ()
    steps: list[Step] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"node '{self.name}' ({self.node.kind})"

    def refuse(self, found: str, needed: str, do: str = "") -> BadInput:
        return BadInput(message(self.where, found, needed, do))

    def aux(self, suffix: str) -> str:
        """A name for a wire inside the node that no node bears."""
        name = f"{self.name}.{suffix}"
        while name in self.taken:
            name += "_"
        return name

    def raw(self, key: str) -> Any:
        if key not in self.node.params:
            raise self.refuse(f"it has no '{key}'", f"NIR's {self.node.kind} needs it")
        return self.node.params[key]

    def array(self, key: str, default: float | None = None) -> Array:
        """A parameter as float, finite; `default` where the file leaves it out."""
        if key not in self.node.params and default is not None:
            return np.array(default)
        value = self.raw(key)
        if isinstance(value, str) or value.dtype.kind not in "fiub":
            raise self.refuse(f"'{key}' holds text", "numbers are needed")
        value = value.astype(np.float64) if value.dtype.kind != "f" or value.dtype.itemsize != 4 else value
        if not np.isfinite(value).all():
            raise self.refuse(f"'{key}' is not finite", "every parameter must be finite")
        return value

    def neuron(self, key: str, default: float | None = None) -> Array:
        """A parameter of one value per neuron, float64, in a shape that broadcasts to the wire."""
        value = self.array(key, default).astype(np.float64)
        if value.size == 1:
            return value.reshape(())
        if value.ndim == 1 and len(self.shape) == 3 and value.shape[0] == self.shape[0] != self.shape[2]:
            value = value[:, None, None]
        if value.shape != self.shape and np.broadcast_shapes(value.shape, self.shape) != self.shape:
            raise self.refuse(f"'{key}' of shape {value.shape}", f"the wire has shape {self.shape}")
        return np.array(value.ravel()[0]) if np.all(value == value.ravel()[0]) else value

    def decay(self, key: str) -> tuple[Array, Array]:
        """The decay of a time constant during dt and the gain `1 - decay` of what drives it."""
        tau = self.neuron(key)
        if np.any(tau <= 0):
            raise self.refuse(f"a time constant '{key}' of {tau.min()}", "it must be above zero")
        if self.discretisation == "nengo" and key == "tau_mem":
            left = np.exp(-self.dt / tau)
            left = np.where(left < FORGOTTEN, 0.0, left)
            return left, 1 - left
        if self.discretisation not in ("euler", "nengo"):
            decay = tidy(np.exp(-self.dt / tau))
            return decay, {"exact": tidy(-np.expm1(-self.dt / tau)), "sinabs": np.array(1.0), "rockpool": decay}[self.discretisation]
        gain = self.dt / tau
        if np.any(gain > 1 + TIGHT):
            raise self.refuse(
                f"'{key}' = {tau.min()} is shorter than the time step dt = {self.dt}", "tau >= dt", "State the dt of this file."
            )
        gain = np.minimum(gain, 1.0)
        return tidy(1 - gain), gain

    def scaled(self, wire: str, name: str, scale: Array, offset: Array | None = None) -> str:
        """`scale * wire + offset`, or the wire itself where that changes nothing."""
        scale = tidy(scale)
        if offset is not None and not np.any(offset):
            offset = None
        if np.all(scale == 1) and offset is None:
            return wire
        self.steps.append(S.Scale(name, (wire,), scale, offset))
        return name


def tidy(value: Array) -> Array:
    """Each value that lies within a few float64 roundings of a float32 number becomes that number."""
    value = np.asarray(value, np.float64)
    near = value.astype(np.float32).astype(np.float64)
    return np.where(np.abs(near - value) <= TIGHT * np.maximum(np.abs(value), 1e-3), near, value)


# --- neurons ---------------------------------------------------------------------------------------------------


def li(site: Site) -> None:
    """tau v' = (v_leak - v) + r I; the output is v."""
    decay, gain = site.decay("tau")
    wire = site.scaled(site.source, site.aux("in"), gain * site.neuron("r"), gain * site.neuron("v_leak"))
    site.steps.append(S.Integrator(site.name, (wire,), decay))


def integrator(site: Site) -> None:
    """v' = r I; the output is v."""
    wire = site.scaled(site.source, site.aux("in"), site.dt * site.neuron("r"))
    site.steps.append(S.Integrator(site.name, (wire,), np.array(1.0)))


def threshold(site: Site) -> None:
    """z = 1 where x > threshold."""
    site.steps.append(S.Threshold(site.name, (site.source,), site.neuron("threshold")))


def _fire(site: Site, wire: str, decay: Array) -> None:
    """v_t = decay v_{t-1} + wire; spike; v becomes v_reset where it spiked. A membrane that forgets everything needs no reset."""
    theta = site.neuron("v_threshold")
    if site.discretisation in DIALECTS:
        if np.any(decay > 1e-30):
            raise site.refuse("a membrane that remembers", f"in terms of {site.discretisation} only instant membranes are read")
        # they compute in float32, where `>= B` is `>` the number before B
        before = np.nextafter(theta.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
        site.steps.append(S.Threshold(site.name, (wire,), before))
    elif np.any(decay):
        reset = site.neuron("v_reset", 0.0)
        site.steps.append(S.LIF(site.name, (wire,), decay, theta, "value", reset_delay=False, reset_value=reset))
    else:
        site.steps.append(S.Threshold(site.name, (wire,), theta))


def lif(site: Site) -> None:
    """tau v' = (v_leak - v) + r I; z = 1[v > v_threshold]; v = v_reset where z."""
    decay, gain = site.decay("tau")
    name = site.aux("in") if np.any(decay) else site.aux("mem")
    wire = site.scaled(site.source, name, gain * site.neuron("r"), gain * site.neuron("v_leak"))
    _fire(site, wire, decay)


def if_(site: Site) -> None:
    """v' = r I; z = 1[v > v_threshold]; v = v_reset where z."""
    _fire(site, site.scaled(site.source, site.aux("in"), site.dt * site.neuron("r")), np.array(1.0))


def _current(site: Site, mem: str) -> tuple[str, Array]:
    """tau_syn I' = -I + w_in S, then what drives the membrane: (1 - decay_mem)(v_leak + r I). Returns its wire and decay_mem.

    A membrane that forgets everything is no state: its wire `mem` is then the integrator of the synapse itself.
    """
    syn, syn_gain = site.decay("tau_syn")
    decay, gain = site.decay("tau_mem")
    r, leak = site.neuron("r"), site.neuron("v_leak")
    if site.discretisation == "rockpool":
        wire = site.scaled(site.source, site.aux("in"), syn_gain)
        site.steps.append(S.Integrator(mem, (wire,), syn))
        return site.scaled(mem, site.aux("lift"), np.array(1.0), leak), decay
    drive, offset = gain * r, gain * leak
    if not np.any(syn):
        return site.scaled(
            site.source, site.aux("in") if np.any(decay) else mem, syn_gain * site.neuron("w_in", 1.0) * drive, offset
        ), decay
    plain = not np.any(decay) and not np.any(offset)
    wire = site.scaled(site.source, site.aux("in"), syn_gain * site.neuron("w_in", 1.0) * (drive if plain else 1.0))
    name = mem if plain else site.aux("syn")
    site.steps.append(S.Integrator(name, (wire,), syn))
    return (name if plain else site.scaled(name, mem if not np.any(decay) else site.aux("drive"), drive, offset)), decay


def cuba_li(site: Site) -> None:
    """tau_syn I' = -I + w_in S; tau_mem v' = (v_leak - v) + r I; the output is v."""
    wire, decay = _current(site, site.name)
    if wire != site.name:
        site.steps.append(S.Integrator(site.name, (wire,), decay))


def cuba_lif(site: Site) -> None:
    """As CubaLI, with z = 1[v > v_threshold] and v = v_reset where z."""
    wire, decay = _current(site, site.aux("mem"))
    _fire(site, wire, decay)


# --- maps ------------------------------------------------------------------------------------------------------


def affine(site: Site) -> None:
    """y = W x + b."""
    weight = site.array("weight")
    if weight.ndim != 2:
        raise site.refuse(f"a weight of shape {weight.shape}", "a matrix (out, in) is read")
    bias = site.array("bias") if site.node.kind == "Affine" else None
    if bias is not None and bias.shape != weight.shape[:1]:
        raise site.refuse(f"a bias of shape {bias.shape}", f"{weight.shape[:1]} is needed")
    site.steps.append(S.Affine(site.name, (site.source,), weight, bias))


def scale(site: Site) -> None:
    """y = s x."""
    site.steps.append(S.Scale(site.name, (site.source,), site.neuron("scale")))


def _pair(site: Site, key: str) -> tuple[int, int]:
    value = site.array(key).ravel()
    if value.size not in (1, 2) or np.any(value != np.floor(value)) or np.any(value < 0) or np.any(value > 1 << 20):
        raise site.refuse(f"'{key}' is {value.tolist()}", "one or two whole numbers are needed")
    return int(value[0]), int(value[-1])


def _padding(site: Site, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    value = site.raw("padding")
    if not isinstance(value, str):
        return _pair(site, "padding")
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if value == "valid":
        return (0, 0)
    if value != "same" or stride != (1, 1) or any(n % 2 for n in total):
        raise site.refuse(
            f"padding '{value}' under a window of {kernel}, stride {stride}", "whole numbers, 'valid', or 'same' with odd windows"
        )
    return total[0] // 2, total[1] // 2


def conv2d(site: Site) -> None:
    """A 2-D cross-correlation over (C, H, W), zeros outside."""
    weight, bias = site.array("weight"), site.array("bias")
    if weight.ndim != 4 or bias.shape != weight.shape[:1]:
        raise site.refuse(f"weight {weight.shape}, bias {bias.shape}", "(out, in, kH, kW) and (out,) are needed")
    stride, dilation = _pair(site, "stride"), _pair(site, "dilation")
    kernel = (weight.shape[2], weight.shape[3])
    padding = _padding(site, kernel, stride, dilation)
    groups = int(site.array("groups"))
    site.steps.append(S.Conv2d(site.name, (site.source,), weight, bias, stride, padding, dilation, groups))


def sum_pool(site: Site) -> None:
    """The sum over windows."""
    site.steps.append(S.SumPool2d(site.name, (site.source,), _pair(site, "kernel_size"), _pair(site, "stride"), _pair(site, "padding")))


def avg_pool(site: Site) -> None:
    """The mean over windows, the zeros of the padding counted (as torch's default, and every importer's)."""
    kernel = _pair(site, "kernel_size")
    total = site.aux("sum")
    site.steps.append(S.SumPool2d(total, (site.source,), kernel, _pair(site, "stride"), _pair(site, "padding")))
    site.steps.append(S.Scale(site.name, (total,), np.array(1.0 / max(kernel[0] * kernel[1], 1))))


def flatten(site: Site) -> None:
    """Joins the axes start_dim to end_dim of the shape without batch; a start of 1 whose result nothing could read counts a batch axis."""
    rank = len(site.shape)
    first, last = (int(site.array(key, default)) for key, default in (("start_dim", 1.0), ("end_dim", -1.0)))
    last = last + rank if last < 0 else last
    first = first + rank if first < 0 else first
    if rank and not 0 <= first <= last < rank:
        raise site.refuse(f"axes {first} to {last} of the shape {site.shape}", "they must lie inside it")
    joined = int(np.prod(site.shape[first : last + 1], dtype=np.int64))
    site.steps.append(S.Reshape(site.name, (site.source,), (*site.shape[:first], joined, *site.shape[last + 1 :])))


def delay(site: Site) -> None:
    """y(t) = x(t - delay), a whole number of steps, the same for all."""
    count = np.unique(site.array("delay").astype(np.float64) / site.dt)
    whole = np.round(count)
    if np.any(np.abs(count - whole) > 1e-6 * np.maximum(whole, 1)) or len(np.unique(whole)) != 1 or whole[0] < 0:
        raise site.refuse(
            f"delays of {count.min():g} to {count.max():g} steps", "one whole number of steps for all is read", f"dt is {site.dt}."
        )
    if whole[0]:
        site.steps.append(S.Delay(site.name, (site.source,), int(whole[0])))


SPOKEN: Mapping[str, frozenset[str]] = {
    "sinabs": frozenset({"LI", "LIF", "Affine", "Linear", "Conv2d", "SumPool2d", "Flatten"}),
    "rockpool": frozenset({"CubaLIF", "Affine", "Linear", "Flatten"}),
    "nengo": frozenset({"CubaLIF", "Affine", "Linear", "Flatten"}),
}
"""The node kinds that the dialects have."""

NODES: Mapping[str, Callable[[Site], None]] = {
    "LI": li,
    "I": integrator,
    "IF": if_,
    "LIF": lif,
    "CubaLI": cuba_li,
    "CubaLIF": cuba_lif,
    "Threshold": threshold,
    "Affine": affine,
    "Linear": affine,
    "Scale": scale,
    "Conv2d": conv2d,
    "SumPool2d": sum_pool,
    "AvgPool2d": avg_pool,
    "Flatten": flatten,
    "Delay": delay,
}
"""Per node kind: what it computes. Input, Output and nested graphs are wiring and live in `nir_graph`."""
