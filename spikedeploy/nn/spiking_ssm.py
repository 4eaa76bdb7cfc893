"""SpikingSSM: diagonal state-space layers that drive spiking neurons with hard reset (arXiv 2408.14909).

One block, on `(T, B, H)`:

    z = norm(x)                          layer or batch norm, before the block (prenorm) or after the residual
    I = S4D(z)                           a convolution in training, a recurrence when deployed
    s = LIF(I / threshold)               u' = tau*u + I, s = 1[u' >= 1], u = u' (1 - s)
    y = x + dropout(GLU(W dropout(s)))   W: H -> 2H

Causal only: a bidirectional model reads the future and cannot run step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedeploy.errors import ModelRefused, message
from spikedeploy.nn.hard_reset import hard_reset, triangle
from spikedeploy.nn.s4d import S4D, Form
from spikedeploy.nn.sdn import SurrogateDynamicNetwork

Reset = Literal["exact", "surrogate"]
Norm = Literal["layer", "batch", "none"]
Readout = Literal["mean", "last", "none"]


class TriangleSpike(torch.autograd.Function):
    """`1[x >= 0]` with the surrogate derivative `max(0, 1 - |x|)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * triangle(ctx.saved_tensors[0])


class SpikingLIF(nn.Module):
    """Leaky integrate and fire with hard reset, `>=`, and the triangle as surrogate gradient. x `(T, B, H)` -> spikes `(T, B, H)`.

        u'_t = tau*u_{t-1} + x_t / threshold        s_t = 1[u'_t >= 1]        u_t = u'_t (1 - s_t)

    features             H, for a threshold per channel; None where one is shared by all
    tau                  decay of the membrane, in (0, 1)
    threshold            where it starts, or stays when it is not learnable
    learnable_threshold  holds `ln_vth (H,)` or `(1,)`, threshold = exp(ln_vth)
    reset                "exact": the recurrence itself, by the native kernel or by verified chunks, the gradient by backpropagation through
                         time with the reset detached; "surrogate": spike = H(SDN(x) + x - 1), the gradient through x only
    sdn                  the surrogate network; the shipped one for tau when None
    """

    threshold: Tensor

    def __init__(
        self,
        features: int | None = None,
        *,
        tau: float = 0.125,
        threshold: float = 1.0,
        learnable_threshold: bool = False,
        reset: Reset = "exact",
        sdn: SurrogateDynamicNetwork | None = None,
    ) -> None:
        super().__init__()
        if not 0 < tau < 1:
            raise ValueError(f"SpikingLIF: tau {tau}; a decay between 0 and 1 is needed.")
        if not (threshold > 0 and isfinite(threshold)):
            raise ValueError(f"SpikingLIF: threshold {threshold}; a positive number is needed.")
        if reset not in ("exact", "surrogate"):
            raise ValueError(f"SpikingLIF: reset '{reset}'; 'exact' or 'surrogate' is needed.")
        self.features, self.tau, self.reset = features, tau, reset
        start = torch.full((features or 1,), float(threshold))
        if learnable_threshold:
            self.ln_vth = nn.Parameter(start.log())
        else:
            self.register_buffer("threshold", start)
        if sdn is not None and abs(sdn.tau - tau) > 1e-6:
            raise ValueError(
                f"SpikingLIF: tau {tau:g}, but the surrogate network stands for tau {sdn.tau:g}; one for the same tau is needed."
            )
        self.sdn = (sdn or SurrogateDynamicNetwork.shipped(tau)) if reset == "surrogate" else None

    def extra_repr(self) -> str:
        return f"{self.features}, tau={self.tau:g}, reset={self.reset!r}, learnable_threshold={'ln_vth' in self._parameters}"

    def thresholds(self) -> Tensor:
        """The threshold, `(H,)` or `(1,)`; it divides the current."""
        return self.ln_vth.exp() if "ln_vth" in self._parameters else self.threshold

    def forward(self, x: Tensor, scaled: bool = False) -> Tensor:
        """Spikes, 0 or 1, `(T, B, H)`; `scaled`: x is in units of the threshold already."""
        x = x if scaled else x / self.thresholds()
        if self.sdn is None:
            return hard_reset(x, self.tau)[0]
        with torch.no_grad():
            remembered = self.sdn(x)
        return TriangleSpike.apply(remembered + x - 1)

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the deployed neuron does, whatever `reset` is: spikes, and the membrane u' in the units of x."""
        vth = self.thresholds()
        spikes, membrane = hard_reset(x / vth, self.tau)
        return spikes, membrane * vth


class TiedDropout(nn.Module):
    """Dropout of whole channels: one mask `(B, H)` for all time steps, as the published model has it. x `(T, B, H)`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"TiedDropout: p {p}; a probability below 1 is needed.")
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p:g}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(torch.ones_like(x[0]), self.p)


class ChannelBatchNorm(nn.BatchNorm1d):
    """Batch norm over time and batch: x `(T, B, H)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


NORMS: Mapping[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": ChannelBatchNorm, "none": lambda features: nn.Identity()}


class SpikingSSMBlock(nn.Module):
    """Norm, S4D, neuron, pointwise map with gate, residual. x `(T, B, H)` -> `(T, B, H)`; the equations stand at the top of the file.

    features, states, form  as `S4D`;  tau, learnable_threshold, reset, sdn  as `SpikingLIF`
    shared_threshold        one threshold for all channels
    dropout                 after the neuron and after the gate, whole channels
    norm, prenorm           "layer", "batch" or "none"; before the block, or after the residual
    """

    def __init__(
        self,
        features: int,
        *,
        states: int = 64,
        dropout: float = 0.0,
        norm: Norm = "layer",
        prenorm: bool = True,
        tau: float = 0.125,
        threshold: float = 1.0,
        learnable_threshold: bool = True,
        shared_threshold: bool = False,
        reset: Reset = "exact",
        sdn: SurrogateDynamicNetwork | None = None,
        form: Form = "fft",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        refuse_bidirectional(bidirectional)
        if norm not in NORMS:
            raise ValueError(f"SpikingSSMBlock: norm '{norm}'; 'layer', 'batch' or 'none' is needed.")
        self.prenorm = prenorm
        self.norm = NORMS[norm](features)
        self.s4d = S4D(features, states, dt_min=dt_min, dt_max=dt_max, form=form)
        per_channel = None if shared_threshold else features
        self.neuron = SpikingLIF(per_channel, tau=tau, threshold=threshold, learnable_threshold=learnable_threshold, reset=reset, sdn=sdn)
        self.dropout = TiedDropout(dropout)
        self.mix = nn.Linear(features, 2 * features)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x) if self.prenorm else x
        spikes = self.neuron(self.s4d(z, self.neuron.thresholds()), scaled=True)
        x = x + self.dropout(F.glu(self.mix(self.dropout(spikes)), dim=-1))
        return x if self.prenorm else self.norm(x)


def refuse_bidirectional(bidirectional: bool) -> None:
    """Raise `ModelRefused`: the backward half of a bidirectional layer needs the end of the sequence first."""
    if bidirectional:
        raise ModelRefused(
            message(
                "SpikingSSM",
                "it is bidirectional: its kernel reads the future",
                "a causal model is needed to run step by step",
                "Train with bidirectional=False.",
            )
        )


class SpikingSSM(nn.Module):
    """Encoder, blocks, readout. x `(T, B, in_features)`, or `(T, B)` whole numbers with `vocabulary` -> `(B, out_features)`.

    in_features   channels of the input; None for none of them: with `vocabulary` an embedding, else x is `(T, B, features)` already
    out_features  results per sequence; None returns the features
    features      H, the width; layers: how many blocks
    readout       "mean" or "last" over time, then the decoder; "none" keeps time: `(T, B, out_features)`
    others        as `SpikingSSMBlock`

    `config` holds the arguments as plain data. Raises `ModelRefused` for `bidirectional=True`, `ValueError` for arguments out of range.
    """

    def __init__(
        self,
        in_features: int | None,
        out_features: int | None,
        *,
        features: int = 128,
        layers: int = 2,
        readout: Readout = "mean",
        vocabulary: int | None = None,
        bidirectional: bool = False,
        sdn: SurrogateDynamicNetwork | None = None,
        **block: Any,
    ) -> None:
        super().__init__()
        refuse_bidirectional(bidirectional)
        if readout not in ("mean", "last", "none"):
            raise ValueError(f"SpikingSSM: readout '{readout}'; 'mean', 'last' or 'none' is needed.")
        if layers < 1 or features < 1:
            raise ValueError(f"SpikingSSM: {layers} layers of {features} features; at least one of each is needed.")
        if in_features is not None and vocabulary is not None:
            raise ValueError("SpikingSSM: both in_features and vocabulary are given; the input is either channels or tokens.")
        self.config: dict[str, Any] = {"in_features": in_features, "out_features": out_features, "features": features, "layers": layers}
        self.config |= {"readout": readout, "vocabulary": vocabulary, **block}
        self.in_features, self.out_features, self.features, self.vocabulary = in_features, out_features, features, vocabulary
        self.readout: Readout = readout
        self.encoder = _encoder(in_features, vocabulary, features)
        self.blocks = nn.ModuleList(SpikingSSMBlock(features, sdn=sdn, **block) for _ in range(layers))
        self.decoder = nn.Identity() if out_features is None else nn.Linear(features, out_features)

    def hidden(self, x: Tensor) -> Tensor:
        """The features before the readout, `(T, B, H)`."""
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x)
        y = y.mean(0) if self.readout == "mean" else y[-1] if self.readout == "last" else y
        return self.decoder(y)


def _encoder(in_features: int | None, vocabulary: int | None, features: int) -> nn.Module:
    if vocabulary is not None:
        return nn.Embedding(vocabulary, features)
    return nn.Identity() if in_features is None else nn.Linear(in_features, features)
