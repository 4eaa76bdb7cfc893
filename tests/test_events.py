"""The event-driven engine: the same bytes however it runs, and the reference's numbers wherever rounding decides nothing."""

from __future__ import annotations

import platform
from dataclasses import replace

import numpy as np
import pytest
import torch
from events_programs import random_input, random_program
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine, Events, events_native, reference
from spikedeploy.runtime.events_ops import PACK
from spikedeploy.runtime.reference import Run

needs_native = pytest.mark.skipif(not native.available(), reason="the native core is not built")
SEEDS = st.integers(0, 10_000)
TINY = float(np.finfo(np.float32).tiny)
FORMATS = st.sampled_from(["float32", "float32", "int8", "int16"])


def assert_same(a: Run, b: Run) -> None:
    """Every byte of outputs, final states and counts, and of the wires that both recorded."""
    assert a.spikes == b.spikes
    for name, value in a.outputs.items():
        assert value.dtype == np.float32 and value.tobytes() == b.outputs[name].tobytes(), name
    for step, states in a.states.items():
        for name, value in states.items():
            assert value.tobytes() == b.states[step][name].tobytes(), f"{step}.{name}"
    for name in set(a.wires) & set(b.wires):
        assert a.wires[name].tobytes() == b.wires[name].tobytes(), name


@needs_native
@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=SEEDS, batch=st.integers(1, 3), weights=FORMATS)
def test_compiled_equals_numpy(seed: int, batch: int, weights: str) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 7, batch)
    plain = EventEngine(program, batch, weights=weights, native=False).run(x)
    assert_same(plain, EventEngine(program, batch, threads=1 + seed % 2, weights=weights, native=True).run(x, chunk=1 + seed % 8))


@needs_native
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, weights=FORMATS)
def test_every_wire_is_the_same(seed: int, weights: str) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 5, 2)
    plain = EventEngine(program, 2, weights=weights, native=False).run(x, record=program.wires)
    assert_same(plain, EventEngine(program, 2, weights=weights, native=True).run(x, record=program.wires))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS, compiled=st.sampled_from([True, False]))
def test_orders_chunks_pieces_and_events_agree(seed: int, compiled: bool) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 12, 2)
    compiled = compiled and native.available()
    whole = EventEngine(program, 2, native=compiled).run(x)
    assert_same(whole, EventEngine(program, 2, native=compiled).run(x, order="step"))
    assert_same(whole, EventEngine(program, 2, native=compiled).run(x, chunk=5))
    assert_same(whole, EventEngine(program, 2, native=compiled).run(as_events(x)))
    pieces = EventEngine(program, 2, native=compiled)
    pieces.run(x[:4])
    stepped = [pieces.step(now) for now in x[4:]]
    final = pieces.state
    for step, states in whole.states.items():
        for name, value in states.items():
            assert value.tobytes() == final[step][name].tobytes()
    for output in program.outputs:
        if output.reduce == "none":
            assert whole.outputs[output.name][4:].tobytes() == np.stack([s[output.name] for s in stepped]).tobytes()


def as_events(x: np.ndarray) -> Events:
    """A dense sequence as shuffled address events, each value given as two halves that add up."""
    flat = x.reshape(len(x), x.shape[1], -1)
    time, sample, index = np.nonzero(flat)
    value = flat[time, sample, index] / 2
    order = np.random.default_rng(0).permutation(2 * len(time))
    both = [np.concatenate([part, part])[order] for part in (index, time, sample, value)]
    return Events(both[0], both[1], len(x), value=both[3], sample=both[2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_agrees_with_the_reference(seed: int) -> None:
    """Step by step on the engine's own inputs: each step's output differs from float64 by rounding only, and spikes not at all outside
    the margin."""
    program = random_program(seed)
    x = random_input(program, seed, 1, 2)
    run = EventEngine(program, 2, native=None).run(x, record=program.wires)
    forced = {name: run.wires[name] for name in program.wires if name != "input"}
    exact = reference.run(program, x, record=program.wires, forced=forced)
    for step in program.steps:
        for wire in step.outputs:
            if isinstance(step, S.Threshold):
                near = np.abs(run.wires[step.inputs[0]] - step.threshold) < 1e-5
                assert np.all((run.wires[wire] == exact.wires[wire]) | near | (np.abs(run.wires[wire] - exact.wires[wire]) < 1e-6))
            elif not isinstance(step, S.LIF | S.TopK | S.Nearest):
                np.testing.assert_allclose(run.wires[wire], exact.wires[wire], rtol=2e-5, atol=2e-5)


def stack(bias: float = 0.05, decay: float = 0.9) -> Program:
    rng = np.random.default_rng(0)
    return Program(
        (70,),
        (
            S.Affine("fc1", ("input",), weight=rng.normal(size=(200, 70)) * 0.3, bias=np.full(200, bias)),
            S.Integrator("lif1.mem", ("fc1",), decay=np.array(decay)),
            S.Threshold("lif1", ("lif1.mem",), threshold=np.array(1.0)),
            S.Affine("fc2", ("lif1",), weight=rng.normal(size=(10, 200)) * 0.3, bias=None),
            S.LIF("lif2", ("fc2",), decay=np.array(0.8), threshold=np.array(1.0), reset="zero"),
        ),
        (Output("spikes", "lif2"), Output("count", "lif2", "sum")),
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_silence_is_skipped_and_caught_up_exactly(compiled: bool) -> None:
    """A long silence with a bias that alone never fires: the same bytes as a run whose membranes are watched at every step."""
    x = np.zeros((400, 1, 70), np.float32)
    x[[0, 1, 150, 399], 0, ::3] = 1
    program = stack()
    compiled = compiled and native.available()
    quick, watched = (EventEngine(program, native=compiled).run(x, record=record) for record in ((), ("fc1", "lif1.mem", "lif2.mem")))
    assert_same(quick, watched)
    assert quick.spikes["lif1"] > 0


@needs_native
@pytest.mark.parametrize("theta", [-1e-37, -1e-39, 0.0, 1e-39, 1e-37, 1e-36])
@pytest.mark.parametrize("decay", [0.5, 0.0, 0.999])
@pytest.mark.parametrize("bias", [0.0, 3e-38])
def test_states_that_leave_the_normal_range(theta: float, decay: float, bias: float) -> None:
    """Membranes that leak below 2^-126, or begin there, and are driven again, whether or not somebody watches them, whole and in
    pieces; where silence is proven, too."""
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((150, 8)) < 0.5, rng.normal(size=(150, 8)) * 1e-37, -1.05 * bias)
    steps = (
        S.Affine("fc", ("input",), weight=weight, bias=np.full(150, bias)),
        S.Integrator("mem", ("fc",), decay=np.full(150, decay)),
        S.Threshold("spk", ("mem",), threshold=np.array(theta)),
    )
    program = Program((8,), steps, (Output("spk", "spk"),))
    x = (rng.random((90, 1, 8)) < 0.2).astype(np.float32) * (rng.random((90, 1, 1)) < 0.3)
    plain = EventEngine(program, native=False).run(x)
    for options in ({}, {"chunk": 7}, {"order": "step"}, {"record": ["mem"]}):
        assert_same(plain, EventEngine(program, native=True).run(x, **options))


def test_a_bias_that_fires_alone_is_not_skipped() -> None:
    x = np.zeros((60, 1, 70), np.float32)
    run = EventEngine(stack(bias=0.2)).run(x)
    exact = reference.run(stack(bias=0.2), x, dtype=np.float32)
    assert run.spikes == exact.spikes and run.spikes["lif1"] > 0


@needs_native
@pytest.mark.parametrize("weights", ["float32", "int8", "int16"])
@pytest.mark.parametrize("value", [1.0, 0.75])
def test_layers_beyond_the_cache(weights: str, value: float) -> None:
    """2,200 outputs: two groups of panels that lie together, and the rest, in panels of 128 and of 64 columns;
    whole and in steps, from numbers and from spikes."""
    rng = np.random.default_rng(0)
    program = Program(
        (190,),
        (
            S.Affine("fc1", ("input",), weight=rng.normal(size=(2200, 190)) * 0.3, bias=rng.normal(size=2200) * 0.1),
            S.Integrator("mem1", ("fc1",), decay=np.array(0.9)),
            S.Threshold("spk1", ("mem1",), threshold=np.array(3.0)),
            S.Affine("fc2", ("spk1",), weight=rng.normal(size=(1100, 2200)) * 0.1, bias=None),
            S.LIF("spk2", ("fc2",), decay=np.array(0.8), threshold=np.array(1.0), reset="subtract"),
        ),
        (Output("spikes", "spk2"), Output("count", "spk1", "sum")),
    )
    x = ((rng.random((6, 2, 190)) < 0.2) * value).astype(np.float32)
    x[3] = 0
    plain = EventEngine(program, 2, weights=weights, native=False).run(x)
    assert plain.spikes["spk1"] > 0 and plain.spikes["spk2"] > 0
    assert_same(plain, EventEngine(program, 2, weights=weights).run(x))
    for sample in range(2):
        one = EventEngine(program, weights=weights).run(x[:, sample : sample + 1], order="step")
        assert one.outputs["spikes"].tobytes() == plain.outputs["spikes"][:, sample : sample + 1].tobytes()
        for step, states in one.states.items():
            assert states["u"][0].tobytes() == plain.states[step]["u"][sample].tobytes()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("theta", [-1.5, -1.2e-38, TINY * -1, -1e-39, -1e-45, -0.0, 0.0, 1e-45, 1e-39, TINY, 1.2e-38, 0.5, 3.0])
def test_a_membrane_on_its_threshold(theta: float, strict: bool) -> None:
    """Membranes one number below, on and above the threshold, in a row of 70 neurons: only `strict` decides about the middle ones."""
    around = np.nextafter(np.float32(theta), np.array([-np.inf, theta, np.inf], np.float32))
    weight = np.resize(around, 70)[:, None]
    program = Program(
        (1,),
        (
            S.Affine("fc", ("input",), weight=weight, bias=None),
            S.Integrator("mem", ("fc",), decay=np.array(0.0)),
            S.Threshold("spk", ("mem",), threshold=np.array(theta), strict=strict),
        ),
        (Output("spk", "spk"),),
    )
    settled = np.where(np.abs(weight[:, 0]) < np.finfo(np.float32).tiny, np.float32(0), weight[:, 0])
    expected = settled > np.float32(theta) if strict else settled >= np.float32(theta)
    for compiled in {False, native.available()}:
        run = EventEngine(program, native=compiled).run(np.ones((2, 1, 1), np.float32))
        assert np.array_equal(run.outputs["spk"][1, 0] == 1, expected)


def test_reset_state_and_continuation() -> None:
    program, x = stack(), (np.random.default_rng(1).random((20, 3, 70)) < 0.2).astype(np.float32)
    engine = EventEngine(program, 3)
    first = engine.run(x)
    middle = engine.state
    second = engine.run(x)
    engine.reset()
    assert_same(first, engine.run(x))
    engine.state = middle
    assert_same(second, engine.run(x))


def test_one_step_one_neuron() -> None:
    program = Program((1,), (S.Threshold("s", ("input",), threshold=np.array(0.5)),), (Output("s", "s"),))
    assert EventEngine(program).step(np.ones((1, 1)))["s"] == 1


def test_integers_are_exact_and_close() -> None:
    """int8 weights on spikes: the sum is the integer one, so twice the input rows give twice the drive, to the last bit."""
    rng = np.random.default_rng(2)
    program = Program((600,), (S.Affine("y", ("input",), weight=rng.normal(size=(5, 600)), bias=None),), (Output("y", "y"),))
    x = (rng.random((3, 1, 600)) < 0.9).astype(np.float32)
    y = EventEngine(program, weights="int8").run(x).outputs["y"]
    scale = (np.abs(program.steps[0].weight.astype(np.float32)).max(axis=1) / np.float32(127)).astype(np.float32)
    q = np.rint(program.steps[0].weight.astype(np.float32) / scale[:, None]).astype(np.int64)
    expected = (x[:, 0].astype(np.int64) @ q.T).astype(np.float32) * scale
    assert y[:, 0].tobytes() == expected.tobytes()


@needs_native
@pytest.mark.parametrize("weights", ["float32", "int8", "int16"])
def test_a_map_over_the_last_of_several_axes(weights: str) -> None:
    """The integers of each row, spikes or not, are its own matter."""
    rng = np.random.default_rng(3)
    steps = (
        S.Affine("y", ("input",), weight=rng.normal(size=(5, 9)), bias=rng.normal(size=5)),
        S.LIF("s", ("y",), decay=np.array(0.9), threshold=np.array(0.5), reset="subtract"),
    )
    program = Program((3, 9), steps, (Output("s", "s"), Output("y", "y")))
    x = np.where(rng.random((6, 2, 3, 9)) < 0.5, np.where(rng.random((6, 2, 3, 1)) < 0.5, 1, 0.3), 0).astype(np.float32)
    plain, compiled = (EventEngine(program, 2, weights=weights, native=native) for native in (False, True))
    assert_same(plain.run(x), compiled.run(x))


@needs_native
@pytest.mark.parametrize("threshold", [0.0, -0.0, 2.0**-126])
@pytest.mark.parametrize("strict", [True, False])
def test_a_processor_that_flushes_denormals(threshold: float, strict: bool) -> None:
    """As training may have told it to: membranes at rest are compared with a threshold of zero all the same."""
    steps = (
        S.Affine("a", ("input",), weight=np.random.default_rng(0).normal(size=(40, 9)), bias=None),
        S.Integrator("u", ("a",), decay=np.array(0.5)),
        S.Threshold("s", ("u",), threshold=np.array(threshold), strict=strict),
    )
    program, x = Program((9,), steps, (Output("s", "s"),)), np.zeros((300, 1, 9), np.float32)
    x[100] = 1
    expected = EventEngine(program, native=False).run(x)
    flushed = torch.set_flush_denormal(True)
    try:
        found = EventEngine(program, native=True).run(x)
    finally:
        torch.set_flush_denormal(False)
    assert flushed or platform.machine() not in ("x86_64", "AMD64")
    assert_same(expected, found)


@needs_native
@pytest.mark.parametrize("missing", [S.Affine, S.Activation, S.Nearest])
def test_a_kind_without_a_compiled_form_runs_between_those_that_have_one(missing: type[S.Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_native, "PACK", {kind: pack for kind, pack in PACK.items() if kind is not missing})
    rng = np.random.default_rng(0)
    steps = (
        S.Affine("a", ("input",), weight=rng.normal(size=(9, 7)), bias=rng.normal(size=9)),
        S.LIF("s", ("a",), decay=np.array(0.9), threshold=np.array(0.5), reset="subtract"),
        S.Affine("b", ("s",), weight=rng.normal(size=(5, 9)), bias=None),
        S.Activation("c", ("b",), function="tanh"),
        S.Nearest("d", ("c",), levels=np.linspace(-1, 1, 5)),
    )
    program, x = Program((7,), steps, (Output("d", "d"), Output("s", "s.mem"))), rng.normal(size=(9, 2, 7))
    found = EventEngine(program, 2, native=True)
    assert not found._machine.compiled
    assert_same(EventEngine(program, 2, native=False).run(x), found.run(x, chunk=4))
    assert_same(EventEngine(program, 2, native=False).run(as_events(x.astype(np.float32))), EventEngine(program, 2).run(as_events(x)))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "step",
    [S.TopK("y", ("input",), 2), S.Affine("y", ("input",), weight=np.eye(3), bias=None), S.Reshape("y", ("input",), (6,))],
    ids=lambda step: type(step).__name__,
)
def test_a_program_without_any_compiled_step(step: S.Step, compiled: bool) -> None:
    program = Program((2, 3), (step,), (Output("y", "y"),))
    x = np.arange(-12, 12).reshape(4, 1, 2, 3).astype(np.float32)
    engine = EventEngine(program, native=compiled and native.available())
    exact = reference.run(program, x, dtype=np.float32).outputs["y"]
    assert np.array_equal(engine.run(x).outputs["y"], exact)
    assert all(np.array_equal(engine.step(now)["y"], y) for now, y in zip(x, exact, strict=True))


def test_int16_refuses_a_sum_that_could_overflow() -> None:
    wide = Program((70_000,), (S.Affine("y", ("input",), weight=np.ones((1, 70_000)), bias=None),), (Output("y", "y"),))
    with pytest.raises(ModelRefused, match=r"layer 0 'y' \(Affine\): a fan-in of 70000; int16 sums must fit in 32 bits"):
        EventEngine(wide, weights="int16")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"index": [70]}, "events.index: values from 70 to 70; they must lie in"),
        ({"time": [3]}, "events.time: values from 3 to 3; they must lie in"),
        ({"index": [0.5]}, "events.index: float64"),
        ({"value": [np.nan]}, "events.value"),
        ({"sample": [1]}, "events.sample"),
        ({"steps": 0}, "events.steps: 0; a whole number from 1"),
        ({"steps": 2.5}, r"events.steps: 2\.5; a whole number"),
        ({"value": ["a"]}, "events.value: an array of <U1"),
        ({"value": [1e300]}, "events.value: shape"),
        ({"index": [0, 0], "time": [0, 0], "value": [3e38, 3e38]}, "add up beyond float32"),
    ],
)
def test_bad_events(change: dict[str, object], text: str) -> None:
    events = Events(np.array([0]), np.array([0]), 3)
    with pytest.raises(BadInput, match=text):
        EventEngine(stack()).run(replace(events, **{k: np.array(v) if k != "steps" else v for k, v in change.items()}))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((3, 1, 69)), "input: an array of shape"),
        (np.zeros((3, 2, 70)), "a batch of 2; the engine was made for 1"),
        (np.full((3, 1, 70), np.nan), "NaN or infinity"),
        (np.full((3, 1, 70), 1e300), "beyond float32"),
    ],
)
def test_bad_input(x: np.ndarray, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        EventEngine(stack()).run(x)


def test_embedding_reads_tokens() -> None:
    program = Program(
        (), (S.Embedding("e", ("input",), table=np.arange(12.0).reshape(4, 3)), S.Activation("a", ("e",), function="tanh")), (Output("a",
        "a"),), "index"
    )  # fmt: skip
    x = np.array([[1], [3]])
    run = EventEngine(program).run(x)
    np.testing.assert_allclose(run.outputs["a"], np.tanh(np.arange(12.0).reshape(4, 3)[x]), rtol=1e-6)


@needs_native
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_streams_are_steps(seed: int) -> None:
    program = random_program(seed)
    x = random_input(program, seed, 6, 2)
    engine, other = EventEngine(program, 2, native=True), EventEngine(program, 2, native=False)
    stream = engine.stream()
    for now in x:
        stream.input[:] = now
        stream.step()
        expected = other.step(now)
        for name, value in stream.outputs.items():
            assert np.ascontiguousarray(value).tobytes() == expected[name].tobytes()


def test_a_bad_step_leaves_the_state_alone() -> None:
    engine = EventEngine(stack())
    engine.step(np.ones((1, 70)))
    before = engine.state["lif1.mem"]["u"]
    with pytest.raises(BadInput, match="NaN or infinity"):
        engine.step(np.full((1, 70), np.inf))
    with pytest.raises(BadInput, match="NaN or infinity"):
        engine.run(np.concatenate([np.ones((300, 1, 70), np.float32), np.full((1, 1, 70), np.nan, np.float32)]))
    assert engine.state["lif1.mem"]["u"].tobytes() == before.tobytes()
    fresh = EventEngine(stack())
    fresh.state = engine.state
    x = np.ones((3, 1, 70), np.float32)
    assert engine.run(x).spikes == fresh.run(x).spikes
