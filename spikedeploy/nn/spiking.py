"""What all spiking layers here register, and how: the parameters, buffers and state_dict keys of snnTorch 1.0.0's `SpikingNeuron`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.neuron import Reset
from spikedeploy.nn.scan import Parameter
from spikedeploy.nn.surrogate import Spike, Surrogate, recognise

RESET_CODES: dict[Reset, int] = {"subtract": 0, "zero": 1, "none": 2}
"""The library's `reset_dict`: the value of `reset_mechanism_val`."""

CODES_RESET: dict[int, Reset] = {code: reset for reset, code in RESET_CODES.items()}

Quantise = Callable[[Tensor], Tensor]
Output = Tensor | tuple[Tensor, ...]


class Spiking(nn.Module):
    """Threshold, graded factor, reset code and surrogate, registered as the library registers them."""

    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    state_quant: Quantise | bool

    def __init__(
        self,
        threshold: Parameter,
        spike_grad: Surrogate | Spike | str | None,
        surrogate_disable: bool,
        learn_threshold: bool,
        reset_mechanism: Reset,
        state_quant: Quantise | bool,
        output: bool,
        graded_spikes_factor: Parameter,
        learn_graded_spikes_factor: bool,
    ) -> None:
        super().__init__()
        self._check_reset(reset_mechanism)
        if state_quant and not callable(state_quant):
            raise BadInput(message(type(self).__name__, f"state_quant {state_quant!r}", "a function of the state, or False, is needed"))
        self.spike_grad = Surrogate("zero") if surrogate_disable else recognise(spike_grad)
        self.surrogate_disable, self.state_quant, self.output = surrogate_disable, state_quant, output
        self._learnable("threshold", threshold, learn_threshold)
        self._learnable("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.tensor(RESET_CODES[reset_mechanism]))
        self._reset: Reset = reset_mechanism

    def _learnable(self, name: str, value: Parameter, learn: bool) -> None:
        tensor = torch.as_tensor(value)
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        if learn:
            self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        else:
            self.register_buffer(name, tensor)

    def _check_reset(self, reset: str) -> None:
        if reset not in RESET_CODES:
            found = f"reset_mechanism {reset!r}"
            raise BadInput(message(type(self).__name__, found, f"one of {', '.join(RESET_CODES)} is needed"))

    @property
    def reset_mechanism(self) -> Reset:
        """One of "subtract", "zero" and "none"; follows `reset_mechanism_val` when a state_dict is loaded."""
        return self._reset

    @reset_mechanism.setter
    def reset_mechanism(self, reset: Reset) -> None:
        self._check_reset(reset)
        self.reset_mechanism_val.fill_(RESET_CODES[reset])
        self._reset = reset

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        code = int(self.reset_mechanism_val)
        if code not in CODES_RESET:
            raise BadInput(message(type(self).__name__, f"a checkpoint with reset_mechanism_val {code}", "0, 1 or 2 is needed"))
        self._reset = CODES_RESET[code]

    def _quantise(self) -> Quantise | None:
        quantise = self.state_quant
        return (lambda u: quantise(u).to(u.dtype)) if callable(quantise) else None
