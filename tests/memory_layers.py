"""What the tests of both memory layers share: every layer with every route that it admits, and how its output is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spikedeploy import native
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky

NATIVE = ("native",) if native.available() else ()
ROUTES: dict[type[Any], tuple[str, ...]] = {
    AssociativeLeaky: ("iterative", "prefix", "associative", *NATIVE),
    DeltaRuleLeaky: ("iterative", "associative", *NATIVE),
}
every_layer = pytest.mark.parametrize(
    "kind, method", [pytest.param(kind, method, id=f"{kind.__name__}-{method}") for kind, methods in ROUTES.items() for method in methods]
)


def make(kind: type[Any], d: int, n: int, m: int, **options: Any) -> Any:
    """A layer with the weights of its sizes, whoever asks."""
    torch.manual_seed(d * 100 + n * 10 + m)
    return kind(m, d, n, **options)


def read(layer: Any, state: torch.Tensor, query: torch.Tensor | None, spike: Any, factor: Any = 1.0) -> torch.Tensor:
    """The layer's output of one step: P = spike(S - threshold) factor, flattened, or P q."""
    p = spike(state.flatten(1) - layer.threshold).reshape(state.shape) * factor
    return (p if query is None else p @ query.reshape(len(p), layer.d_key, layer.d_value)).flatten(1)
