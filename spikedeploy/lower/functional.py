"""Functional forms of layers (`F.linear(x, w, b)`, `x @ w`): the same rules, fed with the call's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from spikedeploy.lower import maps
from spikedeploy.lower.builder import Call, Wire, constant

LINEAR = {"weight": None, "bias": None}
CONV2D = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
AVG_POOL2D = {
    "kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None,
}  # fmt: skip
LAYER_NORM = {"normalized_shape": None, "weight": None, "bias": None, "eps": 1e-5}


def as_layer(rule: Callable[[Call, Any], Any], arguments: dict[str, Any], **fixed: Any) -> Callable[..., Any]:
    """The rule of a layer for the function of the same arguments, in their order; parameters must be the model's own."""

    def apply(call: Call, *rest: Any) -> Any:
        given = dict(zip(arguments, call.args[1:], strict=False)) | {k: v for k, v in call.kwargs.items() if k in arguments}
        computed = [name for name in ("weight", "bias") if isinstance(given.get(name), Wire)]
        if computed:
            raise call.refuse(f"its {computed[0]} is computed from the input", "a parameter of the model is needed")
        return rule(call, SimpleNamespace(**{**arguments, **given, **fixed}))

    return apply


def matmul(call: Call, *rest: Any) -> Any:
    """`x @ w` with a matrix of the model: an `Affine` of its transpose."""
    x, weight = call.args[:2]
    if not (isinstance(x, Wire) and constant(weight) and isinstance(weight, Tensor) and weight.ndim == 2):
        raise call.refuse("a product of computed values, or with something else than a matrix", "x @ matrix of the model is needed")
    return maps.linear(call, maps.Matrix(weight.t()))
