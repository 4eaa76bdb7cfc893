"""Under `torch.autocast` the matrix memories keep the precision of their weights: 16 bits cannot tell a slow decay from none."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

Method = TypeVar("Method", bound=Callable[..., Any])


def full_precision(method: Method) -> Method:
    """`method(layer, x, ...)`; where autocast is on, without it and with `x` in the dtype of the layer's weights."""

    @wraps(method)
    def call(layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = x.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return method(layer, x, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(layer, x.to(next(layer.parameters()).dtype), *args, **kwargs)

    return cast(Method, call)
