"""Weights that others trained: the names of the published SpikingSSM code, mapped to the classes here.

    published                                                        here
    s4_layers.I.kernel.log_dt, .log_A_real, .A_imag                  blocks.I.s4d.(the same)
    s4_layers.I.kernel.C (1, H, M, 2)                                blocks.I.s4d.C (H, M, 2)
    s4_layers.I.D (1, H)                                             blocks.I.s4d.D (H,)
    s4_layers.I.ln_vth (H, 1) or (1,)                                blocks.I.neuron.ln_vth (H,) or (1,)
    s4_layers.I.output_linear.0.weight (2H, H, 1), .bias             blocks.I.mix.weight (2H, H), .bias
    s4_layers.I.neuron.model.*                                       blocks.I.neuron.sdn.*, see below
    norms.I.*                                                        blocks.I.norm.*
    encoder.[N.]weight, .bias;  decoder.[...]weight, .bias           encoder.*, decoder.*

    surrogate network, fused:     spatial_layers.0, conv1 or c1;  feature_layers.0, conv2 or c2;  decoder, conv3 or c3
    surrogate network, as fitted: encoder (1x1), spatial_layers.0.0 (depthwise), .0.1 (batch norm), feature_layers.0.0, .0.1, decoder

Any prefix before these names is allowed. A surrogate network under other names is recognised by the shapes (8, 1, 8), (8, 8, 1), (1, 8, 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.nn.sdn import NAMES, SurrogateDynamicNetwork
from spikedeploy.nn.spiking_ssm import Norm, Readout, Reset, SpikingSSM, refuse_bidirectional

State = Mapping[str, Tensor]
ROLES = {
    "conv1": ("conv1", "c1", "spatial_layers.0", "spatial"),
    "conv2": ("conv2", "c2", "feature_layers.0", "feature"),
    "conv3": ("conv3", "c3", "decoder"),
}


def _refuse(found: str, needed: str) -> BadInput:
    return BadInput(message("published weights", found, needed))


def _under(state: State, name: str) -> dict[str, Tensor]:
    """The entries `...name.rest`, as `rest`."""
    pattern = re.compile(rf"(?:^|\.){re.escape(name)}\.(.+)$")
    return {match[1]: value for key, value in state.items() if (match := pattern.search(key))}


def _fuse_norm(layer: State) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution `0.*`, with the batch norm `1.*` behind it (eps 1e-5) folded in; or of a plain one."""
    if "weight" in layer:
        return layer["weight"].double(), layer["bias"].double()
    weight, bias = layer["0.weight"].double(), layer["0.bias"].double()
    if "1.running_var" not in layer:
        return weight, bias
    gain = layer["1.weight"].double() / (layer["1.running_var"].double() + 1e-5).sqrt()
    return weight * gain[:, None, None], (bias - layer["1.running_mean"].double()) * gain + layer["1.bias"].double()


def _by_shape(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """The three layers of a network with unknown names: each weight has a shape of its own, its bias the same stem."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for key, weight in state.items():
        if weight.ndim != 3 or not key.endswith("weight"):
            continue
        out, inner, size = weight.shape
        role = "conv3" if out == 1 else "conv1" if inner == 1 and size > 1 else "conv2" if size == 1 and inner == out else ""
        bias = state.get(key.removesuffix("weight") + "bias")
        if not role or role in found or bias is None:
            raise _refuse(f"'{key}' of shape {tuple(weight.shape)}", "one layer each of shapes (8, 1, 8), (8, 8, 1), (1, 8, 1), with bias")
        found[role] = (weight.double(), bias.double())
    return found


def _by_name(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for role, names in ROLES.items():
        layers = [layer for name in names if (layer := _under(state, name))]
        if layers:
            found[role] = _fuse_norm(layers[0])
    widths = _under(state, "encoder").get("weight")
    if "conv1" in found and widths is not None and any("spatial_layers.0.0." in key for key in state):
        weight, bias = found["conv1"]
        found["conv1"] = (weight * widths.double().reshape(-1, 1, 1), bias)
    return found


def sdn_tensors(state: State) -> dict[str, Tensor]:
    """The six tensors of a surrogate network under our names, float32. Raises `BadInput` where layers are missing or misshapen."""
    try:
        found = _by_name(state)
    except KeyError as error:
        raise _refuse(f"entry {error} is missing", "weight and bias of every layer") from None
    found = found if len(found) == 3 else _by_shape(state)
    missing = sorted(set(ROLES) - set(found))
    if missing:
        raise _refuse(f"no layer for {', '.join(missing)} among {sorted(state)[:12]}", "three convolutions are needed")
    tensors = {
        f"{role}.{part}": value.float() for role, pair in found.items() for part, value in zip(("weight", "bias"), pair, strict=True)
    }
    channels, _, kernel = tensors["conv1.weight"].shape
    shapes = ((channels, 1, kernel), (channels,), (channels, channels, 1), (channels,), (1, channels, 1), (1,))
    for name, shape in zip(NAMES, shapes, strict=True):
        if tuple(tensors[name].shape) != shape:
            raise _refuse(f"{name} of shape {tuple(tensors[name].shape)}", f"{shape}")
    return tensors


def _linear(state: State, name: str) -> dict[str, Tensor]:
    """Weight and bias of the first map under `name`, at any depth below it; empty when there is none."""
    found = {key.rpartition(".")[2]: value for key, value in _under(state, name).items() if key.endswith(("weight", "bias"))}
    return {key: value.squeeze(-1) if key == "weight" and value.ndim == 3 else value for key, value in found.items()}


def _layer(state: State, index: int) -> dict[str, Tensor]:
    layer = _under(state, f"s4_layers.{index}")
    if "kernel.B" in layer:
        raise _refuse(f"layer {index} trains B", "a kernel with B = 1; multiply C by B before loading")
    needed = ("kernel.C", "kernel.log_dt", "kernel.log_A_real", "kernel.A_imag", "D", "output_linear.0.weight", "output_linear.0.bias")
    missing = [name for name in needed if name not in layer]
    if missing:
        raise _refuse(f"layer {index} has no {missing[0]}", f"{', '.join(needed)} are needed")
    refuse_bidirectional(layer["kernel.C"].shape[0] == 2 * layer["D"].shape[0])
    if layer["D"].shape[0] != 1:
        raise ModelRefused(message(f"layer {index} of the published model", f"{layer['D'].shape[0]} kernels per channel", "one is needed"))
    mapped = {f"s4d.{name}": layer[f"kernel.{name}"] for name in ("log_dt", "log_A_real", "A_imag")}
    mapped |= {"s4d.C": layer["kernel.C"][0], "s4d.D": layer["D"][0]}
    mapped |= {"mix.weight": layer["output_linear.0.weight"].squeeze(-1), "mix.bias": layer["output_linear.0.bias"]}
    if "ln_vth" in layer:
        mapped["neuron.ln_vth"] = layer["ln_vth"].reshape(-1)
    return mapped


def from_published(
    state_dict: State,
    *,
    prenorm: bool,
    readout: Readout = "mean",
    tau: float = 0.125,
    reset: Reset | None = None,
    sdn: SurrogateDynamicNetwork | None = None,
    **block: Any,
) -> SpikingSSM:
    """A `SpikingSSM` from the state_dict of the published code; names as at the top of this file.

    prenorm  as in its configuration: the state_dict does not tell. With False the published forward computes the norm and drops the
             result, so the model that was trained has none, and none is what is loaded
    reset    None: "surrogate" when the weights hold a surrogate network or `sdn` is given, else "exact"

    Raises `BadInput` where entries are missing, `ModelRefused` for bidirectional or multi-channel kernels.
    """
    count = 1 + max((int(m[1]) for key in state_dict if (m := re.search(r"(?:^|\.)s4_layers\.(\d+)\.", key))), default=-1)
    if not count:
        raise _refuse(f"no s4_layers among {sorted(state_dict)[:8]}", "the state_dict of a published SpikingSSM is needed")
    layers = [_layer(state_dict, index) for index in range(count)]
    own = _under(state_dict, "s4_layers.0.neuron")
    sdn = sdn or (SurrogateDynamicNetwork.from_published(own, tau) if own else None)
    reset = reset or ("surrogate" if sdn else "exact")
    outer = {key: value for key, value in state_dict.items() if "s4_layers." not in key}
    encoder, decoder = _linear(outer, "encoder"), _linear(outer, "decoder")
    width, modes = layers[0]["s4d.C"].shape[:2]
    thresholds = layers[0].get("neuron.ln_vth")
    norms = [_under(state_dict, f"norms.{index}") for index in range(count)]
    norm: Norm = "none" if not (prenorm and norms[0]) else "batch" if "running_var" in norms[0] else "layer"
    tokens = bool(encoder) and "bias" not in encoder and encoder["weight"].shape[1] == width
    model = SpikingSSM(
        None if tokens or not encoder else encoder["weight"].shape[1],
        decoder["weight"].shape[0] if decoder else None,
        vocabulary=encoder["weight"].shape[0] if tokens else None,
        features=width, layers=count, states=2 * modes, readout=readout, norm=norm, prenorm=True, tau=tau, reset=reset,
        sdn=sdn if reset == "surrogate" else None, learnable_threshold=thresholds is not None,
        shared_threshold=thresholds is not None and len(thresholds) != width, **block,
    )  # fmt: skip
    tensors = {f"blocks.{i}.{key}": value for i, layer in enumerate(layers) for key, value in layer.items()}
    tensors |= {f"encoder.{key}": value for key, value in encoder.items()} | {f"decoder.{key}": value for key, value in decoder.items()}
    if norm != "none":
        tensors |= {f"blocks.{i}.norm.{key}": value for i, entries in enumerate(norms) for key, value in entries.items()}
    return _filled(model, tensors)


def _filled(model: SpikingSSM, tensors: dict[str, Tensor]) -> SpikingSSM:
    state = model.state_dict()
    for key, value in tensors.items():
        if key not in state or state[key].shape != value.shape:
            there = tuple(state[key].shape) if key in state else "no such entry"
            raise _refuse(f"{key} of shape {tuple(value.shape)}", f"{there} here")
    with torch.no_grad():
        model.load_state_dict({**state, **tensors})
    return model
