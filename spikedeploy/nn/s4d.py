"""S4D: a diagonal state-space layer, a convolution in training and a recurrence when it runs.

Per channel M = N/2 complex modes (the other half are their conjugates), held by zero-order hold:

    A = -exp(log_A_real) + i A_imag        Abar = exp(dt A)        Ctil = C (Abar - 1) / A        dt = exp(log_dt)

    step       h_t = Abar h_{t-1} + x_t            y_t = 2 Re sum_m Ctil_m h_{t,m} + D x_t
    parallel   K_l = 2 Re sum_m Ctil_m Abar_m^l    y = K * x + D x

Start (S4D-Lin, arXiv 2206.11893): A = -1/2 + i pi m, log dt ~ U[log dt_min, log dt_max], C ~ complex normal, D ~ N(0, 1).
"""

from __future__ import annotations

from math import ceil, log, pi, sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from spikedeploy.nn.ssm_scan import diagonal_scan, has_kernel

Form = Literal["fft", "scan"]


class Discrete(NamedTuple):
    """What one time step needs: complex `a`, `c (H, M)` and real `d (H,)`."""

    a: Tensor
    c: Tensor
    d: Tensor


class S4D(nn.Module):
    """The layer. x `(T, B, H)` -> y `(T, B, H)`.

    features  H, the channels; each has its own state space
    states    N, real states per channel: N/2 complex modes, so N is even
    form      how training computes y: "fft", the convolution; or "scan", the recurrence in a fused native kernel, several times faster
              on a CPU (where there is no kernel for the tensor: "fft"); both compute the same y and gradient to rounding

    Parameters `log_dt (H,)`, `log_A_real`, `A_imag (H, M)`, `C (H, M, 2)` (real and imaginary part), `D (H,)`. `trained_slowly` names
    those which the published recipe trains at a learning rate of at most 1e-3 and without weight decay.
    """

    trained_slowly = ("log_dt", "log_A_real", "A_imag")

    def __init__(self, features: int, states: int = 64, *, dt_min: float = 1e-3, dt_max: float = 1e-1, form: Form = "fft") -> None:
        super().__init__()
        if features < 1 or states < 2 or states % 2:
            raise ValueError(f"S4D: features {features}, states {states}; at least one channel and an even number of states are needed.")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"S4D: dt_min {dt_min}, dt_max {dt_max}; 0 < dt_min <= dt_max is needed.")
        if form not in ("fft", "scan"):
            raise ValueError(f"S4D: form '{form}'; 'fft' or 'scan' is needed.")
        modes = states // 2
        self.features, self.states, self.form = features, states, form
        self.log_dt = nn.Parameter(torch.rand(features) * (log(dt_max) - log(dt_min)) + log(dt_min))
        self.log_A_real = nn.Parameter(torch.full((features, modes), log(0.5)))
        self.A_imag = nn.Parameter((pi * torch.arange(modes, dtype=torch.get_default_dtype())).repeat(features, 1))
        self.C = nn.Parameter(torch.randn(features, modes, 2) * sqrt(0.5))
        self.D = nn.Parameter(torch.randn(features))

    def extra_repr(self) -> str:
        return f"{self.features}, states={self.states}, form={self.form!r}"

    def _exponent(self) -> tuple[Tensor, Tensor]:
        """`dt A` and `Ctil`, always in float64: a phase of many turns has no digits left in float32."""
        a = torch.complex(-self.log_A_real.double().exp(), self.A_imag.double())
        exponent = self.log_dt.double().exp()[:, None] * a
        c = torch.view_as_complex(self.C.double().contiguous())
        return exponent, c * torch.expm1(exponent) / a

    def discretised(self) -> Discrete:
        """The arrays of the recurrence, in float64."""
        exponent, c = self._exponent()
        return Discrete(exponent.exp(), c, self.D.double())

    def kernel(self, steps: int) -> Tensor:
        """`K (H, steps)`, without D.

        The powers of Abar are needed at two scales only, K_{iL+j} = 2 Re sum_m (Ctil Abar^{iL})_m (Abar^j)_m, a matrix product.
        """
        exponent, c = self._exponent()
        inner = max(1, ceil(sqrt(steps)))
        outer = ceil(steps / inner)
        left = 2 * c[..., None] * _powers(exponent * inner, outer)
        right = _powers(exponent, inner)
        blocks = _rows(left, self.D).transpose(1, 2) @ _rows(right.conj(), self.D)
        return blocks.reshape(self.features, -1)[:, :steps]

    def forward(self, x: Tensor, unit: Tensor | None = None) -> Tensor:
        """y `(T, B, H)` of x `(T, B, H)`, from state zero; divided by `unit (H,)` or `(1,)` when given, which costs nothing here."""
        if x.ndim != 3 or x.shape[2] != self.features or not len(x):
            raise ValueError(f"S4D: an input of shape {tuple(x.shape)}; (T, B, {self.features}) with at least one step is needed.")
        unit = self.D.new_ones(1) if unit is None else unit
        return self._scan(x, unit) if self.form == "scan" and has_kernel(x) else self._fft(x, unit)

    def _fft(self, x: Tensor, unit: Tensor) -> Tensor:
        steps, wide = len(x), x if x.dtype == torch.float64 else x.float()  # there is no transform of 16-bit numbers
        kernel = (self.kernel(steps) / unit[:, None]).to(wide.dtype)
        spectrum = torch.fft.rfft(kernel, n=2 * steps, dim=1).T.unsqueeze(1)
        y = torch.fft.irfft(torch.fft.rfft(wide, n=2 * steps, dim=0) * spectrum, n=2 * steps, dim=0)[:steps]
        return (y + self.D / unit * wide).to(x.dtype)

    def _scan(self, x: Tensor, unit: Tensor) -> Tensor:
        a, c, d = self.discretised()
        return diagonal_scan(x, a, 2 * c / unit[:, None], d / unit)

    def step(self, x: Tensor, state: Tensor | None = None, discrete: Discrete | None = None) -> tuple[Tensor, Tensor]:
        """One time step: x `(B, H)`, state complex `(B, H, M)` or None for zero -> y `(B, H)` and the next state.

        `discrete` spares the discretisation in a loop. Complex arithmetic in the precision of x.
        """
        a, c, d = discrete or self.discretised()
        kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        state = x.new_zeros((*x.shape, a.shape[1]), dtype=kind) if state is None else state
        state = a.to(kind) * state + x[..., None]
        return 2 * (c.to(kind) * state).real.sum(-1) + d.to(x.dtype) * x, state

    def rollout(self, x: Tensor) -> Tensor:
        """y `(T, B, H)` by the recurrence, step after step; what the deployed cell computes."""
        discrete, state, result = self.discretised(), None, []
        for current in x.unbind(0):
            y, state = self.step(current, state, discrete)
            result.append(y)
        return torch.stack(result)


def _powers(exponent: Tensor, count: int) -> Tensor:
    """`exp(exponent * j)` for j below `count`: `(..., count)`."""
    return (exponent[..., None] * torch.arange(count, device=exponent.device, dtype=torch.float64)).exp()


def _rows(modes: Tensor, like: Tensor) -> Tensor:
    """Complex `(H, M, L)` as real `(H, 2M, L)`: real parts, then imaginary; with a conjugate on one side a product of two is Re(a b)."""
    return torch.cat([modes.real, modes.imag], dim=1).to(like.dtype)
