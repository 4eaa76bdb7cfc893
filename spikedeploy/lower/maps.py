"""Linear maps, convolutions, pooling, norms and embeddings: torch layer -> steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from spikedeploy import steps as S
from spikedeploy.lower.builder import Call, Reduced, Wire, to_array
from spikedeploy.steps import Array


def parameter(value: Any) -> Array | None:
    """A parameter as an array; None stays None."""
    return None if value is None else to_array(value)


class Matrix(NamedTuple):
    """What `nn.Linear` computes with: y = weight x + bias."""

    weight: Tensor
    bias: Tensor | None = None


def linear(call: Call, module: nn.Linear | Matrix) -> Any:
    """`nn.Linear` -> `Affine`. After a mean, a sum (without bias) or the last step it may stand before it as well: both are linear."""
    value = call.args[0] if call.args else None
    if isinstance(value, Reduced) and (value.reduce in ("mean", "last") or (value.reduce == "sum" and module.bias is None)):
        call.builder.notes.append(f"{call.where}: applied at every step, before the {value.reduce} over time, which is the same.")
        return Reduced(_affine(call, module, value.wire), value.reduce)
    return _affine(call, module, call.wire())


def _affine(call: Call, module: nn.Linear | Matrix, x: Wire) -> Wire:
    _last_is_feature(call, x)
    return call.like(x, call.emit(S.Affine(call.name, (x.name,), to_array(module.weight), parameter(module.bias))))


def _last_is_feature(call: Call, x: Wire) -> None:
    if x.axes[-1] != "f":
        raise call.mixes(x, len(x.axes) - 1)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _image(call: Call) -> Wire:
    """The input as one image per sample and step: axes (TB, C, H, W)."""
    x = call.wire()
    if len(x.axes) == 4 and x.axes[0] != "f" and x.axes[1:] == ("f",) * 3:
        return x
    raise call.refuse(
        f"an input with axes {tuple(x.axes)}",
        "(T*B, C, H, W) is needed: one image per time step and sample",
        "Merge time and batch before it (x.flatten(0, 1)) and part them after it (y.reshape(T, B, ...)).",
    )


def conv2d(call: Call, module: nn.Conv2d) -> Wire:
    """`nn.Conv2d` with zero padding -> `Conv2d`."""
    x = _image(call)
    if module.padding_mode != "zeros":
        raise call.refuse(f"padding_mode='{module.padding_mode}'", "'zeros' is needed")
    kernel, dilation = (int(module.weight.shape[2]), int(module.weight.shape[3])), _pair(module.dilation)
    padding = _padding(call, module.padding, kernel, dilation)
    step = S.Conv2d(
        call.name, (x.name,), to_array(module.weight), parameter(module.bias), _pair(module.stride), padding, dilation, int(module.groups)
    )
    return call.like(x, call.emit(step))


def _padding(call: Call, padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    if padding == "valid":
        return (0, 0)
    if padding != "same":
        return _pair(padding)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(n % 2 for n in total):
        raise call.refuse(
            f"padding='same' with a kernel of {kernel}",
            "an odd kernel is needed (an even one pads more on one side)",
            "Pad by hand to an odd kernel.",
        )
    return (total[0] // 2, total[1] // 2)


def avg_pool2d(call: Call, module: Any) -> Wire:
    """`nn.AvgPool2d` -> `SumPool2d` and a `Scale` by one over the window (or the divisor given)."""
    x = _image(call)
    kernel, padding = _pair(module.kernel_size), _pair(module.padding)
    stride = kernel if module.stride in (None, (), []) else _pair(module.stride)
    if module.ceil_mode:
        raise call.refuse("ceil_mode=True", "floor mode is needed", "Pad the input so that whole windows fit.")
    if not module.count_include_pad and padding != (0, 0):
        raise call.refuse(
            "count_include_pad=False with padding", "windows of one size are needed", "Use padding 0 or count_include_pad=True."
        )
    total = call.emit(S.SumPool2d(f"{call.name}.sum", (x.name,), kernel, stride, padding))
    share = np.float64(1.0) / (module.divisor_override or kernel[0] * kernel[1])
    return call.like(x, call.emit(S.Scale(call.name, (total,), np.array(share))))


def adaptive_avg_pool2d(call: Call, module: nn.AdaptiveAvgPool2d) -> Wire:
    """`nn.AdaptiveAvgPool2d` where its windows do not overlap and are all of one size."""
    x = _image(call)
    out = tuple(int(n) for n in call.result.shape[-2:])
    if any(size % n for size, n in zip(x.shape[1:], out, strict=True)):
        raise call.refuse(f"an output of {out} from {x.shape[1:]}", "sizes that divide evenly are needed", "Use nn.AvgPool2d.")
    kernel = (x.shape[1] // out[0], x.shape[2] // out[1])
    total = call.emit(S.SumPool2d(f"{call.name}.sum", (x.name,), kernel, kernel))
    return call.like(x, call.emit(S.Scale(call.name, (total,), np.array(1.0 / (kernel[0] * kernel[1])))))


def batch_norm(call: Call, module: Any) -> Wire:
    """BatchNorm in eval mode, channels on axis 1 -> `Scale`."""
    x = call.wire()
    if len(x.axes) < 2 or x.axes[1] != "f":
        raise call.mixes(x, 1)
    return _batch_norm(call, module, x, (-1, *(1,) * (len(x.shape) - 1)))


def channel_batch_norm(call: Call, module: Any) -> Wire:
    """The same with channels on the last axis."""
    return _batch_norm(call, module, call.wire(), (-1,))


def _batch_norm(call: Call, module: Any, x: Wire, shape: tuple[int, ...]) -> Wire:
    """`y = x * w/sqrt(var + eps) + (b - mean * w/sqrt(var + eps))`, per channel."""
    if module.running_mean is None:
        raise call.refuse("track_running_stats=False", "stored statistics are needed: statistics of the batch mix samples and time steps")
    mean, variance = to_array(module.running_mean).astype(np.float64), to_array(module.running_var).astype(np.float64)
    scale = 1.0 / np.sqrt(variance + module.eps)
    scale = scale if module.weight is None else scale * to_array(module.weight)
    offset = -mean * scale if module.bias is None else to_array(module.bias) - mean * scale
    return call.like(x, call.emit(S.Scale(call.name, (x.name,), scale.reshape(shape), offset.reshape(shape))))


def layer_norm(call: Call, module: nn.LayerNorm) -> Wire:
    """`nn.LayerNorm` over the last axis, or over all feature axes through a reshape."""
    x = call.wire()
    count = len(module.normalized_shape)
    if any(axis != "f" for axis in x.axes[-count:]):
        raise call.mixes(x, len(x.axes) - count)
    weight, bias, name = parameter(module.weight), parameter(module.bias), x.name
    if count > 1:
        shape = x.shape
        name = call.emit(S.Reshape(f"{call.name}.flat", (name,), (*shape[:-count], int(np.prod(shape[-count:])))))
        weight, bias = (None if p is None else p.reshape(-1) for p in (weight, bias))
        name = call.emit(S.LayerNorm(f"{call.name}.norm", (name,), weight, bias, float(module.eps)))
        return call.like(x, call.emit(S.Reshape(call.name, (name,), shape)))
    return call.like(x, call.emit(S.LayerNorm(call.name, (name,), weight, bias, float(module.eps))))


def embedding(call: Call, module: nn.Embedding) -> Wire:
    """`nn.Embedding` of the model's input -> `Embedding`."""
    x = call.wire()
    if x.name != "input":
        raise call.refuse(f"it looks up '{x.name}'", "the model's own input, whole numbers, is needed")
    if module.max_norm is not None:
        raise call.refuse(
            f"max_norm={module.max_norm}",
            "an embedding that does not change its table is needed",
            "Renormalise once, then set max_norm=None.",
        )
    if not call.builder.whole:
        raise call.refuse("its input is not of whole numbers", "an example input of dtype int64 is needed")
    name = call.emit(S.Embedding(call.name, (x.name,), to_array(module.weight)))
    return Wire(name, (*x.axes, "f"), (*x.sizes, int(module.weight.shape[1])))
