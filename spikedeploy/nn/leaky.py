"""`Leaky` over a whole sequence `(T, B, C)`: drop-in for snnTorch 1.0.0's in constructor, parameter names and state_dict, both ways.

Not reproduced: the library silently goes on from the last call's membrane when shapes agree. Here every call starts from zero or
from `mem`; `init_hidden=True` goes on, as asked for, until `reset_mem()` (`snntorch.utils.reset` finds the library's own layers only).
"""

from __future__ import annotations

from torch import Tensor

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.neuron import Method, Neuron, Reset
from spikedeploy.nn.scan import Parameter, check_route, scan
from spikedeploy.nn.spiking import Output, Quantise, Spiking
from spikedeploy.nn.state_leaky import LinearLeaky, StateLeaky
from spikedeploy.nn.surrogate import Spike, Surrogate


class Leaky(Spiking):
    """Leaky integrate and fire over a whole sequence, with reset "subtract", "zero" or "none": bit for bit `snntorch.Leaky` in a loop.

        r_t = H(u_{t-1} - threshold)     u_t = beta*u_{t-1} + x_t - r_t*threshold   or   beta*(1 - r_t)*u_{t-1} + x_t

    Drop-in for `snntorch.Leaky` in constructor and state_dict; beta (clamped to [0, 1]) and threshold scalar or `(C,)`.
    `forward(x (T, B, ...), mem=None, return_state=False)` gives `(spk, mem)`, both `(T, B, ...)`, and with `return_state` the last
    membrane; spk alone when `init_hidden=True` and not `output`. Raises `BadInput` on other shapes. Source: snnTorch 1.0.0 `Leaky`.
    """

    beta: Tensor
    mem: Tensor | None

    def __init__(
        self,
        beta: Parameter,
        threshold: Parameter = 1.0,
        spike_grad: Surrogate | Spike | str | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: Reset = "subtract",
        state_quant: Quantise | bool = False,
        output: bool = False,
        graded_spikes_factor: Parameter = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        *,
        method: Method = "auto",
        batch_chunk: int | None = None,
    ) -> None:
        super().__init__(
            threshold, spike_grad, surrogate_disable, learn_threshold, reset_mechanism, state_quant, output, graded_spikes_factor,
            learn_graded_spikes_factor,
        )  # fmt: skip
        if inhibition:
            raise BadInput(message("Leaky", "inhibition=True", "lateral inhibition is not built in", "Use snntorch.Leaky."))
        self._learnable("beta", beta, learn_beta)
        self.init_hidden, self.inhibition, self.reset_delay = init_hidden, inhibition, reset_delay
        self.method: Method = method
        self.batch_chunk = batch_chunk
        self.register_buffer("mem", None, persistent=False)
        check_route(threshold, self._neuron(False), method, batch_chunk, self._quantise())

    def reset_mem(self) -> None:
        """Forget the state that `init_hidden=True` keeps between calls."""
        self.mem = None

    init_leaky = reset_mem

    def forward(self, input_: Tensor, mem: Tensor | None = None, return_state: bool = False) -> Output:
        if self.init_hidden and mem is not None:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")
        start = self.mem if self.init_hidden and self.mem is not None and self.mem.shape == input_.shape[1:] else mem
        spk, membranes, final = self._scan(input_, start, return_state or self.init_hidden)
        if self.init_hidden:
            self.mem = final
        assert spk is not None
        results = (spk,) if self.init_hidden and not self.output else (spk, membranes)
        if return_state and final is not None:
            return (*results, final)
        return results if len(results) > 1 else spk

    def _neuron(self, final: bool) -> Neuron:
        delay = self.reset_delay or self._reset == "none"
        return Neuron(self._reset, delay, clamped=True, surrogate=self.spike_grad, final=final)

    def _scan(self, x: Tensor, start: Tensor | None, final: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return scan(
            x, self.beta, self.threshold, self.graded_spikes_factor, start, self._neuron(final), self.method, self.batch_chunk,
            quantise=self._quantise(),
        )  # fmt: skip

    def step(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step `(B, ...)` of the same arithmetic: `(spk, mem)`."""
        spk, membranes, _ = self._scan(x[None], mem, False)
        assert spk is not None
        return spk[0], membranes[0]

    def extra_repr(self) -> str:
        return f"reset_mechanism={self._reset!r}, method={self.method!r}"


__all__ = ["Leaky", "LinearLeaky", "StateLeaky"]
