"""Gen2's matrix memory with a decay accumulator per column: what top-k sparsification saves in operations.

    S = Z Diag(c)      c <- c * alpha      Z[i, j] += v_i k_j / c_j   for v_i, k_j not zero

A column is multiplied out (`Z[:, j] *= c_j; c_j = 1`) before c_j gets small. A cell spikes while `Z[i, j] > threshold / c_j`; the right
side only grows between two writes, so a cell that is not written can only stop spiking: each column keeps its spiking cells in a heap,
smallest first, and a step looks at the top alone.

The numbers equal the eager form up to rounding; on a CPU the eager form is faster (a pass over a state in the first-level cache costs less
than the bookkeeping), so the engine runs that one, and this one counts.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import Program
from spikedeploy.runtime.events import EventEngine
from spikedeploy.runtime.reference import Real

SMALLEST = np.float32(2.0**-40)


@dataclass(slots=True)
class Operations:
    """Multiplications, divisions and comparisons, counted one by one; `eager` is what the plain recurrence needs for the same steps."""

    lazy: int = 0
    eager: int = 0

    @property
    def saved(self) -> float:
        """Share of the eager operations that the lazy form does not need."""
        return 1 - self.lazy / self.eager if self.eager else 0.0


@dataclass(slots=True, eq=False)
class LazyMemory:
    """One memory `(d, n)` with its spikes, batch 1. Needs alpha in [0, 1] and a threshold above 0: raises `ModelRefused` otherwise."""

    d: int
    n: int
    threshold: float
    z: Real = field(init=False)
    c: Real = field(init=False)
    heaps: list[list[tuple[float, int]]] = field(init=False)
    operations: Operations = field(default_factory=Operations)

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ModelRefused(
                message("lazy memory", f"a threshold of {self.threshold}", "a cell that only decays can only stop spiking above 0")
            )
        self.z, self.c = np.zeros((self.d, self.n), np.float32), np.ones(self.n, np.float32)
        self.heaps = [[] for _ in range(self.n)]

    @property
    def state(self) -> Real:
        """S `(d, n)`."""
        return self.z * self.c

    @property
    def spikes(self) -> npt.NDArray[np.bool_]:
        """Which cells spike, `(d, n)`; what is in a heap and still has its value."""
        fired = np.zeros((self.d, self.n), bool)
        for j, heap in enumerate(self.heaps):
            for value, i in heap:
                fired[i, j] |= value == self.z[i, j]
        return fired

    def step(self, v: Real, k: Real, alpha: Real) -> None:
        """One time step; v `(d,)`, k and alpha `(n,)`, zeros are skipped."""
        rows, columns = np.flatnonzero(v), np.flatnonzero(k)
        self.c = (self.c * alpha).astype(np.float32)
        for j in np.flatnonzero(self.c < SMALLEST):
            self._multiply_out(int(j))
        for j in columns:
            gain = k[j] / self.c[j]
            for i in rows:
                self.z[i, j] += v[i] * gain
            self._file(int(j), rows)
        for place in range(self.n):
            self._switch_off(place)
        self.operations.lazy += 2 * self.n + len(columns) * (2 + len(rows))
        self.operations.eager += 3 * self.d * self.n

    def _level(self, j: int) -> np.float32:
        return np.float32(np.float32(self.threshold) / self.c[j])

    def _multiply_out(self, j: int) -> None:
        self.z[:, j] *= self.c[j]
        self.c[j] = 1
        self.heaps[j] = [(float(value), i) for i, value in enumerate(self.z[:, j]) if value > self.threshold]
        heapq.heapify(self.heaps[j])
        self.operations.lazy += 2 * self.d

    def _file(self, j: int, rows: npt.NDArray[np.intp]) -> None:
        """Written cells that spike enter the heap; an older entry of the same cell no longer has its value."""
        level = self._level(j)
        for i in rows:
            if self.z[i, j] > level:
                heapq.heappush(self.heaps[j], (float(self.z[i, j]), int(i)))
                self.operations.lazy += max(1, len(self.heaps[j]).bit_length())
        self.operations.lazy += len(rows)

    def _switch_off(self, j: int) -> None:
        heap, level = self.heaps[j], self._level(j)
        while heap and (heap[0][0] <= level or heap[0][0] != self.z[heap[0][1], j]):
            heapq.heappop(heap)
            self.operations.lazy += max(1, len(heap).bit_length())


def savings(program: Program, x: npt.ArrayLike) -> dict[str, Operations]:
    """Per matrix memory with a threshold on it: operations of the lazy and of the eager form on `x (T, 1, *input_shape)`, sample 0."""
    memories = [step for step in program.steps if isinstance(step, S.MatrixMemory)]
    run = EventEngine(program, np.shape(x)[1]).run(x, record=[wire for step in memories for wire in step.inputs])
    found = {}
    for step in memories:
        reader = next((s for s in program.readers(step.name) if isinstance(s, S.Threshold)), None)
        d, n = program.wires[step.name]
        lazy = LazyMemory(d, n, 1.0 if reader is None else float(np.max(reader.threshold)))
        for v, k, alpha in zip(*(run.wires[wire][:, 0] for wire in step.inputs), strict=True):
            lazy.step(v, k, alpha)
        found[step.name] = lazy.operations
    return found
