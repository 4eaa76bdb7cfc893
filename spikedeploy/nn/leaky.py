"""Drop-in replacements for snnTorch's `StateLeaky`, `LinearLeaky` and `Leaky` that run a whole sequence `(T, B, C)` at once.

Constructor, parameter names and state_dict are snnTorch 1.0.0's, both ways. Where the library's behaviour is not reproduced it says so here:

- `StateLeaky.state_dict()["beta"]` is written from tau at the time of saving (the library keeps the value of construction, and with
  `learn_beta` registers it as a parameter that never learns); it is not a parameter here.
- The membrane of `StateLeaky` has a float64 state and a float64 decay `exp(-1/tau)`; the library convolves with float32 powers.
- `Leaky` starts every call from zero, or from `mem`; the library silently goes on from the last call when shapes agree. `init_hidden=True`
  goes on here too, as asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import BadInput, message
from spikedeploy.nn.neuron import Method, Neuron, Reset
from spikedeploy.nn.scan import Parameter, leaky_scan, scan
from spikedeploy.nn.scan_loop import amplify, fire, iterate
from spikedeploy.nn.surrogate import Spike, Surrogate, recognise

RESET_CODES: dict[str, int] = {"subtract": 0, "zero": 1, "none": 2}
"""The library's `reset_dict`: the value of `reset_mechanism_val`."""

Quantise = Callable[[Tensor], Tensor]
Output = Tensor | tuple[Tensor, ...]


class _Spiking(nn.Module):
    """Threshold, graded factor, reset code and surrogate, registered as the library registers them."""

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
        if reset_mechanism not in RESET_CODES:
            found = f"reset_mechanism {reset_mechanism!r}"
            raise BadInput(message(type(self).__name__, found, f"one of {', '.join(RESET_CODES)} is needed"))
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
        self.__dict__.setdefault("_fixed", {})[name] = not learn

    @property
    def reset_mechanism(self) -> Reset:
        """ "subtract", "zero" or "none"; follows `reset_mechanism_val` when a state_dict is loaded."""
        return self._reset

    @reset_mechanism.setter
    def reset_mechanism(self, reset: Reset) -> None:
        self.reset_mechanism_val.fill_(RESET_CODES[reset])
        self._reset = reset

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reset = list(RESET_CODES)[int(self.reset_mechanism_val)]  # type: ignore[assignment]

    def _quantise(self) -> Quantise | None:
        return self.state_quant if callable(self.state_quant) else None


class StateLeaky(_Spiking):
    """Leaky membrane without reset: `u_t = exp(-1/tau) * u_{t-1} + x_t`, `s_t = g^2 * 1[u_t > threshold]`.

    Drop-in for `snntorch.StateLeaky`; `tau = 1/(1 - beta + 1e-12)` in steps, scalar or `(C,)`; the graded factor g acts twice, as in the library.

    kernel_truncation_steps  K: only the K latest inputs count, `u_t = sum_{j<K} exp(-j/tau) x_{t-j}`
    method                   route over time, see docs/training.md
    batch_chunk              batch items at a time on the torch routes

    `forward(x (T, B, C), state=None, return_state=False)` gives `(spk, mem)`, or `mem` when `output=False`, and then the state after the last
    step, float64: feed it back to continue bit for bit. Raises `BadInput` on other shapes. Source: snnTorch 1.0.0 `StateLeaky`.
    """

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
        if kernel_truncation_steps is not None and kernel_truncation_steps < 1:
            raise BadInput(message("StateLeaky", f"kernel_truncation_steps {kernel_truncation_steps}", "at least 1 is needed"))
        self._learnable("tau", 1 / (1 - beta + 1e-12), learn_beta)
        self.channels, self.kernel_truncation_steps = channels, kernel_truncation_steps
        self.method: Method = method
        self.batch_chunk = batch_chunk

    @property
    def beta(self) -> Tensor:
        """`(tau - 1) / tau`: not the decay, which is `exp(-1/tau)`."""
        return (self.tau - 1) / self.tau

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "beta"] = self.beta.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:  # type: ignore[override]
        state_dict.pop(prefix + "beta", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _neuron(self, final: bool, spikes: bool) -> Neuron:
        return Neuron("none", True, True, True, True, 2, self.spike_grad, spikes, final)

    def forward(self, input_: Tensor, state: Tensor | None = None, return_state: bool = False) -> Output:
        spikes = self.output and not self.state_quant
        if self.kernel_truncation_steps is not None and self.kernel_truncation_steps < len(input_):
            spk, mem, final = self._truncated(input_, state, return_state)
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

    def _truncated(self, x: Tensor, state: Tensor | None, return_state: bool) -> tuple[None, Tensor, Tensor | None]:
        """`u_t = d u_{t-1} + x_t - d^K x_{t-K}` in float64, where the difference of the two terms keeps its digits."""
        if state is not None or return_state:
            raise BadInput(
                message("StateLeaky", "a state with kernel_truncation_steps", "the state of a truncated kernel is its last K inputs",
                        "Give the K - 1 inputs before instead.")
            )  # fmt: skip
        steps = self.kernel_truncation_steps
        wide = x.double()
        tail = torch.exp(-(steps or 0) / self.tau.double()) * wide[:-steps]
        wide = torch.cat([wide[:steps], wide[steps:] - tail])
        _, mem, _ = scan(wide, self.tau, None, None, None, self._neuron(False, False), self.method, self.batch_chunk)
        return None, mem.to(x.dtype), None

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


class Leaky(_Spiking):
    """Leaky integrate and fire over a whole sequence, with reset "subtract", "zero" or "none": bit for bit `snntorch.Leaky` in a loop.

        r_t = H(u_{t-1} - threshold)     u_t = beta*u_{t-1} + x_t - r_t*threshold   or   beta*(1 - r_t)*u_{t-1} + x_t

    Drop-in for `snntorch.Leaky` in constructor and state_dict; beta (clamped to [0, 1]) and threshold scalar or `(C,)`.
    `forward(x (T, B, ...), mem=None, return_state=False)` gives `(spk, mem)`, both `(T, B, ...)`, and with `return_state` the last membrane;
    spk alone when `init_hidden=True` and not `output`. Raises `BadInput` on other shapes. Source: snnTorch 1.0.0 `Leaky`.
    """

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
            raise BadInput(
                message("Leaky", "inhibition=True", "lateral inhibition is not parallel over the sequence", "Use snntorch.Leaky.")
            )
        self._learnable("beta", beta, learn_beta)
        self.init_hidden, self.inhibition, self.reset_delay = init_hidden, inhibition, reset_delay
        self.method: Method = method
        self.batch_chunk = batch_chunk
        self.mem: Tensor | None = None

    def reset_mem(self) -> None:
        """Forget the state that `init_hidden=True` keeps between calls."""
        self.mem = None

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

    def _scan(self, x: Tensor, start: Tensor | None, final: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
        delay = self.reset_delay or self._reset == "none"
        neuron = Neuron(self._reset, delay, True, False, False, 1, self.spike_grad, True, final)
        beta = self.beta.clamp(0, 1)
        quantise = self._quantise()
        if quantise is None:
            return scan(x, beta, self.threshold, self.graded_spikes_factor, start, neuron, self.method, self.batch_chunk)
        return iterate(x, beta, self.threshold, self.graded_spikes_factor, start, neuron, quantise)

    def step(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step `(B, ...)` of the same arithmetic: `(spk, mem)`."""
        spk, membranes, _ = self._scan(x[None], mem, False)
        assert spk is not None
        return spk[0], membranes[0]

    def extra_repr(self) -> str:
        return f"reset_mechanism={self._reset!r}, method={self.method!r}"


__all__ = ["Leaky", "LinearLeaky", "StateLeaky", "leaky_scan"]
