"""Engines in threads, in copies and pickles, and results that outlive them."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from events_programs import random_input, random_program
from test_events import assert_same, stack

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine

ENGINES = [False, pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="the native core is not built"))]
COPIES: dict[str, Callable[[EventEngine], EventEngine]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda engine: pickle.loads(pickle.dumps(engine)),
}


@pytest.mark.parametrize("compiled", ENGINES)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("seed", [1, 2, 7, 11])
def test_a_copy_goes_on_from_the_same_state_and_is_another_engine(how: str, seed: int, compiled: bool) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 9, 2)
    engine = EventEngine(program, 2, weights="int8", native=compiled)
    engine.run(x)
    other = COPIES[how](engine)
    assert (other.native, other.batch, other.weights) == (compiled, 2, "int8")
    expected = engine.run(x)
    assert_same(other.run(x), expected)
    assert_same(COPIES[how](engine).run(x), engine.run(x))


def together(*work: Callable[[], None]) -> None:
    """All at once, each in its thread; the first error is raised."""
    errors: list[Exception] = []

    def guarded(run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=guarded, args=(run,)) for run in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("compiled", ENGINES)
def test_engines_in_threads_of_their_own(compiled: bool) -> None:
    x = (np.random.default_rng(0).random((60, 3, 70)) < 0.2).astype(np.float32)
    expected = EventEngine(stack(), 3, native=compiled).run(x)

    def work(threads: int) -> None:
        engine = EventEngine(stack(), 3, threads=threads, native=compiled)
        for _ in range(5):
            engine.reset()
            assert_same(engine.run(x), expected)

    together(*(lambda threads=threads: work(threads) for threads in (1, 2, 1, 3)))


@pytest.mark.parametrize("compiled", ENGINES)
def test_calls_on_a_shared_engine_take_turns(compiled: bool) -> None:
    """A counter without leak: whatever the order, no step is lost, and none is done twice."""
    program = Program((40,), (S.Integrator("sum", ("input",), decay=np.array(1.0)),), (Output("sum", "sum"),))
    engine, one = EventEngine(program, native=compiled), np.ones((1, 40), np.float32)

    def steps() -> None:
        for _ in range(40):
            engine.step(one)

    def runs() -> None:
        for length in range(1, 21):
            run = engine.run(np.repeat(one[None], length, axis=0), chunk=1 + length % 5)
            assert np.array_equal(np.diff(run.outputs["sum"][:, 0, 0]), np.ones(length - 1))

    def looks() -> None:
        for _ in range(40):
            assert np.unique(engine.state["sum"]["u"]).size == 1
            copy.copy(engine)

    together(steps, runs, looks, steps, runs)
    assert np.all(engine.state["sum"]["u"] == 2 * 40 + 2 * 210)


@pytest.mark.parametrize("compiled", ENGINES)
def test_results_outlive_the_engine_and_its_next_run(compiled: bool) -> None:
    x = (np.random.default_rng(0).random((9, 1, 70)) < 0.3).astype(np.float32)
    engine = EventEngine(stack(), native=compiled)
    run, stepped, state = engine.run(x, record=["fc1"]), engine.step(x[0]), engine.state
    kept: list[Any] = [*run.outputs.values(), run.wires["fc1"], *stepped.values(), *(u for each in state.values() for u in each.values())]
    before = [value.tobytes() for value in kept]
    engine.run(x * 0, record=["fc1"])
    engine.step(x[1])
    del engine
    gc.collect()
    assert [value.tobytes() for value in kept] == before


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_an_engine_that_is_asked_for_many_things_keeps_few() -> None:
    """Chunks, lengths and recorded wires have each their own memory; the oldest goes."""
    engine, x = EventEngine(stack()), np.ones((40, 1, 70), np.float32)
    expected = engine.run(x)
    for chunk in [*range(1, 40), 2**31 - 1]:
        engine.reset()
        assert_same(engine.run(x, chunk=chunk, record=["fc1"] if chunk % 2 else []), expected)
        engine.step(x[0])
    assert len(engine._machine.tapes) == 8


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_an_engine_has_one_stream() -> None:
    """Two would write to one input."""
    x = (np.random.default_rng(0).random((9, 1, 70)) < 0.3).astype(np.float32)
    engine, expected = EventEngine(stack()), EventEngine(stack()).run(x).outputs["spikes"]
    first = engine.stream()
    for now, spikes in zip(x, expected, strict=True):
        assert engine.stream() is first
        first.input[:] = now
        first.step()
        assert np.array_equal(first.outputs["spikes"], spikes)
    engine.run(x)
    engine.step(x[0])
    assert engine.stream() is first


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_a_stream_keeps_what_it_needs_of_its_engine() -> None:
    x = (np.random.default_rng(0).random((9, 1, 70)) < 0.3).astype(np.float32)
    expected = EventEngine(stack()).run(x).outputs["spikes"]
    stream = EventEngine(stack()).stream()
    written, step, outputs = stream.input, stream.step, stream.outputs
    del stream
    gc.collect()
    for now, spikes in zip(x, expected, strict=True):
        written[:] = now
        step()
        assert np.array_equal(outputs["spikes"], spikes)
