"""The known layers as plain data: one row per class, how to describe it and how to build it again.

A description holds the constructor's arguments as numbers, strings and lists. Parameters and buffers are not part of it: they are stored as
tensors and put back by name, so a checkpoint keeps what training made of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch
import torch
from torch import nn

from spikedeploy.nn import associative, delta, leaky, s4d, sdn, spiking_ssm
from spikedeploy.surrogates import Plain, Refused, build_quantiser, build_surrogate, describe_surrogate, plain_levels

Describe = Callable[[Any], Plain]
Build = Callable[[Plain], nn.Module]


def neuron_arguments(m: Any) -> Plain:
    """What every snnTorch neuron has in common."""
    return {"surrogate": describe_surrogate(m.spike_grad), "state_quant": plain_levels(m.state_quant)}


def _neuron(plain: Plain) -> Plain:
    disabled = plain["surrogate"]["name"] == "none"
    return {
        "spike_grad": None if disabled else build_surrogate(plain["surrogate"]),
        "surrogate_disable": disabled,
        "state_quant": build_quantiser(plain["state_quant"]),
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
    found: nn.Module = module
    return found


def _describe_leaky(m: Any) -> Plain:
    flags = {name: bool(getattr(m, name)) for name in ("init_hidden", "inhibition", "output", "reset_delay")}
    return {**neuron_arguments(m), **flags, "reset_mechanism": m.reset_mechanism}


def _build_leaky(plain: Plain) -> nn.Module:
    if plain["inhibition"]:
        raise Refused("inhibition=True", "inhibition between neurons is not supported")
    names = ("init_hidden", "output", "reset_delay", "reset_mechanism")
    with torch.device("cpu"):  # its constructor reads a tensor that it has just made
        return snntorch.Leaky(beta=0.5, **_neuron(plain), **{name: plain[name] for name in names})


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


def _ours(cls: type[nn.Module], *names: str) -> tuple[Describe, Build]:
    """A row for one of our reset-free or LIF neurons: options are set by the constructor, which never warns."""

    def describe(m: Any) -> Plain:
        return {**neuron_arguments(m), **{name: _number(getattr(m, name)) for name in names}, **_inner_linear(m)}

    def build(plain: Plain) -> nn.Module:
        sizes = {name: plain[name] for name in (*names, *(("in_features", "out_features", "bias") if "in_features" in plain else ()))}
        return cls(beta=0.5, **_neuron(plain), **sizes)

    return describe, build


def _inner_linear(m: Any) -> Plain:
    if not isinstance(m, leaky.LinearLeaky):
        return {}
    return {"in_features": m.linear.in_features, "out_features": m.linear.out_features, "bias": m.linear.bias is not None}


def _memory(cls: type[nn.Module]) -> tuple[Describe, Build]:
    """A row for one of our matrix-state memories."""
    names = ("in_dim", "d_value", "d_key", "use_q_projection", "topk_k", "topk_v", "method", "chunk", "batch_chunk")

    def build(plain: Plain) -> nn.Module:
        options = _neuron(plain)
        arguments = {name: plain[name] for name in names}
        module: nn.Module = cls(**arguments, spike_grad=options["spike_grad"], state_quant=options["state_quant"] or None)
        module.output = plain["output"]
        return module

    return lambda m: {**neuron_arguments(m), **{name: _number(getattr(m, name)) for name in (*names, "output")}}, build


def _describe_lif(m: Any) -> Plain:
    inner = None if m.sdn is None else _describe_sdn(m.sdn)
    return {"features": m.features, "tau": m.tau, "reset": m.reset, "learnable": "ln_vth" in m._parameters, "sdn": inner}


def _build_lif(plain: Plain) -> nn.Module:
    network = None if plain["sdn"] is None else _build_sdn(plain["sdn"])
    learnable = bool(plain["learnable"])
    return spiking_ssm.SpikingLIF(plain["features"], tau=plain["tau"], learnable_threshold=learnable, reset=plain["reset"], sdn=network)


def _describe_block(m: Any) -> Plain:
    norm = next(name for name, make in spiking_ssm.NORMS.items() if isinstance(m.norm, type(make(1))))
    sizes = {"features": m.s4d.features, "states": m.s4d.states, "form": m.s4d.form, "norm": norm, "prenorm": bool(m.prenorm)}
    neuron = _describe_lif(m.neuron)
    return {**sizes, "dropout": m.dropout.p, "shared": neuron.pop("features") is None, **neuron}


def _build_block(plain: Plain) -> nn.Module:
    names = ("features", "states", "form", "norm", "prenorm", "dropout", "tau", "reset")
    network = None if plain["sdn"] is None else _build_sdn(plain["sdn"])
    thresholds: Plain = {"learnable_threshold": bool(plain["learnable"]), "shared_threshold": bool(plain["shared"])}
    return spiking_ssm.SpikingSSMBlock(**{name: plain[name] for name in names}, **thresholds, sdn=network)


def _describe_sdn(m: Any) -> Plain:
    return {"channels": m.conv1.out_channels, "kernel": m.conv1.kernel_size[0], "tau": m.tau}


def _build_sdn(plain: Plain) -> sdn.SurrogateDynamicNetwork:
    return sdn.SurrogateDynamicNetwork(float(plain.get("tau", 0.125)), channels=int(plain["channels"]), kernel=int(plain["kernel"]))


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
    leaky.StateLeaky: _ours(leaky.StateLeaky, "channels", "output", "kernel_truncation_steps", "method", "batch_chunk"),
    leaky.LinearLeaky: _ours(leaky.LinearLeaky, "output", "kernel_truncation_steps", "method", "batch_chunk"),
    leaky.Leaky: _ours(leaky.Leaky, "init_hidden", "output", "reset_mechanism", "reset_delay", "method", "batch_chunk"),
    associative.AssociativeLeaky: _memory(associative.AssociativeLeaky),
    delta.DeltaRuleLeaky: _memory(delta.DeltaRuleLeaky),
    s4d.S4D: _same(s4d.S4D, "features", "states", "form"),
    spiking_ssm.SpikingLIF: (_describe_lif, _build_lif),
    spiking_ssm.SpikingSSMBlock: (_describe_block, _build_block),
    spiking_ssm.TiedDropout: _same(spiking_ssm.TiedDropout, "p"),
    spiking_ssm.ChannelBatchNorm: _same(spiking_ssm.ChannelBatchNorm, *_BATCH_NORM),
}
"""Per class: how to describe a layer as plain data, and how to build one from that. Keyed by the exact class."""
