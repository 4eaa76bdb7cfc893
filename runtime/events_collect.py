"""What the engine keeps of a sequence: a wire over all its steps, or one reduction of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from spikedeploy.runtime.reference import Real


class Collect:
    """One output or recorded wire over time, reduced as it comes: sums run in time order, so chunks do not change them."""

    def __init__(self, reduce: str, steps: int) -> None:
        self.reduce, self.steps, self.done = reduce, steps, 0
        self.value: Any = None

    @property
    def code(self) -> int:
        """The reduction as `sd_kept` has it."""
        return {"none": 0, "sum": 1, "mean": 1, "last": 2, "max": 3}[self.reduce]

    def reserve(self, shape: tuple[int, ...]) -> None:
        """Memory for the compiled engine to write to."""
        self.value = np.zeros(shape if self.code else (self.steps, *shape), np.float32)

    def add(self, y: Real) -> None:
        if self.reduce == "none":
            if self.value is None:
                self.value = np.empty((self.steps, *y.shape[1:]), np.float32)
            self.value[self.done : self.done + len(y)] = y
        elif self.reduce == "last":
            self.value = y[-1].copy()
        elif self.reduce == "max":
            self.value = y.max(axis=0) if self.value is None else np.maximum(self.value, y.max(axis=0))
        else:
            start = np.zeros_like(y[0]) if self.value is None else self.value
            self.value = np.add.accumulate(np.concatenate([start[None], y]), axis=0, dtype=np.float32)[-1]
        self.done += len(y)

    @property
    def result(self) -> Real:
        if self.reduce == "mean":
            return self.value / np.float32(self.steps)
        return self.value + np.float32(0) if self.reduce == "max" else self.value  # the sign of a zero maximum is nobody's
