"""Diagonal state-space layers and the neuron that they drive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from spikedeploy import steps as S
from spikedeploy.lower.arithmetic import glu
from spikedeploy.lower.builder import Call, Wire, to_array
from spikedeploy.lower.maps import channel_batch_norm, layer_norm, linear
from spikedeploy.lower.neurons import along, sequence
from spikedeploy.lower.wiring import keep
from spikedeploy.nn import spiking_ssm


def _alone(call: Call) -> Wire:
    """The input; a scale that goes along with it belongs to the inside of a block."""
    if len(call.args) > 1 or call.kwargs:
        raise call.refuse(
            "it is called with more than its input", "one input is needed", "Use SpikingSSMBlock, or leave the units to the neuron."
        )
    return call.wire()


def s4d(call: Call, module: Any) -> Wire:
    """`S4D` -> `DiagonalSSM`: the kernel becomes its recurrence, complex numbers as two real arrays, discretised in float64."""
    x = sequence(call, _alone(call))
    found = module.discretised()
    a, c = found.a.detach().cpu().numpy(), found.c.detach().cpu().numpy()
    step = S.DiagonalSSM(call.name, (x.name,), a.real, a.imag, c.real, c.imag, to_array(found.d))
    return call.like(x, call.emit(step))


def spiking_lif(call: Call, module: Any) -> Wire:
    """`SpikingLIF` -> `LIF` with hard reset and `>=`: the surrogate network is gone, the threshold is that of the current as it comes."""
    x = sequence(call, _alone(call))
    threshold = along(call, x, to_array(module.thresholds()))
    if not np.all(threshold > 0):
        raise call.refuse(f"a threshold of {threshold.min():g}", "every threshold must be positive")
    call.emit(S.LIF(call.name, (x.name,), np.array(float(module.tau)), threshold, "zero", strict=False))
    return call.like(x, call.name)


NORMS: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.LayerNorm: layer_norm,
    spiking_ssm.ChannelBatchNorm: channel_batch_norm,
    nn.Identity: keep,
}


def spiking_block(call: Call, module: Any) -> Any:
    """`SpikingSSMBlock`: its parts under their own paths, the residual `<path>` (`<path>.sum` where the norm comes last)."""

    def part(name: str, value: Any) -> Call:
        origin = type(getattr(module, name)).__name__ if name != "gate" else "GLU"
        return Call(call.builder, f"{call.name}.{name}", call.where, origin, (value,), {}, call.result)

    x = sequence(call, call.wire())
    norm = NORMS[type(module.norm)]
    z = norm(part("norm", x), module.norm) if module.prenorm else x
    spikes = spiking_lif(part("neuron", s4d(part("s4d", z), module.s4d)), module.neuron)
    gated = glu(part("gate", linear(part("mix", spikes), module.mix)))
    total = call.like(x, call.emit(S.Add(call.name if module.prenorm else f"{call.name}.sum", (x.name, gated.name))))
    return total if module.prenorm else norm(part("norm", total), module.norm)
