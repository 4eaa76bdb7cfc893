"""`StateLeaky` and `LinearLeaky` over a whole sequence `(T, B, C)`: drop-in for snnTorch 1.0.0's, state_dict both ways. Not reproduced:

- `state_dict()["beta"]` is written from tau at the time of saving. The library keeps the value of construction, and with `learn_beta`
  registers it as a parameter that never learns; it is no parameter here.
- The membrane has a float64 state and a float64 decay `exp(-1/tau)`; the library convolves with float32 powers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.neuron import Method, Neuron
from spikedeploy.nn.scan import Parameter, check_route, check_sequence, scan
from spikedeploy.nn.scan_loop import amplify, fire
from spikedeploy.nn.spiking import Output, Quantise, Spiking
from spikedeploy.nn.surrogate import Spike, Surrogate


class StateLeaky(Spiking):
    """Leaky membrane without reset: `u_t = exp(-1/tau) * u_{t-1} + x_t`, `s_t = g^2 * 1[u_t > threshold]`.

    Drop-in for `snntorch.StateLeaky`; `tau = 1/(1 - beta + 1e-12)` in steps, scalar or `(C,)`; the graded factor g acts twice, as there.

    kernel_truncation_steps  K: only the K latest inputs count, `u_t = sum_{j<K} exp(-j/tau) x_{t-j}`; the state is then the last
                             K - 1 inputs `(K - 1, B, C)`
    method                   route over time, see docs/training.md
    batch_chunk              batch items at a time on the torch routes

    `forward(x (T, B, C), state=None, return_state=False)` gives `(spk, mem)`, or `mem` when `output=False`, and then the
    state after the last step, float64: feed it back to continue bit for bit. Raises `BadInput` on other shapes. Source: snnTorch 1.0.0.
    """

    tau: Tensor

    def __init__(
        self,
        beta: Parameter,
        channels: int,
        threshold: Parameter = 1.0,
        spike_grad: Surrogate | Spike | str | None = None,
        surrogate_disable: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        state_quant: Quantise | bool = False,
        output: bool = True,
        graded_spikes_factor: Parameter = 1.0,
        learn_graded_spikes_factor: bool = False,
        kernel_truncation_steps: int | None = None,
        *,
        method: Method = "auto",
        batch_chunk: int | None = None,
    ) -> None:
        super().__init__(
            threshold, spike_grad, surrogate_disable, learn_threshold, "subtract", state_quant, output, graded_spikes_factor,
            learn_graded_spikes_factor,
        )  # fmt: skip
        beta = torch.as_tensor(beta)
        if beta.shape not in ((), (1,), (channels,)):
            raise BadInput(message("StateLeaky", f"beta of shape {tuple(beta.shape)}", f"one value or ({channels},) is needed"))
        if kernel_truncation_steps is not None and (not isinstance(kernel_truncation_steps, int) or kernel_truncation_steps < 1):
            found = f"kernel_truncation_steps {kernel_truncation_steps!r}"
            raise BadInput(message("StateLeaky", found, "at least 1 step, a whole number, or None is needed"))
        self._learnable("tau", 1 / (1 - beta + 1e-12), learn_beta)
        self.channels, self.kernel_truncation_steps = channels, kernel_truncation_steps
        self.method: Method = method
        self.batch_chunk = batch_chunk
        check_route(threshold, self._neuron(False, output), method, batch_chunk)

    @property
    def beta(self) -> Tensor:
        """`(tau - 1) / tau`: not the decay, which is `exp(-1/tau)`."""
        return (self.tau - 1) / self.tau

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "beta"] = self.beta.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "beta", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _neuron(self, final: bool, spikes: bool) -> Neuron:
        return Neuron("none", is_tau=True, wide_state=True, power=2, surrogate=self.spike_grad, spikes=spikes, final=final)

    def forward(self, input_: Tensor, state: Tensor | None = None, return_state: bool = False) -> Output:
        spikes = self.output and not self.state_quant
        if self.kernel_truncation_steps is not None:
            spk, mem, final = self._truncated(input_, state, return_state, self.kernel_truncation_steps)
        else:
            neuron = self._neuron(return_state, spikes)
            threshold, graded = (self.threshold, self.graded_spikes_factor) if spikes else (None, None)
            spk, mem, final = scan(input_, self.tau, threshold, graded, state, neuron, self.method, self.batch_chunk)
        return self._results(spk, mem, final)

    def _results(self, spk: Tensor | None, mem: Tensor, final: Tensor | None) -> Output:
        quantise = self._quantise()
        mem = mem if quantise is None else quantise(mem)
        if self.output and spk is None:
            seen = mem if quantise is None else quantise(mem)  # twice, as the library does
            neuron = self._neuron(False, True)
            spk = amplify(fire(seen, self.threshold, neuron), self.graded_spikes_factor, neuron)
        results = (spk, mem) if self.output and spk is not None else (mem,)
        if final is not None:
            return (*results, final)
        return results if len(results) > 1 else mem

    def _truncated(self, x: Tensor, state: Tensor | None, keep: bool, steps: int) -> tuple[None, Tensor, Tensor | None]:
        """`u_t = d u_{t-1} + x_t - d^K x_{t-K}` in float64, where the difference of the two terms keeps its digits."""
        check_sequence(x)
        if state is not None and state.shape != (steps - 1, *x.shape[1:]):
            needed = f"the {steps - 1} inputs before, {(steps - 1, *x.shape[1:])}, are needed"
            raise BadInput(message("StateLeaky with kernel_truncation_steps", f"a state of shape {tuple(state.shape)}", needed))
        before = x[:0] if state is None else state
        wide = torch.cat([before, x]).double()
        if steps < len(wide):
            tail = torch.exp(-steps / self.tau.double()) * wide[:-steps]
            wide = torch.cat([wide[:steps], wide[steps:] - tail])
        _, mem, _ = scan(wide, self.tau, None, None, None, self._neuron(False, False), self.method, self.batch_chunk)
        if not keep:
            return None, mem[len(before) :].to(x.dtype), None
        line = x.new_zeros(steps - 1, *x.shape[1:]) if state is None else state
        return None, mem[len(before) :].to(x.dtype), torch.cat([line, x])[len(x) :]

    def step(self, x: Tensor, state: Tensor | None = None) -> Output:
        """One time step `(B, C)` of the same arithmetic: `(spk, mem, state)`."""
        results = self(x[None], state, return_state=True)
        return (*(result[0] for result in results[:-1]), results[-1])

    def extra_repr(self) -> str:
        return f"channels={self.channels}, method={self.method!r}"


class LinearLeaky(StateLeaky):
    """A linear layer per time step and then `StateLeaky`: `x_t = W z_t + b`. Input `(T, B, in_features)`.

    Drop-in for `snntorch.LinearLeaky`. Source: snnTorch 1.0.0.
    """

    def __init__(
        self,
        beta: Parameter,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        threshold: Parameter = 1.0,
        spike_grad: Surrogate | Spike | str | None = None,
        surrogate_disable: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        state_quant: Quantise | bool = False,
        output: bool = True,
        graded_spikes_factor: Parameter = 1.0,
        learn_graded_spikes_factor: bool = False,
        kernel_truncation_steps: int | None = None,
        *,
        method: Method = "auto",
        batch_chunk: int | None = None,
    ) -> None:
        super().__init__(
            beta, out_features, threshold, spike_grad, surrogate_disable, learn_beta, learn_threshold, state_quant, output,
            graded_spikes_factor, learn_graded_spikes_factor, kernel_truncation_steps, method=method, batch_chunk=batch_chunk,
        )  # fmt: skip
        self.linear = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, input_: Tensor, state: Tensor | None = None, return_state: bool = False) -> Output:
        return super().forward(self.linear(input_), state, return_state)
