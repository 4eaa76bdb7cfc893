"""The criteria (A) to (D): a party's observation against the reference and its bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.verify.bounds import REDUCED, Bounds
from spikedeploy.verify.certificate import Finding, LayerCheck, OutputCheck, Verdict
from spikedeploy.verify.parties import Observation, Party, Real
from spikedeploy.verify.rounding import Bounded

UNDECIDED = 1e-4
"""Criterion (C): with more undecided decisions than this, the test says little where spikes differ."""
FLIPS = 1e-5
"""... unless so few differ that only rounding can have done it (a correct implementation flips some 1e-8 of all spikes)."""


def layer_checks(program: Program, bounds: Bounds, party: Party, on_reference: Observation, alone: Observation) -> Iterator[LayerCheck]:
    """Every layer that the party shows."""
    for step in program.spiking:
        if step.name not in on_reference.fired:
            continue
        seen, decision = on_reference.fired[step.name], bounds.decisions[step.name]
        fired = bounds.spikes[step.name] != 0
        differs = seen != fired
        near, followed = undecided(step, decision, differs)
        open_ = near | followed
        error, share = _membrane(bounds.membranes[step.name], on_reference.membranes.get(step.name), open_, step)
        steps_differing = np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1))
        yield LayerCheck(
            party=party.name,
            layer=step.name,
            decisions=fired.size,
            undecided=int(open_.sum()),
            mismatches=int((differs & ~open_).sum()),
            excused=int((differs & near).sum()),
            followed=int((differs & followed & ~near).sum()),
            first_divergence=int(steps_differing[0]) if len(steps_differing) else None,
            membrane_error=error,
            membrane_of_bound=share,
            exact=bool((decision.error == 0).all()),
            rate=float(fired.mean()),
            downstream=int((alone.fired[step.name] != fired).sum()) if step.name in alone.fired else 0,
        )


def undecided(step: S.Firing, decision: Bounded, differs: Real) -> tuple[Real, Real]:
    """Where rounding may decide (`|u - threshold| <= E`, E above 0); and what follows a spike of a resetting neuron that differed there."""
    near = (np.abs(decision.value - step.threshold) <= decision.error) & (decision.error > 0)
    if isinstance(step, S.LIF):
        turned = np.cumsum(differs & near, axis=0) > 0
        return near, np.concatenate([np.zeros_like(turned[:1]), turned[:-1]])
    return near, np.zeros_like(near)


def _membrane(reference: Bounded, seen: Real | None, open_: Real, step: S.Step) -> tuple[float | None, float | None]:
    """The largest error and its largest share of the bound; a neuron with reset is not judged once its decision is open."""
    if seen is None:
        return None, None
    error = np.abs(np.asarray(seen, np.float64) - reference.value)
    judged = np.cumsum(open_, axis=0) == 0 if isinstance(step, S.LIF) else np.ones_like(open_)
    error = np.where(judged, np.where(np.isnan(error), np.inf, error), 0.0)
    return float(error.max()), _share(error, reference.error)


def _share(error: Real, allowed: Real) -> float:
    """The largest error / bound; an error where the bound is zero counts as 1e9 bounds."""
    share = np.where(error == 0, 0.0, error / np.where(allowed > 0, allowed, 1e-300))
    return float(np.minimum(share, 1e9).max())


def output_checks(program: Program, bounds: Bounds, party: Party, on_reference: Observation, alone: Observation) -> Iterator[OutputCheck]:
    """Every output that the party gives."""
    for output in program.outputs:
        if output.name not in on_reference.outputs:
            continue
        plain, expected = bounds.outputs[output.name], _expected(program, bounds, output, on_reference)
        seen, free = (np.asarray(o.outputs[output.name], np.float64) for o in (on_reference, alone))
        if seen.shape != expected.value.shape:
            seen = free = np.full(expected.value.shape, np.nan)
        error, drift = (
            np.nan_to_num(np.abs(values - wanted), nan=np.inf) for values, wanted in ((seen, expected.value), (free, plain.value))
        )
        yield OutputCheck(
            party=party.name,
            output=output.name,
            error=_finite(error.max()),
            of_bound=_share(error, expected.error),
            values=drift.size,
            different=int((drift > plain.error).sum()),
            max_difference=_finite(drift.max()),
            agreement=_agreement(free, plain.value),
        )


def _finite(value: float) -> float:
    return float(min(value, np.finfo(np.float64).max))


def _expected(program: Program, bounds: Bounds, output: Output, seen: Observation) -> Bounded:
    """What an output must be given the party's own decisions in the layer it shows: its spikes as they were judged there."""
    writer = program.writer(output.wire)
    plain = bounds.outputs[output.name]
    if writer is None or writer.name not in seen.fired or not isinstance(writer, S.Firing):
        return plain
    fired = seen.fired[writer.name]
    if output.wire == writer.name:
        spikes = (fired * writer.amplitude).astype(np.float64)
        expected: Bounded = REDUCED[output.reduce](Bounded(spikes, np.zeros_like(spikes)))
        return expected
    if output.wire not in writer.outputs[1:]:
        return plain
    differs = fired != (bounds.spikes[writer.name] != 0)
    turned = np.cumsum(differs, axis=0) > 0
    return Bounded(plain.value, np.where(turned if output.reduce == "none" else turned.any(axis=0), np.inf, plain.error))


def _agreement(a: Real, b: Real) -> float | None:
    return float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean()) if a.ndim >= 2 and a.shape[-1] > 1 else None


def verdict(layers: Sequence[LayerCheck], outputs: Sequence[OutputCheck], findings: Sequence[Finding]) -> Verdict:
    """`different` on any failure of (A), (B), (D); `inconclusive` when (C) fails: spikes differ, and too many of them may."""
    if any(check.mismatches or (check.membrane_of_bound or 0) > 1 for check in layers):
        return "different"
    if any(check.of_bound > 1 for check in outputs) or any(finding.level == "fail" for finding in findings):
        return "different"
    if any(check.undecided > UNDECIDED * check.decisions and check.excused > max(2, FLIPS * check.decisions) for check in layers):
        return "inconclusive"
    return "equivalent"


def observations(layers: Sequence[LayerCheck], rates: Mapping[str, float]) -> Iterator[Finding]:
    """What the counts mean: layers that never fired were not tested, wide bands, flips that travelled."""
    for layer, rate in rates.items():
        if rate in (0.0, 1.0):
            word = "never" if rate == 0 else "always"
            yield Finding(
                "warn",
                f"layer '{layer}' {word} fires on this input: its threshold was hardly tested; give real data with --input",
                {"rate": rate},
            )
    for check in layers:
        if check.undecided > max(1.0, UNDECIDED * check.decisions):
            share = check.undecided / check.decisions
            yield Finding(
                "warn" if check.excused else "note",
                f"layer '{check.layer}' of {check.party}: {share:.2%} of decisions lie within the rounding bound; {check.excused} differ",
                {"undecided": check.undecided, "decisions": check.decisions, "excused": check.excused},
            )
