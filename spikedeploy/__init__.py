"""spikedeploy: train parallel, run iterative. Importing this module loads neither torch nor numpy-heavy parts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from spikedeploy.checkpoint import load as load
    from spikedeploy.checkpoint import save as save
    from spikedeploy.conversion import convert as convert
    from spikedeploy.program import Program as Program

_LAZY = {
    "save": "spikedeploy.checkpoint",
    "load": "spikedeploy.checkpoint",
    "convert": "spikedeploy.conversion",
    "Program": "spikedeploy.program",
}

__all__ = ["Program", "__version__", "convert", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spikedeploy' has no attribute '{name}'")
