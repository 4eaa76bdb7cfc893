"""The engine's states, whatever their layout in memory, as arrays `(B, *shape)`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from spikedeploy.runtime.reference import Real, State
from spikedeploy.steps import Array, Shape


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """Rows `memory (B, width)`; element i of the flat state lies at `order[i]`, or at i."""

    memory: Array
    shape: Shape
    order: Array | None = None

    def read(self) -> Real:
        flat = self.memory[:, : prod(self.shape)].copy() if self.order is None else self.memory.take(self.order, axis=1)
        return flat.reshape(len(self.memory), *self.shape)

    def write(self, value: Real) -> None:
        self.memory[:, slice(0, prod(self.shape)) if self.order is None else self.order] = value.reshape(len(self.memory), -1)


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """A delay line `memory (steps, B, stride)` whose oldest entry is at `head[0]`; shape `(steps, *wire)`."""

    memory: Array
    shape: Shape
    head: Array

    def read(self) -> Real:
        lines = np.roll(self.memory, -int(self.head[0]), axis=0)[:, :, : int(np.prod(self.shape[1:]))]
        return np.ascontiguousarray(lines.swapaxes(0, 1)).reshape(-1, *self.shape)

    def write(self, value: Real) -> None:
        self.head[0] = 0
        flat = value.reshape(len(value), self.shape[0], -1)
        self.memory[:, :, : flat.shape[2]] = flat.swapaxes(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """A state that a NumPy function replaces."""

    store: State = field(repr=False)
    name: str = ""

    def read(self) -> Real:
        return self.store[self.name].copy()

    def write(self, value: Real) -> None:
        self.store[self.name] = np.array(value, np.float32)


Slot = Padded | Ring | Plain
