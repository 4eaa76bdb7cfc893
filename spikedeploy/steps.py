"""The vocabulary: every kind of step that a program can be made of.

A step says what happens to its input wires during ONE time step. It holds plain data only; what it computes
is written once, in NumPy, in `spikedeploy.runtime.reference`, and nowhere else as a specification. Shapes in the
docstrings leave out the batch axis: a wire of shape `(C,)` is an array `(B, C)` in every runtime.

Each step writes one wire, named like the step. A neuron is therefore several steps: an `Integrator` (the membrane) followed
by a `Threshold` (the spike); only where reset couples the two are they one step (`LIF`, two wires).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def frozen_array(value: npt.ArrayLike) -> Array:
    """A read-only C-ordered copy."""
    array = np.array(value, order="C", copy=True)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Base of all steps: `name` is also the name of the wire it writes; `inputs` are wire names in order."""

    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (np.ndarray, np.generic)):
                object.__setattr__(self, item.name, frozen_array(value))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The wires that this step writes; the first is the step's own name."""
        return (self.name,)


# --- linear maps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Affine(Step):
    """`y = W x + b` over the last axis. weight `(out, in)`, bias `(out,)` or None; x `(..., in)`, y `(..., out)`."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conv2d(Step):
    """2-D cross-correlation, as torch's. x `(C, H, W)`, weight `(O, C/groups, kH, kW)`, bias `(O,)` or None; zeros outside."""

    weight: Array
    bias: Array | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class SumPool2d(Step):
    """Sum over windows. x `(C, H, W)`; zeros outside; partial windows are dropped (floor mode). An average is this and a Scale."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Scale(Step):
    """`y = scale * x + offset`, elementwise; scale and offset broadcast to the wire's shape."""

    scale: Array
    offset: Array | None = None


# --- wiring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reshape(Step):
    """The same values in another shape (row-major)."""

    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Slice(Step):
    """`y = x[..., start:stop]` over the last axis."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Add(Step):
    """The sum of all inputs, in order, shapes broadcast."""


@dataclass(frozen=True, slots=True, eq=False)
class Mul(Step):
    """The product of two inputs, elementwise, shapes broadcast."""


@dataclass(frozen=True, slots=True, eq=False)
class MatMul(Step):
    """`y = A B`. A `(d, n)`, B `(n, m)`, y `(d, m)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Delay(Step):
    """`y_t = x_{t-steps}`, zero before. State `line (steps, *shape)`, `line[0]` the oldest."""

    steps: int


# --- elementwise and row functions -----------------------------------------------------------------------------

Function = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "exp"]


@dataclass(frozen=True, slots=True, eq=False)
class Activation(Step):
    """An elementwise function by name; `gelu` is the exact one (erf), `gelu_tanh` the approximation."""

    function: Function


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm(Step):
    """`y = (x - mean) / sqrt(var + eps) * weight + bias` over the last axis (biased variance). weight, bias `(C,)` or None."""

    weight: Array | None
    bias: Array | None
    eps: float = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class L2Normalize(Step):
    """`y = x / max(|x|_2, eps)` over the last axis."""

    eps: float = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Embedding(Step):
    """`y = table[x]`. x is the model's input of whole numbers in `[0, rows)`, shape `()` or `(k,)`; table `(rows, C)`; y `(*x, C)`."""

    table: Array


@dataclass(frozen=True, slots=True, eq=False)
class TopK(Step):
    """Keep the `k` entries of largest magnitude over the last axis, zero the others; ties by lowest index."""

    k: int


@dataclass(frozen=True, slots=True, eq=False)
class Nearest(Step):
    """Each value becomes the nearest of sorted `levels (L,)`; an exact tie takes the lower (snnTorch's `state_quant`)."""

    levels: Array


# --- neurons ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Integrator(Step):
    """The leaky membrane without reset: `u_t = decay * u_{t-1} + x_t`. decay broadcasts to x; state `u`, zero at first."""

    decay: Array


@dataclass(frozen=True, slots=True, eq=False)
class Threshold(Step):
    """`s = amplitude * 1[x > threshold]`, or `>=` when `strict` is False. threshold, amplitude broadcast to x."""

    threshold: Array
    amplitude: Array = field(default_factory=lambda: np.array(1.0, np.float32))
    strict: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class LIF(Step):
    """Leaky integrate and fire WITH reset. Writes two wires: `name` (spikes) and `name.mem` (membrane). State `u`, zero at first.

    H(u) is `u > threshold` (`>=` when not strict). One step:

        r   = H(u_{t-1})                                     what still fires is reset now
        u   = decay * u_{t-1} + x_t - r * threshold          "subtract"
        u   = decay * (1 - r) * u_{t-1} + x_t                "zero"
        s_t = amplitude * H(u);   mem_t = u_t = u            reset_delay True (snnTorch's default: the reset acts one step later)

    With reset_delay False the same step ends with (snnTorch 1.0.0, "avoid double reset")

        q = H(u) - r;   u_t = u - q * threshold  or  u - q * u;   mem_t = u_t

    and `reset="value"` with reset_delay False is NIR's LIF: no r at all, `u_t = reset_value` where H(u), else u.
    """

    decay: Array
    threshold: Array
    reset: Literal["subtract", "zero", "value"]
    reset_delay: bool = True
    strict: bool = True
    amplitude: Array = field(default_factory=lambda: np.array(1.0, np.float32))
    reset_value: Array = field(default_factory=lambda: np.array(0.0, np.float32))

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}.mem")


Firing = Threshold | LIF
"""The steps that decide at a threshold."""


# --- matrix-state memories -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class MatrixMemory(Step):
    """Gen2's state: inputs v `(d,)`, k `(n,)`, alpha `(n,)`; y = S `(d, n)`; states zero at first.

    recurrence      S_t = S_{t-1} Diag(alpha_t) + v_t k_t^T
    snntorch-1.0.0  a_t = max(alpha_t, 1e-8);  l_t = l_{t-1} + log a_t;  p = exp(l_t);  g = p / (p + 1e-8)
                    S_t = S_{t-1} Diag(a_t) + v_t (k_t * g)^T            states S (d, n), log_p (n,)
    """

    semantics: Literal["recurrence", "snntorch-1.0.0"] = "recurrence"


@dataclass(frozen=True, slots=True, eq=False)
class DeltaMemory(Step):
    """Gen3's state: inputs v `(d,)`, k `(n,)`, alpha `(n,)`, beta `(1,)`; y = S `(d, n)`; zero at first.

    The read-out before the write is r = (S_{t-1} Diag(alpha_t)) k_t, and
    S_t = S_{t-1} Diag(alpha_t) + beta_t (v_t - r) k_t^T, which is S_{t-1} (Diag(alpha_t) (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T.
    """


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalSSM(Step):
    """S4D, one time step. x `(H,)`, y `(H,)`; complex state held as two real arrays `re`, `im (H, M)`, zero at first.

    h_t = A h_{t-1} + x_t (per mode);  y_t = 2 Re sum_m C_m h_{t,m} + D x_t.
    a_re, a_im, c_re, c_im `(H, M)`: the discretised A and C; d `(H,)`.
    """

    a_re: Array
    a_im: Array
    c_re: Array
    c_im: Array
    d: Array


KINDS: Mapping[str, type[Step]] = {
    kind.__name__: kind
    for kind in (
        Affine, Conv2d, SumPool2d, Scale, Reshape, Slice, Add, Mul, MatMul, Delay, Activation, LayerNorm, L2Normalize,
        Embedding, TopK, Nearest, Integrator, Threshold, LIF, MatrixMemory, DeltaMemory, DiagonalSSM,
    )
}  # fmt: skip
"""Every step kind by name: the order of the tables in shapes, reference runtime, exporters and engine."""
