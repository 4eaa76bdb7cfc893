"""Dense data: one array."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from spikedeploy.inputs import Model

Real = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """An array `(T, B, ...)`, or `(T, ...)` of one sample.

    where      what messages call it
    labels_of  reads the labels that came with it, None where there are none; a file's are read when they are wanted
    """

    array: Real
    where: str | os.PathLike[str] = "input"
    labels_of: Callable[[], Real | None] = lambda: None

    @property
    def example(self) -> Real:
        """What tells a model's shapes."""
        return self.array

    def dense(self, model: Model) -> Real:
        """With a batch axis."""
        single = self.array.ndim == 1 + len(model.input_shape) and self.array.shape[1:] == model.input_shape
        return self.array[:, None] if single else self.array

    def labels(self) -> Real | None:
        """`(B,)` class numbers, unchecked. Raises `BadInput` where they are unreadable."""
        return self.labels_of()
