"""AssociativeLeaky's states by the reference, and its equations as a loop that autograd can follow."""

from __future__ import annotations

from typing import Any

import memory_layers
import numpy as np
import pytest
import torch
from memory_layers import read

from spikedeploy import steps as S
from spikedeploy.nn import AssociativeLeaky
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference

METHODS = memory_layers.ROUTES[AssociativeLeaky]
every_method = pytest.mark.parametrize("method", METHODS)


def weights(layer: torch.nn.Linear) -> tuple[Any, Any]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def reference_states(layer: AssociativeLeaky, x: torch.Tensor, start: torch.Tensor | None = None) -> np.ndarray:
    """S by the reference runtime in float64."""
    steps = (
        S.Affine("v", ("input",), *weights(layer.to_v)),
        S.Affine("k", ("input",), *weights(layer.to_k)),
        S.Affine("z", ("input",), *weights(layer.to_alpha)),
        S.Activation("alpha", ("z",), "sigmoid"),
        S.MatrixMemory("S", ("v", "k", "alpha")),
    )
    program = Program((layer.in_dim,), steps, (Output("S", "S"),))
    states = None if start is None else {"S": {"S": start.numpy()}}
    return reference.run(program, x.detach().numpy(), states=states).outputs["S"]


def loop(layer: AssociativeLeaky, x: torch.Tensor, state: torch.Tensor, spike: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations of the docstring, one step after the other; `layer` in float64."""
    outputs = []
    v, k, alpha = layer.to_v(x), layer.to_k(x), torch.sigmoid(layer.to_alpha(x))
    q = None if layer.to_q is None else layer.to_q(x)
    for t in range(len(x)):
        state = state * alpha[t][:, None, :] + v[t][:, :, None] * k[t][:, None, :]
        outputs.append(read(layer, state, None if q is None else q[t], spike, layer.graded_spikes_factor))
    return torch.stack(outputs), state


def make(d: int, n: int, m: int, **options: Any) -> AssociativeLeaky:
    layer: AssociativeLeaky = memory_layers.make(AssociativeLeaky, d, n, m, **options)
    return layer
