"""Lowering: from the calls of a traced torch model to the steps of a program. Two tables, one row per layer class and per operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import snntorch
from torch import nn

from spikedeploy.lower import arithmetic as A
from spikedeploy.lower import functional, memory, neurons, ssm
from spikedeploy.lower import maps as M
from spikedeploy.lower import wiring as W
from spikedeploy.lower.builder import Call, Wire
from spikedeploy.nn import associative, delta, s4d, spiking_ssm
from spikedeploy.nn import leaky as ours

Rule = Callable[..., Any]

LAYER_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: M.linear,
    nn.Conv2d: M.conv2d,
    nn.AvgPool2d: M.avg_pool2d,
    nn.AdaptiveAvgPool2d: M.adaptive_avg_pool2d,
    nn.BatchNorm1d: M.batch_norm,
    nn.BatchNorm2d: M.batch_norm,
    nn.LayerNorm: M.layer_norm,
    nn.Embedding: M.embedding,
    nn.Flatten: W.reshape,
    nn.Unflatten: W.reshape,
    nn.Dropout: W.keep,
    nn.Dropout1d: W.keep,
    nn.Dropout2d: W.keep,
    nn.AlphaDropout: W.keep,
    nn.Identity: W.keep,
    nn.ReLU: A.activation("relu"),
    nn.SiLU: A.activation("silu"),
    nn.Sigmoid: A.activation("sigmoid"),
    nn.Tanh: A.activation("tanh"),
    nn.GELU: A.gelu,
    nn.GLU: A.glu,
    snntorch.StateLeaky: neurons.state_leaky,
    snntorch.LinearLeaky: neurons.linear_leaky,
    snntorch.Leaky: neurons.snntorch_leaky,
    snntorch.AssociativeLeaky: memory.snntorch_associative,
    ours.StateLeaky: neurons.state_leaky,
    ours.LinearLeaky: neurons.linear_leaky,
    ours.Leaky: neurons.our_leaky,
    associative.AssociativeLeaky: memory.our_associative,
    delta.DeltaRuleLeaky: memory.delta_rule,
    s4d.S4D: ssm.s4d,
    spiking_ssm.SpikingSSMBlock: ssm.spiking_block,
    spiking_ssm.SpikingLIF: ssm.spiking_lif,
    spiking_ssm.TiedDropout: W.keep,
    spiking_ssm.ChannelBatchNorm: M.channel_batch_norm,
}
"""Per layer class: `(call, module) -> value`."""

_SAME: Mapping[str, Rule] = {
    **dict.fromkeys(("sub", "subtract"), A.sub),
    **dict.fromkeys(("mul", "multiply"), A.mul),
    **dict.fromkeys(("div", "divide", "true_divide"), A.div),
    "exp": A.activation("exp"),
    "sigmoid": A.activation("sigmoid"),
    "tanh": A.activation("tanh"),
    "relu": A.activation("relu"),
    **dict.fromkeys(("flatten", "unflatten", "reshape", "unsqueeze", "squeeze"), W.reshape),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "movedim"), W.permute),
    **dict.fromkeys(("mean", "sum", "max", "amax"), W.reduction),
    **dict.fromkeys(("chunk", "split", "unbind"), W.parts),
    "add": A.add,
    "neg": A.neg,
    "square": A.square,
}

OPERATION_RULES: dict[str, Rule] = {
    **{f"torch.{name}": rule for name, rule in _SAME.items()},
    **{f"method.{name}": rule for name, rule in _SAME.items()},
    **{f"operator.{name}": _SAME[name] for name in ("add", "sub", "mul", "neg")},
    "operator.iadd": A.add, "operator.isub": A.sub, "operator.imul": A.mul, "operator.truediv": A.div, "operator.itruediv": A.div,
    "operator.pow": A.square, "operator.getitem": W.getitem, "accumulate": W.accumulate,
    "F.relu": A.activation("relu"), "F.silu": A.activation("silu"), "F.sigmoid": A.activation("sigmoid"), "F.tanh": A.activation("tanh"),
    "F.linear": functional.as_layer(M.linear, functional.LINEAR),
    "F.conv2d": functional.as_layer(M.conv2d, functional.CONV2D, padding_mode="zeros", kernel_size=None),
    "F.avg_pool2d": functional.as_layer(M.avg_pool2d, functional.AVG_POOL2D),
    "F.layer_norm": functional.as_layer(M.layer_norm, functional.LAYER_NORM),
    "operator.matmul": functional.matmul, "torch.matmul": functional.matmul, "method.matmul": functional.matmul,
    "F.gelu": A.gelu, "F.glu": A.glu, "F.dropout": W.keep,
    "method.view": W.reshape, "method.view_as": W.reshape, "method.reshape_as": W.reshape, "method.t": W.permute, "method.size": W.size,
    "method.select": W.select, "method.contiguous": W.keep, "method.float": W.cast, "method.double": W.cast, "method.long": W.cast,
    "method.int": W.cast, "method.to": W.cast, "method.type_as": W.cast, "method.clone": W.keep, "method.detach": W.keep,
}  # fmt: skip
"""Per function or method, as `spikedeploy.trace` names it (methods as `method.name`): `call -> value`."""

MIXES_TIME: Mapping[str, str] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "a recurrent layer over the sequence"),
    **dict.fromkeys(("MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder"), "attention over the sequence"),
    **dict.fromkeys(("Conv1d", "Conv3d", "conv1d"), "a convolution over the sequence"),
    **dict.fromkeys(("MaxPool1d", "AvgPool1d"), "pooling over the sequence"),
    "scaled_dot_product_attention": "attention over the sequence",
    "cumsum": "a running sum",
    "cumprod": "a running product",
    "flip": "it reverses an axis",
    "roll": "it rotates an axis",
    "diff": "differences of neighbours",
    "sort": "it sorts an axis",
}
"""What is refused as mixing time steps, and how that is said."""

OVER_AN_AXIS = frozenset(("softmax", "log_softmax", "std", "var", "norm", "prod", "median", "min", "amin", "argmax", "normalize"))
"""Operations without a rule that act along the axis they are given: over time they are said to mix time steps."""

INSTEAD: Mapping[str, str] = {
    "MaxPool2d": "Use nn.AvgPool2d: a maximum has no event-driven form here.",
    "max_pool2d": "Use nn.AvgPool2d: a maximum has no event-driven form here.",
    "Softmax": "Return the scores and apply the softmax to the deployed model's output.",
    "LogSoftmax": "Return the scores and apply the softmax to the deployed model's output.",
    "softmax": "Return the scores and apply the softmax to the deployed model's output.",
    "log_softmax": "Return the scores and apply the softmax to the deployed model's output.",
    "LeakyReLU": "Use ReLU, GELU or SiLU.",
    "Synaptic": "Use StateLeaky, LinearLeaky or Leaky.",
    "cat": "Use a Linear layer for each part and add the results.",
}
"""What to do instead, for layers and operations that people try."""


OPERATIONS = (
    "+ - * and / by constants, @ a matrix of the model, ** 2, relu, gelu, silu, sigmoid, tanh, exp, glu, reshapes of features, "
    "chunk and split and slices of the last axis, and at the end mean, sum, max or [-1] over time"
)


def supported() -> str:
    """The names of all layers that can be lowered."""
    return ", ".join(sorted({cls.__name__ for cls in LAYER_RULES}))


def lower_layer(call: Call, module: nn.Module) -> Any:
    """Apply the row of the layer's class; refuse by name where there is none."""
    rule = LAYER_RULES.get(type(module))
    if rule is None:
        raise _refused(call, type(module).__name__, f"supported layers: {supported()}")
    return rule(call, module)


def lower_operation(call: Call) -> Any:
    """Apply the row of the function or method; refuse by name where there is none."""
    rule = OPERATION_RULES.get(call.origin)
    if rule is None:
        raise _refused(call, call.origin.split(".")[-1], f"supported operations: {OPERATIONS}")
    return rule(call)


def _over_time(call: Call) -> bool:
    """Whether an operation is given the time axis as its `dim`."""
    x = call.args[0] if call.args else None
    if call.origin.split(".")[-1] not in OVER_AN_AXIS:
        return False
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    return isinstance(x, Wire) and isinstance(dim, int) and -len(x.axes) <= dim < len(x.axes) and "T" in x.axes[dim]


def _refused(call: Call, name: str, needed: str) -> Exception:
    if name in MIXES_TIME:
        return call.mixes_time(f"{name}: {MIXES_TIME[name]}")
    if _over_time(call):
        return call.mixes_time(f"{name} over the time axis")
    if name.startswith("Parametrized"):
        return call.refuse(f"{name} computes its parameters anew", needed, "Call torch.nn.utils.parametrize.remove_parametrizations first.")
    return call.refuse(f"{name} cannot be deployed", needed, INSTEAD.get(name, "Replace it by one of these."))
