"""Address events as they were recorded: steps, places as flat indices or as coordinates, and what is said of their frame."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.runtime.events_input import Events
from spikedeploy.steps import Shape

if TYPE_CHECKING:
    from spikedeploy.inputs import Model

Real = npt.NDArray[Any]
Whole = npt.NDArray[np.int64]
MAX_VALUES = 1 << 28
"""A dense array of as many float32 numbers takes a gigabyte."""
AXES = ("p", "y", "x")
"""What coordinates are called; a frame of fewer axes has the last of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Events of `batch` samples over `steps` steps; whole numbers from 0 on, checked by `files`.

    time    `(E,)` the step of each
    place   `index`: `(E,)` flat into the input; or some of `p`, `y`, `x`, `(E,)` each
    sample  `(E,)` place in the batch, None for sample 0
    value   `(E,)`, None for 1 each; values at one place and step add up
    shape   of a frame, None for the model's input shape
    """

    where: str | os.PathLike[str]
    time: Whole
    place: Mapping[str, Whole]
    steps: int
    batch: int = 1
    sample: Whole | None = None
    value: Real | None = None
    shape: Shape | None = None
    truth: Real | None = None

    @property
    def example(self) -> Real | None:
        """Zeros of the frame's shape, which tell a model's shapes; None where the frame is not described."""
        return None if self.shape is None else np.zeros((3, 2, *self.shape), np.float32)

    def labels(self) -> Real | None:
        """`(B,)` class numbers, unchecked."""
        return self.truth

    def events(self, model: Model) -> Events:
        """What the event-driven engine takes. Raises `BadInput` for places outside of the model's input."""
        if model.input_kind != "float":
            raise BadInput(message(f"{self.where}", "address events", "the model reads whole numbers (tokens)", "Give an array."))
        return Events(self._index(model.input_shape), self.time, self.steps, self.value, self.sample)

    def dense(self, model: Model) -> Real:
        """`(T, B, *shape)` float32: at every place the sum of its values, in the order of the file."""
        events, size = self.events(model), prod(model.input_shape)
        self.check_room(size, "of dense input are needed", "Use `run --engine events`, longer steps (--event-dt) or fewer samples.")
        x = np.zeros(self.steps * self.batch * size, np.float32)
        row = self.time * self.batch if self.sample is None else self.time * self.batch + self.sample
        with np.errstate(over="ignore"):
            np.add.at(x, row * size + events.index, np.float32(1) if self.value is None else self.value)
        if not np.isfinite(x).all():
            raise BadInput(message(f"{self.where}", "values at one place and step add up beyond float32", "finite sums are needed"))
        return x.reshape(self.steps, self.batch, *model.input_shape)

    def check_room(self, size: int, what: str, do: str) -> None:
        """Raises `BadInput` where `size` numbers for every step and sample are more than a machine holds."""
        if self.steps * self.batch * size > MAX_VALUES:
            found = f"{self.steps:,} steps of {self.batch:,} samples, {self.steps * self.batch * size:,} numbers"
            raise BadInput(message(f"{self.where}", f"{found} {what}", f"at most {MAX_VALUES:,} are used", do))

    def _index(self, needed: Shape) -> Whole:
        frame = needed if self.shape is None else self.shape
        if frame != needed and (prod(frame) != prod(needed) or len(needed) > 1 < len(frame)):
            raise BadInput(message(f"{self.where}", f"events of shape {frame}", f"the model takes {needed}"))
        if "index" in self.place:
            return self._inside("index", prod(needed))
        if not 1 <= len(frame) <= len(AXES):
            raise BadInput(message(f"{self.where}", f"coordinates in a frame of shape {frame}", "1 to 3 axes are needed", "Give 'index'."))
        names, index = AXES[-len(frame) :], np.zeros(len(self.time), np.int64)
        for name, length in zip(names, frame, strict=True):
            index = index * length + self._coordinate(name, length, frame)
        for name in self.place:
            if name not in names and len(np.unique(self.place[name])) > 1:
                do = "Say the shape of the frame in the file."
                raise BadInput(message(f"{self.where}", f"'{name}' takes several values", f"a frame of shape {frame} has no such axis", do))
        return index

    def _coordinate(self, name: str, length: int, frame: Shape) -> Whole | int:
        if name in self.place:
            return self._inside(name, length)
        if length == 1:
            return 0
        raise BadInput(message(f"{self.where}", f"no array '{name}'", f"a frame of shape {frame} needs {', '.join(AXES[-len(frame) :])}"))

    def _inside(self, name: str, length: int) -> Whole:
        values = self.place[name]
        if values.size and values.max() >= length:
            found = f"'{name}' goes up to {values.max()}"
            raise BadInput(message(f"{self.where}", found, f"it must lie in [0, {length}) for this model"))
        return values
