"""What a report says about equivalence: the certificate, and how wide the undecided band around each threshold is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from spikedeploy.program import Program
from spikedeploy.steps import Firing

STEPS, BATCH = 64, 4


@dataclass(frozen=True, slots=True)
class Band:
    """A spiking layer's undecided band on the data's beginning: a decision whose membrane is within `width` of the threshold may fall
    either way."""

    width: float
    undecided: int
    decisions: int


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The certificate as plain data, and a `Band` per spiking layer; `steps` and `batch` of the data that both were made on."""

    certificate: Mapping[str, Any]
    bands: Mapping[str, Band]
    steps: int
    batch: int


def bands_of(program: Program, x: npt.ArrayLike) -> dict[str, Band]:
    """The rounding bound of every decision on `x`, from the float64 reference."""
    from spikedeploy.verify.bounds import bound

    found = {}
    for name, decision in bound(program, np.asarray(x, np.float32)).decisions.items():
        theta = cast(Firing, program.step(name)).threshold
        inside = np.abs(decision.value - theta) <= decision.error
        found[name] = Band(float(decision.error.max()), int(np.count_nonzero(inside)), int(decision.value.size))
    return found


def gather(model: Any, program: Program, x: npt.ArrayLike, options: Mapping[str, Any]) -> Evidence:
    """Verifies `model` against its own iterative form on the beginning of the data."""
    from spikedeploy.verify import verify

    part = np.asarray(x)[:STEPS, :BATCH]
    source = f"the first {len(part)} steps of {part.shape[1]} samples"
    certificate = verify(model, None, part, options=dict(options), input_source=source)
    return Evidence(certificate.as_dict(), bands_of(program, part), *part.shape[:2])
