"""Under `torch.compile`, what calls the native core runs as it is: the compiler cannot look into a C library."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, at which `torch.compile` breaks its graph; without it nothing changes, and the compiler is not imported."""
    eager: Callable[P, R] = _disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return eager(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return call
