"""Ways to run a program one step at a time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikedeploy.runtime.events import EventEngine as EventEngine
    from spikedeploy.runtime.events_input import Events as Events

_LAZY = {"EventEngine": "spikedeploy.runtime.events", "Events": "spikedeploy.runtime.events_input"}

__all__ = ["EventEngine", "Events"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spikedeploy.runtime' has no attribute '{name}'")
