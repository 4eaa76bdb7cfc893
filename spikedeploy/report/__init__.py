"""What a model costs on event-driven hardware: spikes, operations, energy; as text, JSON and one HTML file.

report = measure(program, x)        counts, integers, exactly reproducible
energy(report, table)               counts times published prices
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikedeploy.report.counts import LayerCount as LayerCount
    from spikedeploy.report.counts import Report as Report
    from spikedeploy.report.measuring import measure as measure
    from spikedeploy.report.prices import Energy as Energy
    from spikedeploy.report.prices import energy as energy
    from spikedeploy.report.prices import load_tables as load_tables

_LAZY = {
    "LayerCount": "spikedeploy.report.counts",
    "Report": "spikedeploy.report.counts",
    "Energy": "spikedeploy.report.prices",
    "energy": "spikedeploy.report.prices",
    "load_tables": "spikedeploy.report.prices",
    "measure": "spikedeploy.report.measuring",
}

__all__ = ["Energy", "LayerCount", "Report", "energy", "load_tables", "measure"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'spikedeploy.report' has no attribute '{name}'")
