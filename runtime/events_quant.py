"""Integer weights: per output channel one float32 scale, symmetric, rounded to nearest even.

    q[c] = clip(rint(W[c] / scale[c]), -limit, limit)      scale[c] = max |W[c]| / limit      limit = 127 (int8) or 32767 (int16)

On a wire of spikes with one amplitude a, and on any other wire in a step whose nonzero inputs are all a = 1, the engine adds q exactly in
int32 and computes `fl(fl(sum * fl(scale * a)) + bias)`; elsewhere (real values) it adds `fl(q * scale)` in float32. So only program and
input decide which, never the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import Program

Weights = Literal["float32", "int8", "int16"]
LIMITS = {"int8": 127, "int16": 32767}


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """`q` in the shape of the weight, int8 or int16; `scale (out,)` float32."""

    q: S.Array
    scale: S.Array

    @property
    def weight(self) -> S.Array:
        """What the integers stand for, float32."""
        scale = self.scale.reshape(-1, *(1,) * (self.q.ndim - 1))
        return self.q.astype(np.float32) * scale


def quantise(weight: S.Array, weights: Weights) -> Quantised:
    """Symmetric integers per output channel, the first axis."""
    limit = LIMITS[weights]
    flat = weight.reshape(len(weight), -1).astype(np.float32)
    scale = np.abs(flat).max(axis=1, initial=0) / np.float32(limit)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1)).astype(np.float32)
    q = np.clip(np.rint(flat / scale[:, None]), -limit, limit).astype(weights)
    return Quantised(q.reshape(weight.shape), scale)


def quantise_program(program: Program, weights: Weights) -> tuple[Program, dict[str, Quantised]]:
    """The program whose weights are what the integers stand for, and the integers by step name. Raises `ModelRefused` where int32 could
    overflow."""
    if weights == "float32":
        return program, {}
    found: dict[str, Quantised] = {}
    for index, step in enumerate(program.steps):
        if isinstance(step, S.Affine | S.Conv2d):
            fan_in = int(np.prod(step.weight.shape[1:]))
            if fan_in * LIMITS[weights] >= 2**31:
                raise ModelRefused(message(program.where(index), f"a fan-in of {fan_in}", f"{weights} sums must fit in 32 bits"))
            found[step.name] = quantise(step.weight, weights)
    steps = tuple(replace(s, weight=found[s.name].weight) if isinstance(s, S.Affine | S.Conv2d) else s for s in program.steps)
    return replace(program, steps=steps), found
