"""The parallel torch model as a party: hooks record what every neuron layer puts out and can replace what the next one sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spikedeploy.program import Program
from spikedeploy.trace import evaluating
from spikedeploy.verify.parties import Observation, Real
from spikedeploy.verify.rules import Doubt

LONE = "layer"
"""What a program calls the only layer of a model that is itself one layer."""


class TorchParty:
    """The trained model as it was trained: whole sequences at once, in float32."""

    name = "parallel (torch, float32)"

    def __init__(self, model: nn.Module, source: Program) -> None:
        self.model, self.source = model, source
        self.doubt = Doubt(parameters=2, functions=8, parallel=True)
        modules = dict(model.named_modules())
        if LONE not in modules:
            modules[LONE] = model
        self.modules = {step.name: found for step in source.spiking if (found := _module(modules, step.name)) is not None}

    def missing(self) -> Mapping[str, str]:
        return {}

    def observe(self, x: Real, forced: Mapping[str, Real] | None) -> Observation:
        taps = {name: _Tap(self.source.wires[name], x.shape[1], None if forced is None else forced[name]) for name in self.modules}
        with torch.no_grad(), evaluating(self.model), ExitStack() as stack:
            for name, module in self.modules.items():
                stack.enter_context(_tapped(module, taps[name]))
            outputs = self.model(self._tensor(x))
        seen = {name: tap for name, tap in taps.items() if tap.spikes}
        return Observation(
            fired={name: tap.fired() for name, tap in seen.items()},
            membranes={name: value for name, tap in seen.items() if (value := tap.membrane()) is not None},
            outputs=self._outputs(outputs),
        )

    def _tensor(self, x: Real) -> Tensor:
        return torch.from_numpy(np.array(x, np.int64 if self.source.input_kind == "index" else np.float32))

    def _outputs(self, value: Any) -> Mapping[str, Real]:
        flat = [item.detach().numpy() for item in _flatten(value)]
        return dict(zip((output.name for output in self.source.outputs), flat, strict=False))


def _flatten(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flatten(item)


def _module(modules: Mapping[str, nn.Module], layer: str) -> nn.Module | None:
    """The module that makes the spikes of wire `layer`: of that path, or a memory whose spikes are `<path>.spk`."""
    return modules.get(layer) or modules.get(layer.rpartition(".")[0] or LONE)


class _Tap:
    """What one layer put out, call by call (a layer that runs one step at a time is called T times)."""

    def __init__(self, shape: tuple[int, ...], batch: int, forced: Real | None) -> None:
        self.shape, self.forced = shape, forced
        self.one_step = batch * int(np.prod(shape))
        self.spikes: list[Real] = []
        self.membranes: list[Real] = []
        self.time = 0

    def see(self, spikes: Tensor, membrane: Tensor | None) -> Tensor:
        """Record one call and say what its readers get."""
        count = spikes.numel() // self.one_step
        self.spikes.append(spikes.detach().numpy().reshape(count, -1, *self.shape))
        if membrane is not None:
            self.membranes.append(membrane.detach().numpy().reshape(count, -1, *self.shape))
        start, self.time = self.time, self.time + count
        if self.forced is None:
            return spikes
        return torch.from_numpy(np.asarray(self.forced[start : self.time], np.float32)).reshape(spikes.shape)

    def fired(self) -> Real:
        return np.concatenate(self.spikes) != 0

    def membrane(self) -> Real | None:
        return np.concatenate(self.membranes) if len(self.membranes) == len(self.spikes) else None


@contextmanager
def _tapped(module: nn.Module, tap: _Tap) -> Iterator[None]:
    with TAPS.get(_family(module), _tapped_output)(module, tap):
        yield


def _family(module: nn.Module) -> str:
    return "memory" if hasattr(module, "to_alpha") else "surrogate" if getattr(module, "sdn", None) is not None else ""


@contextmanager
def _tapped_output(module: nn.Module, tap: _Tap) -> Iterator[None]:
    """A neuron that returns `(spikes, membrane)`, or its spikes alone."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (tap.see(output[0], output[1]), *output[1:])
        return tap.see(output, None)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


FUSED = ("auto", "native")
"""Methods of our memory layers that may take a kernel which does everything at once."""


@contextmanager
def _tapped_fire(module: nn.Module, tap: _Tap) -> Iterator[None]:
    """A memory spikes in the middle of its forward: its `fire` is where the membranes can be seen and the spikes replaced.

    The fused kernel has no such place. On the reference's spikes its torch form is judged; on its own the model runs as it is.
    """
    original = cast(Callable[[Tensor], Tensor], module.fire)
    method = getattr(module, "method", None)
    if method in FUSED and tap.forced is None:
        yield
        return

    def fire(membrane: Tensor) -> Tensor:
        return tap.see(original(membrane), membrane)

    module.__dict__["fire"] = fire
    if method in FUSED:
        module.__dict__["method"] = module.fallback
    try:
        yield
    finally:
        del module.__dict__["fire"]
        if method is not None:
            module.__dict__["method"] = method


@contextmanager
def _tapped_exact(module: nn.Module, tap: _Tap) -> Iterator[None]:
    """A neuron trained through a surrogate network is judged with its true reset; what the surrogate costs is asked apart."""
    surrogate = module._modules.pop("sdn")
    module.__dict__["sdn"] = None
    try:
        with _tapped_output(module, tap):
            yield
    finally:
        del module.__dict__["sdn"]
        module._modules["sdn"] = surrogate


TAPS: Mapping[str, Callable[[nn.Module, _Tap], AbstractContextManager[None]]] = {"memory": _tapped_fire, "surrogate": _tapped_exact}
"""Families that need another tap than the neuron's output."""
