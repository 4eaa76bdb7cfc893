"""What one operation of the compiled engine is before it has wires: kind, sizes, arrays, states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from spikedeploy.program import Program
from spikedeploy.runtime.events_pack import PANELS
from spikedeploy.runtime.events_plan import uniform_amplitude
from spikedeploy.runtime.events_quant import Quantised
from spikedeploy.runtime.events_state import Slot
from spikedeploy.steps import Array, Step

KINDS = (
    "EVENTS",
    "LAYER",
    "CONV",
    "POOL",
    "SCALE",
    "ADD",
    "MUL",
    "ACTIVATION",
    "DELAY",
    "MEMORY",
    "DELTA",
    "MATMUL",
    "NORM",
    "L2",
    "SSM",
    "SLICE",
    "TOPK",
    "NEAREST",
    "EMBEDDING",
)
"""The order of the enumeration in `native/events_common.inc`."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One operation without its wires: kind, sizes, arrays by field of `sd_event_op`, states, and which wires it writes."""

    kind: str
    out: str | None
    mem: str | None = None
    current: str | None = None
    mode: int = 0
    strict: bool = True
    sizes: tuple[int, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    slots: Mapping[tuple[str, str], Slot] = field(default_factory=dict)
    silent: Array | None = None
    widest: int = PANELS[0]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What packing needs to know besides the step."""

    program: Program
    batch: int
    quantised: Mapping[str, Quantised]

    def shape(self, wire: str) -> tuple[int, ...]:
        return self.program.wires[wire]


def integers(context: Context, step: Step, layout: Callable[[Array], Array], spread: Callable[[Array], Array]) -> dict[str, Array]:
    """Integer weights and what turns their sums into currents; empty for float32."""
    found = context.quantised.get(step.name)
    if found is None:
        return {}
    amplitude = uniform_amplitude(context.program, step.inputs[0])
    scale = found.scale * (np.float32(1) if amplitude is None else amplitude)
    return {"integer": layout(found.q), "scale": spread(scale)}
