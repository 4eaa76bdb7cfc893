"""Ways to run a program one step at a time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikedeploy.runtime.events import EventEngine as EventEngine
    from spikedeploy.runtime.events_input import Events as Events
    from spikedeploy.runtime.onnx_runner import OnnxRunner as OnnxRunner
    from spikedeploy.runtime.onnx_sequence import SequenceRunner as SequenceRunner

_LAZY = {
    "EventEngine": "spikedeploy.runtime.events",
    "Events": "spikedeploy.runtime.events_input",
    "OnnxRunner": "spikedeploy.runtime.onnx_runner",
    "SequenceRunner": "spikedeploy.runtime.onnx_sequence",
}

__all__ = ["EventEngine", "Events", "OnnxRunner", "SequenceRunner"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spikedeploy.runtime' has no attribute '{name}'")
