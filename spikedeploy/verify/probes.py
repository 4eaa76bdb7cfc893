"""Exact ties: the one input on which `>` and `>=` differ is not met by chance, so it is made.

The wire in front of each threshold is forced to the threshold itself, in float32, and the answer compared. A neuron with reset gets its
threshold as its first input, from a state of zero. Where the artifact holds the model's own thresholds, its two float32 neighbours are
tried as well: they tell a threshold that is off by a little, which chance need not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import ProgramParty, Real


def tie_findings(party: ProgramParty) -> Iterator[Finding]:
    """A failure per layer that answers an exact tie otherwise than its source."""
    for name, place in party.places().items():
        source, own = place.source, place.own
        here, there = place.cut(fires_on_tie(party.program, own)), fires_on_tie(party.source, source)
        wrong = int((here != there).sum())
        if wrong:
            signs = {True: ">", False: ">="}
            yield Finding(
                "fail",
                f"layer '{name}' of {party.name}: {wrong} of {here.size} neurons decide an exact tie otherwise "
                f"(the model fires on {signs[source.strict]}, the artifact on {signs[own.strict]})",
                {"layer": name, "neurons": wrong},
            )


def fires_on_tie(program: Program, step: S.Firing) -> Real:
    """Which neurons `(*shape)` of the layer fire when what is compared equals the threshold exactly."""
    return fires_near(program, step, 0)


def fires_near(program: Program, step: S.Firing, side: int) -> Real:
    """Which neurons `(*shape)` fire on the threshold (side 0), or on the float32 number next below (-1) or above (1) it."""
    value = near(step.threshold, program.wires[step.inputs[0]], side)
    result = reference.STEP[type(step)](reference.cast(step, np.float32), value[None], {"u": np.zeros((1, *value.shape), np.float32)})
    spikes = result[0] if isinstance(result, tuple) else result
    return np.asarray(spikes[0] != 0)


def near(threshold: Real, shape: tuple[int, ...], side: int) -> Real:
    """The threshold of every neuron in float32, or its neighbour on one side."""
    tie = np.broadcast_to(np.asarray(threshold, np.float32), shape)
    return np.nextafter(tie, np.float32(np.inf * side)) if side else tie
