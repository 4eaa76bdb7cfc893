"""A model and its program, run on the same input and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import spikedeploy
from spikedeploy.probe import flatten
from spikedeploy.program import Program
from spikedeploy.runtime import reference

FLOATS = (np.float64, np.float32)


class Net(nn.Module):
    """A module whose forward is the function it is given."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def torch_outputs(model: nn.Module, x: Tensor) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [y.numpy() for y in flatten(model(x))]


def program_outputs(program: Program, x: Tensor, dtype: Any = np.float64) -> list[np.ndarray[Any, Any]]:
    return list(reference.run(program, x.numpy(), dtype=dtype).outputs.values())


def agree(model: nn.Module, x: Tensor, program: Program | None = None, tolerance: float = 2e-5) -> bool:
    """Whether program and model give the same, in both precisions: spikes differ by whole units, so a tolerance catches each."""
    program = program or spikedeploy.convert(model, x)
    expected = torch_outputs(model, x)
    for dtype in FLOATS:
        found = program_outputs(program, x, dtype)
        if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
            return False
        if any(not np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(found, expected, strict=True)):
            return False
    return True
