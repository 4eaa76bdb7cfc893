"""The known layers as plain data: one row per class, how to describe it and how to build it again.

A description holds the constructor's arguments as numbers, strings and lists. Parameters and buffers are not part of it: they are stored as
tensors and put back by name, so a checkpoint keeps what training made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import snntorch
import torch
from snntorch import surrogate
from snntorch.functional.quant import StateQuant
from torch import Tensor, nn

from spikedeploy.errors import ModelRefused, message

Plain = dict[str, Any]
Describe = Callable[[nn.Module], Plain]
Build = Callable[[Plain], nn.Module]

SURROGATES: Mapping[str, tuple[str, ...]] = {
    "atan": ("alpha",),
    "fast_sigmoid": ("slope",),
    "sigmoid": ("slope",),
    "straight_through_estimator": (),
    "triangular": ("threshold",),
    "spike_rate_escape": ("beta", "slope"),
    "heaviside": (),
    "SFS": ("slope", "B"),
    "SSO": ("mean", "variance"),
}
"""snnTorch's surrogate gradients and the numbers each is made with. All of them fire where the argument is above zero."""


class Refused(Exception):
    """Why a layer cannot be described: what was found, what is needed, what to do. The caller says which layer."""

    def __init__(self, found: str, needed: str = "", do: str = "") -> None:
        super().__init__(found)
        self.parts = found, needed, do


def describe_surrogate(function: Any) -> Plain:
    """A surrogate gradient as its name and numbers; `custom` when it is nobody's but fires as all of them do."""
    if "_surrogate_bypass" in (function, getattr(function, "__name__", "")):
        return {"name": "none"}
    name = getattr(function, "__qualname__", "").split(".")[0]
    if getattr(function, "__module__", "") == "snntorch.surrogate" and name in SURROGATES:
        cells = _cells(function)
        numbers = {key: cells[key] for key in SURROGATES[name]}
        if all(isinstance(value, (int, float)) for value in numbers.values()):
            return {"name": name, **numbers}
    _check_heaviside(function)
    return {"name": "custom"}


def _cells(function: Any) -> dict[str, Any]:
    """What a closure holds, by name."""
    return dict(zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True))


def _check_heaviside(function: Any) -> None:
    probe = torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0])
    try:
        fires = function(probe).detach().tolist()
    except Exception as error:  # a user's function may raise anything
        raise Refused(f"its spike_grad fails ({type(error).__name__}: {error})", "a surrogate gradient of snnTorch is needed") from None
    if fires != [0.0, 0.0, 0.0, 1.0, 1.0]:
        raise Refused(
            f"its spike_grad gives {fires} at {probe.tolist()}",
            "a neuron that fires 1 above zero and else 0 is needed",
            "Use one of snntorch.surrogate.",
        )


def build_surrogate(plain: Plain) -> Any:
    """The surrogate of that name; the default one for `custom`, whose forward is the same."""
    name = plain["name"]
    if name == "custom":
        return surrogate.atan()
    return getattr(surrogate, name)(**{key: float(plain[key]) for key in SURROGATES[name]})


class Quantiser:
    """snnTorch's `state_quant` with given levels: each value becomes the nearest level, gradients pass straight through."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = StateQuant.apply(x, self.levels)
        return result


def quantiser_levels(function: Any) -> Tensor | None:
    """The levels of a `state_quant` function; None where there is none."""
    if not function:
        return None
    if isinstance(function, Quantiser):
        return function.levels
    if getattr(function, "__module__", "") == "snntorch.functional.quant" and function.__qualname__ == "state_quant.<locals>.inner":
        levels: Tensor = _cells(function)["levels"]
        return levels
    raise Refused("its state_quant is a function of your own", "one made by snntorch.functional.quant.state_quant is needed")


def _levels(function: Any) -> list[float] | None:
    levels = quantiser_levels(function)
    return None if levels is None else [float(v) for v in levels]


def _quantiser(levels: list[float] | None) -> Any:
    return Quantiser(torch.tensor(levels, device="cpu")) if levels else False


def neuron_arguments(m: Any) -> Plain:
    """What every snnTorch neuron has in common."""
    return {"surrogate": describe_surrogate(m.spike_grad), "state_quant": _levels(m.state_quant)}


def _neuron(plain: Plain) -> Plain:
    disabled = plain["surrogate"]["name"] == "none"
    return {
        "spike_grad": None if disabled else build_surrogate(plain["surrogate"]),
        "surrogate_disable": disabled,
        "state_quant": _quantiser(plain["state_quant"]),
    }


def _describe_state_leaky(m: Any) -> Plain:
    channels = m.tau.numel() if m.tau.ndim else 1
    return {**neuron_arguments(m), "channels": channels, "output": bool(m.output), "kernel_truncation_steps": m.kernel_truncation_steps}


def _describe_linear_leaky(m: Any) -> Plain:
    inner = m.linear
    sizes = {"in_features": inner.in_features, "out_features": inner.out_features, "bias": inner.bias is not None}
    plain = _describe_state_leaky(m)
    del plain["channels"]
    return plain | sizes


def _spiking(cls: type[nn.Module], *names: str) -> Build:
    """Build a reset-free neuron. Spike options are set afterwards: given with output=False the constructor warns."""

    def build(plain: Plain) -> nn.Module:
        options = _neuron(plain)
        module = cls(beta=0.5, state_quant=options["state_quant"], **{name: plain[name] for name in names})
        return _with_surrogate(module, options)

    return build


def _with_surrogate(module: Any, options: Plain) -> nn.Module:
    if options["surrogate_disable"]:
        module.spike_grad, module.surrogate_disable = module._surrogate_bypass, True
    elif options["spike_grad"] is not None:
        module.spike_grad = options["spike_grad"]
    return module  # type: ignore[no-any-return]


def _describe_leaky(m: Any) -> Plain:
    flags = {name: bool(getattr(m, name)) for name in ("init_hidden", "inhibition", "output", "reset_delay")}
    return {**neuron_arguments(m), **flags, "reset_mechanism": m.reset_mechanism}


def _build_leaky(plain: Plain) -> nn.Module:
    if plain["inhibition"]:
        raise Refused("inhibition=True", "inhibition between neurons is not supported")
    names = ("init_hidden", "output", "reset_delay", "reset_mechanism")
    return snntorch.Leaky(beta=0.5, **_neuron(plain), **{name: plain[name] for name in names})  # type: ignore[no-any-return]


def _describe_associative(m: Any) -> Plain:
    sizes = {"in_dim": m.to_v.in_features, "d_value": m.d_value, "d_key": m.d_key, "use_q_projection": bool(m.use_q_projection)}
    return {**neuron_arguments(m), **sizes, "output": bool(m.output)}


def _build_associative(plain: Plain) -> nn.Module:
    names = ("in_dim", "d_value", "d_key", "use_q_projection")
    module = snntorch.AssociativeLeaky(num_spiking_neurons=plain["d_value"] * plain["d_key"], **{name: plain[name] for name in names})
    options = _neuron(plain)
    module.state_quant, module.output = options["state_quant"], plain["output"]
    return _with_surrogate(module, options)


def _same(cls: type[nn.Module], *names: str, **fixed: Any) -> tuple[Describe, Build]:
    """A row for a class whose constructor arguments are attributes of the same name."""
    return lambda m: {name: _number(getattr(m, name)) for name in names}, lambda plain: cls(
        **{name: _tuple(plain[name]) for name in names}, **fixed
    )


def _number(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_number(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Refused(f"an argument of type {type(value).__name__}", "a number, a string or a list is needed")


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _biased(cls: type[nn.Module], *names: str) -> tuple[Describe, Build]:
    describe, _ = _same(cls, *names)
    return (
        lambda m: {**describe(m), "bias": m.bias is not None},
        lambda plain: cls(**{name: _tuple(plain[name]) for name in (*names, "bias")}),
    )


_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")


LAYERS: dict[type[nn.Module], tuple[Describe, Build]] = {
    nn.Linear: _biased(nn.Linear, "in_features", "out_features"),
    nn.Conv1d: _biased(nn.Conv1d, *_CONV),
    nn.Conv2d: _biased(nn.Conv2d, *_CONV),
    nn.AvgPool2d: _same(nn.AvgPool2d, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    nn.MaxPool2d: _same(nn.MaxPool2d, "kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    nn.AdaptiveAvgPool2d: _same(nn.AdaptiveAvgPool2d, "output_size"),
    nn.Flatten: _same(nn.Flatten, "start_dim", "end_dim"),
    nn.Unflatten: _same(nn.Unflatten, "dim", "unflattened_size"),
    nn.Dropout: _same(nn.Dropout, "p", "inplace"),
    nn.Dropout1d: _same(nn.Dropout1d, "p", "inplace"),
    nn.Dropout2d: _same(nn.Dropout2d, "p", "inplace"),
    nn.AlphaDropout: _same(nn.AlphaDropout, "p", "inplace"),
    nn.Identity: (lambda m: {}, lambda plain: nn.Identity()),
    nn.BatchNorm1d: _same(nn.BatchNorm1d, *_BATCH_NORM),
    nn.BatchNorm2d: _same(nn.BatchNorm2d, *_BATCH_NORM),
    nn.LayerNorm: (
        lambda m: {
            "normalized_shape": list(m.normalized_shape),
            "eps": m.eps,
            "elementwise_affine": m.elementwise_affine,
            "bias": m.bias is not None,
        },
        lambda plain: nn.LayerNorm(**plain),
    ),
    nn.Embedding: _same(nn.Embedding, "num_embeddings", "embedding_dim", "padding_idx", "max_norm"),
    nn.ReLU: _same(nn.ReLU, "inplace"),
    nn.GELU: _same(nn.GELU, "approximate"),
    nn.SiLU: _same(nn.SiLU, "inplace"),
    nn.Sigmoid: (lambda m: {}, lambda plain: nn.Sigmoid()),
    nn.Tanh: (lambda m: {}, lambda plain: nn.Tanh()),
    nn.GLU: _same(nn.GLU, "dim"),
    nn.Softmax: _same(nn.Softmax, "dim"),
    nn.LogSoftmax: _same(nn.LogSoftmax, "dim"),
    snntorch.StateLeaky: (_describe_state_leaky, _spiking(snntorch.StateLeaky, "channels", "output", "kernel_truncation_steps")),
    snntorch.LinearLeaky: (
        _describe_linear_leaky,
        _spiking(snntorch.LinearLeaky, "in_features", "out_features", "bias", "output", "kernel_truncation_steps"),
    ),
    snntorch.Leaky: (_describe_leaky, _build_leaky),
    snntorch.AssociativeLeaky: (_describe_associative, _build_associative),
}
"""Per class: how to describe a layer as plain data, and how to build one from that. Keyed by the exact class."""

_BY_NAME = {f"{cls.__module__.split('.')[0]}.{cls.__name__}": cls for cls in LAYERS}


def layer_name(cls: type[nn.Module]) -> str:
    """How a checkpoint names the class: `torch.Linear`, `snntorch.StateLeaky`, `spikedeploy.Leaky`."""
    return f"{cls.__module__.split('.')[0]}.{cls.__name__}"


def describe(path: str, module: nn.Module) -> Plain:
    """The layer as plain data. Raises `ModelRefused` naming the layer."""
    where = f"layer '{path}' ({type(module).__name__})"
    if type(module) not in LAYERS:
        raise ModelRefused(
            message(where, "it is not a layer that can be stored", "one of " + ", ".join(sorted(c.__name__ for c in LAYERS)) + " is needed")
        )
    try:
        return {"class": layer_name(type(module)), "arguments": LAYERS[type(module)][0](module)}
    except Refused as error:
        raise ModelRefused(message(where, *error.parts)) from None


def build(path: str, plain: Plain, tensors: Mapping[str, Tensor], learned: Collection[str]) -> nn.Module:
    """The layer from plain data and its tensors by name; those in `learned` become parameters.

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
    names = list(layer.state_dict(keep_vars=True))
    if set(names) != set(tensors):
        raise ValueError(f"{where} needs {names} and has {sorted(tensors)}")
    for name in names:
        _put(layer, name, tensors[name], name in learned)
    _settle(layer)
    return layer.eval()


def _put(layer: nn.Module, key: str, value: Tensor, learned: bool) -> None:
    """Put a stored tensor in its place, as parameter or buffer as it was. Where the constructor made a scalar, training may have made it
    per channel.

    Straight into the tables: snnTorch's reset-free neurons hold a stale buffer `beta` behind a property of that name.
    """
    *outer, name = key.split(".")
    for part in outer:
        layer = layer.get_submodule(part)
    made = layer._parameters.pop(name, None)
    made = layer._buffers.pop(name, None) if made is None else made
    if made is None:
        raise ValueError(f"no place for '{key}'")
    if made.shape != value.shape and made.ndim:
        raise ValueError(f"'{key}' of shape {tuple(value.shape)} where {tuple(made.shape)} is needed")
    if learned:
        layer._parameters[name] = nn.Parameter(value)
    else:
        layer._buffers[name] = value


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
        return self._state[name]


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
    learned = [name for name, value in tensors.items() if isinstance(value, nn.Parameter)]
    try:
        plain = LAYERS[cls][0](_Stored(state))  # type: ignore[arg-type]
    except Refused as error:
        raise ModelRefused(message(f"layer ({cls.__name__})", *error.parts)) from None
    return build(cls.__name__, {"class": kind, "arguments": plain}, {k: v.detach() for k, v in tensors.items()}, learned)
