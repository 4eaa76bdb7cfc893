"""Whatever is handed to the event-driven engine: it runs, or `BadInput` says where, what was found and what is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.errors import BadInput
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine, Events

ENGINES = [False, pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="the native core is not built"))]


def events(*given: Any, **more: Any) -> Events:
    """`Events` of anything: what is to be refused has a wrong type on purpose."""
    return Events(*given, **more)


def program(weight: float = 0.5) -> Program:
    steps = (
        S.Affine("fc", ("input",), weight=np.full((2, 3), weight), bias=None),
        S.LIF("lif", ("fc",), decay=np.array(0.5), threshold=np.array(1.0), reset="subtract"),
    )
    return Program((3,), steps, (Output("lif", "lif"), Output("mem", "lif.mem", "max")))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"program": None}, "EventEngine: a program of type NoneType; a Program is needed"),
        ({"batch": 2**40}, r"EventEngine: batch: 1099511627776; a whole number from 1 to \d+ is needed"),
        ({"batch": -1}, "EventEngine: batch: -1"),
        ({"batch": True}, "EventEngine: batch: True"),
        ({"batch": "2"}, "EventEngine: batch: '2'"),
        ({"batch": np.nan}, "EventEngine: batch: nan"),
        ({"batch": None}, "EventEngine: batch: None"),
        ({"threads": 2**40}, "EventEngine: threads: 1099511627776; a whole number from 1 to 1024"),
        ({"threads": 0}, "EventEngine: threads: 0"),
        ({"weights": np.float32}, "EventEngine: weights <class 'numpy.float32'>; 'float32', 'int8' or 'int16' is needed"),
        ({"weights": ["int8"]}, r"EventEngine: weights \['int8'\]"),
        ({"native": "yes"}, "EventEngine: native 'yes'; True, False or None is needed"),
    ],
)
def test_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        EventEngine(**({"program": program()} | options))


@pytest.mark.parametrize("compiled", ENGINES)
@pytest.mark.parametrize(
    ("state", "text"),
    [
        (None, r"state: states of None; a dictionary of exactly \['lif'\] is needed. Start from engine.state."),
        ([("lif", 1)], "state: states of .*; a dictionary"),
        ({1: {}}, r"state: states of \['1'\]"),
        ({"lif": None}, r"state lif: states None; a dictionary of exactly \['u'\] is needed"),
        ({"lif": {"v": np.zeros((1, 2))}}, r"state lif: states \['v'\]"),
        ({"lif": {"u": None}}, "state lif.u: an array of object; real numbers are needed"),
        ({"lif": {"u": [[1.0], [1.0, 2.0]]}}, "state lif.u: .*an array of real numbers is needed"),
        ({"lif": {"u": "a"}}, "state lif.u: an array of <U1"),
        ({"lif": {"u": np.zeros((1, 2), complex)}}, "state lif.u: an array of complex128"),
        ({"lif": {"u": np.zeros((2, 2))}}, r"state lif.u: shape \(2, 2\); \(1, 2\) of finite float32 numbers is needed"),
        ({"lif": {"u": np.full((1, 2), 1e39)}}, "state lif.u: shape"),
        ({"lif": {"u": np.full((1, 2), np.nan)}}, "state lif.u: shape"),
    ],
)
def test_states(compiled: bool, state: Any, text: str) -> None:
    engine = EventEngine(program(), native=compiled)
    engine.step(np.ones((1, 3)))
    before = engine.state["lif"]["u"]
    with pytest.raises(BadInput, match=text):
        engine.state = state
    assert engine.state["lif"]["u"].tobytes() == before.tobytes()


ONE = np.array([0])


@pytest.mark.parametrize("compiled", ENGINES)
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (lambda: events(ONE, ONE, 2**60), r"events.steps: 1152921504606846976; a whole number from 1 to 2147483647 is needed"),
        (lambda: events(ONE, ONE, -3), "events.steps: -3"),
        (lambda: events(ONE, ONE, True), "events.steps: True"),
        (lambda: events(ONE, ONE, None), "events.steps: None"),
        (lambda: events(ONE, [np.nan], 2), "events.time: float64"),
        (lambda: events([True], ONE, 2), "events.index: bool"),
        (lambda: events([-1], ONE, 2), "events.index: values from -1 to -1"),
        (lambda: events(np.array([2**64 - 1], np.uint64), ONE, 2), "events.index: a value of 18446744073709551615"),
        (lambda: events([2**70], ONE, 2), "events.index: an array of object"),
        (lambda: events(None, ONE, 2), "events.index: an array of object"),
        (lambda: events(ONE, ONE[None], 2), r"events.time: int64 of shape \(1, 1\)"),
        (lambda: events(ONE, [0, 1], 2), r"events.time: int64 of shape \(2,\)"),
        (lambda: events([[0], [0, 1]], ONE, 2), "events.index: .*an array of real numbers is needed"),
        (lambda: events(ONE, ONE, 2, value=np.array([np.inf])), "events.value"),
        (lambda: events(ONE, ONE, 2, value=np.array(["x"])), "events.value: an array of <U1"),
        (lambda: events(ONE, ONE, 2, sample=np.array([1])), "events.sample: values from 1 to 1"),
        (lambda: None, "input: an array of object"),
        (lambda: "spikes", "input: an array of <U6"),
        (lambda: [[1.0], [1.0, 2.0]], "input: "),
        (lambda: torch.zeros(2, 1, 3, requires_grad=True), "input: Can't call numpy.* an array of real numbers is needed"),
        (lambda: 1.0, "input: an array of shape"),
        (lambda: np.zeros((2, 1, 3), complex), "input: an array of complex128"),
        (lambda: np.full((2, 1, 3), 1e39), "input: numbers beyond float32"),
    ],
)
def test_inputs(compiled: bool, given: Callable[[], Any], text: str) -> None:
    engine = EventEngine(program(), native=compiled)
    with pytest.raises(BadInput, match=text):
        engine.run(given())


@pytest.mark.parametrize("compiled", ENGINES)
@pytest.mark.parametrize("given", [None, "spikes", [[1.0], [1.0, 2.0]], np.zeros((2, 3)), np.full((1, 3), 1e39), np.full((1, 3), np.nan)])
def test_steps(compiled: bool, given: Any) -> None:
    with pytest.raises(BadInput, match="input: "):
        EventEngine(program(), native=compiled).step(given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"record": "lif"}, "run: record 'lif'; a list of the names of wires is needed"),
        ({"record": None}, "run: record None"),
        ({"record": [1]}, r"run: record \[1\]"),
        ({"record": ["nowhere"]}, r"run: record \['nowhere'\]; wires of the program are needed: fc, input, lif, lif.mem"),
        ({"order": None}, "run: order None; 'layer' or 'step' is needed"),
        ({"chunk": 0}, "run: chunk: 0; a whole number from 1"),
        ({"chunk": 2.0}, "run: chunk: 2.0"),
        ({"chunk": 2**40}, "run: chunk: 1099511627776"),
    ],
)
def test_run_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        EventEngine(program()).run(np.zeros((2, 1, 3)), **options)


def test_events_in_any_order_and_twice_at_a_place_add_up() -> None:
    x = np.zeros((3, 1, 3), np.float32)
    x[0, 0, 2], x[2, 0, 0], x[2, 0, 1] = 1, 3, 1
    events = Events(np.array([1, 0, 2, 0]), np.array([2, 2, 0, 2]), 3, value=np.array([1.0, 1.0, 1.0, 2.0]))
    found, expected = EventEngine(program()).run(events), EventEngine(program()).run(x)
    assert found.outputs["mem"].tobytes() == expected.outputs["mem"].tobytes()


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
def test_beyond_float32_is_infinite_without_a_word() -> None:
    """Warnings are errors here; both engines go on with infinity and with what follows from it, to the same bytes."""
    x = np.random.default_rng(0).choice(np.array([3e38, -3e38, 0, 1], np.float32), (30, 1, 3))
    runs = [EventEngine(program(3e38), native=compiled).run(x, record=["fc", "lif.mem"]) for compiled in (False, True)]
    for name, value in runs[0].wires.items():
        assert value.tobytes() == runs[1].wires[name].tobytes(), name
    assert np.isinf(runs[0].wires["fc"]).any() and np.isnan(runs[0].wires["lif.mem"]).any()
    assert runs[0].spikes == runs[1].spikes


def test_bad_options() -> None:
    with pytest.raises(BadInput, match="batch: 0"):
        EventEngine(program(), batch=0)
    with pytest.raises(BadInput, match=r"batch: 1\.5"):
        EventEngine(program(), batch=1.5)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="weights 'int4'"):
        EventEngine(program(), weights="int4")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="states of"):
        EventEngine(program()).state = {}
    with pytest.raises(BadInput, match="nowhere"):
        EventEngine(program()).run(np.zeros((1, 1, 3)), record=["nowhere"])
