"""Under `torch.compile`, what calls the native core runs as it is: the compiler cannot look into a C library."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

from spikedeploy.errors import BadInput, message

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, at which `torch.compile` breaks its graph; without it nothing changes, and the compiler is not imported.

    Under a transform of `torch.func` it raises `BadInput`: the gradients are `torch.autograd`'s.
    """
    eager: Callable[P, R] = _disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch._C._are_functorch_transforms_active():
            found, needed = "a transform of torch.func (vmap, grad, jvp, ...)", "this layer's gradient is known to torch.autograd only"
            raise BadInput(message("spikedeploy.nn", found, needed, "Use torch.autograd.grad, and the batch axis instead of vmap."))
        return eager(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return call
