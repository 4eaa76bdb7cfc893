"""Steps, sequences, events, resets and states in any order on one engine: compiled and NumPy stay together, to the last byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from events_programs import random_input, random_program
from hypothesis import given, settings
from hypothesis import strategies as st
from test_events import as_events, stack

from spikedeploy import native
from spikedeploy.runtime import EventEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core is not built")
ACTIONS = ("step", "run", "in steps", "events", "record", "reset", "save", "load", "look")


def act(engine: EventEngine, action: str, x: np.ndarray, saved: list[Any]) -> Any:
    """One thing that a user may do; gives what they see of it."""
    if action == "step":
        return [{name: y.tobytes() for name, y in engine.step(now).items()} for now in x]
    if action in ("run", "in steps", "events", "record"):
        record = list(engine.program.wires)[-2:] if action == "record" else []
        run = engine.run(as_events(x) if action == "events" else x, record=record, order="step" if action == "in steps" else "layer")
        return run.spikes, [y.tobytes() for y in (*run.outputs.values(), *(run.wires[wire] for wire in record))]
    if action == "reset":
        engine.reset()
    elif action == "save":
        saved[:] = [engine.state]
    elif action == "load" and saved:
        engine.state = saved[0]
    elif action == "look":
        return {(step, name): u.tobytes() for step, states in engine.state.items() for name, u in states.items()}
    return None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 6)), min_size=3, max_size=12))
def test_any_order(seed: int, actions: list[tuple[str, int]]) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 80, 2)
    engines = [EventEngine(program, 2, native=False), EventEngine(program, 2, threads=1 + seed % 2, native=True)]
    saved: list[list[Any]] = [[], []]
    first = 0
    for action, steps in [*actions, ("look", 1)]:
        plain, compiled = (act(engine, action, x[first : first + steps], mine) for engine, mine in zip(engines, saved, strict=True))
        assert plain == compiled, action
        first += steps


def spikes(*rates: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.random((1, 70)) < rate).astype(np.float32) for rate in rates]


def test_a_reset_after_silence_forgets_the_leak_that_was_put_off() -> None:
    engine = EventEngine(stack(), native=True)
    for now in spikes(1, *[0] * 40):
        engine.step(now)
    engine.reset()
    assert all(not u.any() for states in engine.state.values() for u in states.values())


@pytest.mark.parametrize("between", ["run", "in steps", "events"])
def test_a_step_after_a_run_reads_its_own_input(between: str) -> None:
    before, middle, after = spikes(0.3, 0.3, 0.3)
    engine, other = EventEngine(stack(), native=True), EventEngine(stack(), native=False)
    for each in (engine, other):
        each.step(before)
        act(each, between, middle[None].copy(), [])
    assert act(engine, "step", after[None], []) == act(other, "step", after[None], [])
    assert act(engine, "look", after, []) == act(other, "look", after, [])


def test_spikes_of_steps_are_not_counted_by_a_run() -> None:
    engine, silence = EventEngine(stack(), native=True), np.zeros((1, 1, 70), np.float32)
    for now in spikes(0.5, 0.5, 0.5):
        engine.step(now)
    engine.reset()
    assert engine.run(silence, order="step").spikes == {"lif1": 0, "lif2": 0}
