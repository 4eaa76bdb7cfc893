"""The native core: one small C library for the training forms and the event-driven engine, and the one switch that turns it off.

`SPIKEDEPLOY_NATIVE=0` in the environment, or no compiler at installation, and every caller uses its pure NumPy or torch form.
`SPIKEDEPLOY_NATIVE=v3` and `v0` take the core for AVX2 or for every processor where a higher one would fit: the same numbers, slower.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from typing import Any

VERSION = 4

LEVELS = (4, 3)
"""Of x86-64: there is a core for each, and one for every processor."""


@cache
def _load() -> Any:
    """The extension module, or in words why there is none."""
    switch = os.environ.get("SPIKEDEPLOY_NATIVE", "1")
    if switch == "0":
        return "switched off by SPIKEDEPLOY_NATIVE=0"
    try:
        core = _fitting(_checked("_core"), switch)
    except ImportError as error:
        return f"not built ({error})"
    _part_before_fork(core.__file__)
    return core


def _checked(name: str) -> Any:
    core = import_module(f"spikedeploy.native.{name}")
    if core.lib.sd_version() != VERSION:
        raise ImportError(f"{name} has version {core.lib.sd_version()}, version {VERSION} is needed; reinstall spikedeploy")
    return core


def _fitting(every: Any, switch: str) -> Any:
    """The core for this processor, or for the lower level that the switch names; what could not be built is passed over."""
    for better in _candidates(every, switch):
        with suppress(ImportError):
            return _checked(better)
    return every


def _candidates(every: Any, switch: str) -> list[str]:
    """The cores for levels that this processor has and the switch admits, best first."""
    highest = min(every.lib.sd_level(), int(switch[1:]) if switch in ("v0", "v3") else LEVELS[0])
    return [f"_core_v{level}" for level in LEVELS if level <= highest]


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
    return loaded.ffi, loaded.lib


def passed_over() -> str:
    """Why no faster core than `name()` is used, though this processor could; empty where there is none."""
    if not available():
        return ""
    reasons = []
    for better in _candidates(_checked("_core"), os.environ.get("SPIKEDEPLOY_NATIVE", "1")):
        if better == name():
            break
        try:
            _checked(better)
        except ImportError as error:
            reasons.append(str(error))
    return "; ".join(reasons)


def name() -> str:
    """Which core is used: `_core_v4`, `_core_v3` or `_core`; empty when none is."""
    loaded = _load()
    return "" if isinstance(loaded, str) else loaded.__name__.rpartition(".")[2]
