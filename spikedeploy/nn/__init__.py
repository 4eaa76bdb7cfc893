"""Training forms over whole sequences `(T, B, C)`, imported when first used: one row per public name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXPORTS: dict[str, str] = {
    "AssociativeLeaky": "associative",
    "DeltaRuleLeaky": "delta",
    "Leaky": "leaky",
    "LinearLeaky": "state_leaky",
    "OverTime": "overtime",
    "S4D": "s4d",
    "SpikingLIF": "spiking_ssm",
    "SpikingSSM": "spiking_ssm",
    "SpikingSSMBlock": "spiking_ssm",
    "StateLeaky": "state_leaky",
    "SurrogateDynamicNetwork": "sdn",
    "from_published": "published",
    "keep_memory": "allocator",
    "leaky_scan": "scan",
    "reuse_memory": "allocator",
    "Surrogate": "surrogate",
}
"""Public name -> module of this package."""


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module 'spikedeploy.nn' has no attribute {name!r}")
    return getattr(import_module(f"spikedeploy.nn.{EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(EXPORTS)
