"""Layers to plain data and back, for checkpoints and for layers that were pickled whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import ModelRefused, message
from spikedeploy.layers import LAYERS
from spikedeploy.nn.surrogate import Surrogate
from spikedeploy.surrogates import Plain, Refused
from spikedeploy.torchfile import RecordedSurrogate

_BY_NAME = {f"{cls.__module__.split('.')[0]}.{cls.__name__}": cls for cls in LAYERS}


def layer_name(cls: type[nn.Module]) -> str:
    """How a checkpoint names the class: `torch.Linear`, `snntorch.StateLeaky`, `spikedeploy.Leaky`."""
    return f"{cls.__module__.split('.')[0]}.{cls.__name__}"


def describe(path: str, module: nn.Module) -> Plain:
    """The layer as plain data. Raises `ModelRefused` naming the layer."""
    where = f"layer '{path}' ({type(module).__name__})"
    if type(module) not in LAYERS:
        raise ModelRefused(
            message(
                where, "it is not a layer that can be stored", "one of " + ", ".join(sorted({c.__name__ for c in LAYERS})) + " is needed"
            )
        )
    try:
        return {"class": layer_name(type(module)), "arguments": LAYERS[type(module)][0](module)}
    except Refused as error:
        raise ModelRefused(message(where, *error.parts)) from None


def build(path: str, plain: Plain, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The layer from plain data and its tensors by name; an `nn.Parameter` stays one.

    The constructor runs on torch's meta device, so that no size in `plain` makes it allocate. Raises `ModelRefused` on an unknown class,
    `ValueError` on tensors that do not fit, or whatever a constructor raises on nonsense.
    """
    cls = _BY_NAME.get(plain["class"])
    where = f"layer '{path}' ({plain['class']})"
    if cls is None:
        raise ModelRefused(message(where, "this version does not know it", "one of " + ", ".join(sorted(_BY_NAME)) + " is needed"))
    try:
        with torch.device("meta"):
            layer = LAYERS[cls][1](plain["arguments"])
    except Refused as error:
        raise ModelRefused(message(where, *error.parts)) from None
    names = list(tensors_of(layer))
    if set(names) != set(tensors):
        raise ValueError(f"{where} needs {names} and has {sorted(tensors)}")
    for name in names:
        _put(layer, name, tensors[name])
    _settle(layer)
    return layer.eval()


def tensors_of(layer: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The parameters and stored buffers of a layer by name: what its state_dict is made of."""
    buffers = {name: value for name, value in layer._buffers.items() if name not in layer._non_persistent_buffers_set}
    found = {prefix + name: value for name, value in {**layer._parameters, **buffers}.items() if value is not None}
    for name, child in layer.named_children():
        found |= tensors_of(child, f"{prefix}{name}.")
    return found


def _put(layer: nn.Module, key: str, value: Tensor) -> None:
    """Put a stored tensor in its place, as parameter or buffer as it was. Where the constructor made a scalar, training may have made it
    per channel.

    Straight into the tables: snnTorch's reset-free neurons hold a stale buffer `beta` behind a property of that name.
    """
    *outer, name = key.split(".")
    for part in outer:
        layer = layer.get_submodule(part)
    made: Tensor | None = layer._parameters.pop(name, None)
    made = layer._buffers.pop(name, None) if made is None else made
    if made is None:
        raise ValueError(f"no place for '{key}'")
    if made.shape != value.shape and made.ndim:
        raise ValueError(f"'{key}' of shape {tuple(value.shape)} where {tuple(made.shape)} is needed")
    table: Any = layer._parameters if isinstance(value, nn.Parameter) else layer._buffers
    table[name] = value


def _settle(layer: nn.Module) -> None:
    """States that are not stored (snnTorch's `mem`) start empty on the CPU."""
    for module in layer.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device="cpu")


class _Stored:
    """What a pickled layer had as attributes, readable like the layer itself."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers"):
            if name in self._state.get(table, {}):
                return self._state[table][name]
        if name in self._state.get("_modules", {}):
            return _Stored(self._state["_modules"][name].state)
        if name == "reset_mechanism":
            name = "_reset_mechanism"
        if name not in self._state:
            raise ValueError(f"the stored layer has no '{name}'")
        value = self._state[name]
        return Surrogate(value.kind, value.k) if isinstance(value, RecordedSurrogate) else value


def _stored_tensors(state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    hidden = state.get("_non_persistent_buffers_set", ())
    own = {**state["_parameters"], **{k: v for k, v in state["_buffers"].items() if k not in hidden}}
    found = {prefix + name: value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in state["_modules"].items():
        if child is not None:
            found |= _stored_tensors(child.state, f"{prefix}{name}.")
    return found


def recorded_layer(kind: str, state: Mapping[str, Any]) -> nn.Module:
    """A layer from the attributes of a pickled one: described as a live layer is, then built by its own constructor."""
    cls = _BY_NAME[kind]
    tensors = _stored_tensors(state)
    try:
        plain = LAYERS[cls][0](_Stored(state))
    except Refused as error:
        raise ModelRefused(message(f"layer ({cls.__name__})", *error.parts)) from None
    return build(cls.__name__, {"class": kind, "arguments": plain}, tensors)
