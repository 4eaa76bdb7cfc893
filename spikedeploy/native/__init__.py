"""The native core: one small C library for the training forms and the event-driven engine, and the one switch that turns it off.

`SPIKEDEPLOY_NATIVE=0` in the environment, or no compiler at installation, and every caller uses its pure NumPy or torch form.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache, partial
from importlib import import_module
from typing import Any

VERSION = 1


@cache
def _load() -> tuple[Any, Any] | str:
    """`(ffi, lib)`, or in words why there is none."""
    if os.environ.get("SPIKEDEPLOY_NATIVE", "1") == "0":
        return "switched off by SPIKEDEPLOY_NATIVE=0"
    try:
        _core: Any = import_module("spikedeploy.native._core")
    except ImportError as error:
        return f"not built ({error})"
    if _core.lib.sd_version() != VERSION:
        return f"version {_core.lib.sd_version()} of the library, version {VERSION} is needed; reinstall spikedeploy"
    _part_before_fork(_core.__file__)
    return _core.ffi, _core.lib


def _part_before_fork(library: str) -> None:
    """A fork copies one thread: the child would wait for ever for OpenMP's others. They are let go before, and come back when needed.

    The call is OpenMP 5's `omp_pause_resource_all(omp_pause_soft)`, looked up in the OpenMP that the library brought in, which is torch's.
    """
    pause = getattr(ctypes.CDLL(library), "omp_pause_resource_all", None)
    if pause is not None and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=partial(pause, 1))


def available() -> bool:
    """Whether the native core can be used."""
    return not isinstance(_load(), str)


def why_not() -> str:
    """Why the native core cannot be used; empty when it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


def core() -> tuple[Any, Any]:
    """`(ffi, lib)`: call only where `available()`."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"the native core is not available: {loaded}")
    return loaded
