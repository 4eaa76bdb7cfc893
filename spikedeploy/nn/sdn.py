"""The surrogate dynamic network: a small causal convolution that predicts the membrane of a LIF neuron with hard reset.

Reset makes the neuron nonlinear in time, so it cannot be trained as a convolution. With a decay as small as 0.125 the membrane depends
on the last few currents only, and three layers predict it (SpikingSSMs, arXiv 2408.14909, section "Surrogate Dynamic Network"):

    h = relu(conv1(x))          1 -> 8 channels, kernel 8, over x_{t-8} .. x_{t-1}; zeros before the first step
    h = relu(conv2(h) + h)      8 -> 8 channels, kernel 1
    tau * u_{t-1} = conv3(h)    8 -> 1 channel,  kernel 1

It is fitted once (`examples/fit_sdn.py`), frozen, used in training only, and dropped at deployment for the neuron that it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedeploy.errors import BadInput, message

NAMES = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias")


class SurrogateDynamicNetwork(nn.Module):
    """Predicts `tau * u_{t-1}`, what a LIF neuron with hard reset and threshold 1 remembers, from the currents before step t.

    x `(T, ...)`, result `(T, ...)`. `fitted` holds the lowest and highest current it was fitted on: outside, it extrapolates.
    The parameters take no gradient: the network is part of the neuron, not of the model.
    """

    fitted: Tensor

    def __init__(self, tau: float = 0.125, *, channels: int = 8, kernel: int = 8, fitted: tuple[float, float] = (-5.5, 5.5)) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, kernel)
        self.conv2 = nn.Conv1d(channels, channels, 1)
        self.conv3 = nn.Conv1d(channels, 1, 1)
        self.tau = float(tau)
        self.register_buffer("fitted", torch.tensor(fitted, dtype=torch.float32))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """`tau * u_{t-1}` at every step; x `(T, ...)`."""
        lanes = x.reshape(x.shape[0], -1).T.unsqueeze(1)
        past = F.pad(lanes, (self.conv1.kernel_size[0], 0))[..., :-1]
        h = F.relu(self.conv1(past))
        h = F.relu(self.conv2(h) + h)
        return self.conv3(h).squeeze(1).T.reshape(x.shape)

    @classmethod
    def shipped(cls, tau: float = 0.125) -> SurrogateDynamicNetwork:
        """The network that comes with the package. Raises `BadInput` where there is none for `tau`."""
        source = files("spikedeploy") / "data" / f"sdn_tau{tau:g}.npz"
        if not source.is_file():
            raise BadInput(
                message(
                    "SurrogateDynamicNetwork", f"none is shipped for tau {tau:g}", "tau 0.125 is", "Fit one: examples/fit_sdn.py --tau."
                )
            )
        return cls.load(source.read_bytes())

    @classmethod
    def load(cls, source: str | Path | bytes) -> SurrogateDynamicNetwork:
        """The network in an npz file that `save` wrote. Raises `BadInput` on anything else."""
        try:
            data = BytesIO(source) if isinstance(source, bytes) else source
            with np.load(data, allow_pickle=False) as arrays:
                tensors = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in NAMES}
                low, high = map(float, arrays["fitted"])
                return _built(tensors, float(arrays["tau"]), (low, high))
        except (OSError, ValueError, KeyError) as error:
            where = "SurrogateDynamicNetwork file" if isinstance(source, bytes) else str(source)
            raise BadInput(message(where, f"unreadable ({error})", f"an npz file with {', '.join(NAMES)}, tau, fitted is needed")) from None

    def save(self, path: str | Path) -> None:
        """Write the weights, tau and the fitted range to an npz file."""
        state = self.state_dict()
        arrays = {name: state[name].numpy().astype(np.float32) for name in NAMES}
        np.savez(path, tau=self.tau, fitted=self.fitted.numpy(), **arrays)

    @classmethod
    def from_published(
        cls, state_dict: Mapping[str, Tensor], tau: float = 0.125, fitted: tuple[float, float] = (-5.5, 5.5)
    ) -> SurrogateDynamicNetwork:
        """A network fitted by others, from its state_dict; names and prefixes as in `docs/spiking-ssm.md`.

        `fitted` is the range of the currents that it was fitted on: of N(0, 1), as published, 50 million draws stay within 5.5.
        Raises `BadInput` where a layer is missing or has another shape.
        """
        from spikedeploy.nn.published import sdn_tensors

        return _built(sdn_tensors(state_dict), tau, fitted)


def _built(tensors: Mapping[str, Tensor], tau: float, fitted: tuple[float, float]) -> SurrogateDynamicNetwork:
    channels, _, kernel = tensors["conv1.weight"].shape
    network = SurrogateDynamicNetwork(tau, channels=channels, kernel=kernel, fitted=fitted)
    network.load_state_dict({**network.state_dict(), **tensors})
    return network
