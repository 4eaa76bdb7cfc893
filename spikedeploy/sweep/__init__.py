"""Accuracy against sparsity: one model at many settings of top-k, each point counted and held against the full model.

from spikedeploy.sweep import sweep
result = sweep(program, x, labels, topk_k=(1.0, 0.5, 0.25), topk_v=(1.0, 0.5))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikedeploy.sweep.grid import Sweep as Sweep
    from spikedeploy.sweep.grid import sweep as sweep
    from spikedeploy.sweep.point import Point as Point
    from spikedeploy.topk import with_topk as with_topk

_LAZY = {"Sweep": "sweep.grid", "sweep": "sweep.grid", "Point": "sweep.point", "with_topk": "topk"}

__all__ = ["Point", "Sweep", "sweep", "with_topk"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"spikedeploy.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'spikedeploy.sweep' has no attribute '{name}'")
