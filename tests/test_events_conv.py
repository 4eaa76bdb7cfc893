"""Convolutions over events: every geometry and every neuron, tiles whose leak is put off, the same bytes as the NumPy form."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_events import assert_same

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine, Events

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core is not built")
SEEDS = st.integers(0, 10_000)
Random = np.random.Generator


def convolution(rng: Random, name: str, wire: str, shape: tuple[int, ...]) -> tuple[S.Conv2d, tuple[int, ...]]:
    """Any kernel, stride, padding, dilation and grouping that fits, and the shape it gives."""
    channels = shape[0]
    groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    out = groups * int(rng.integers(1, 7)) if rng.random() < 0.7 else groups * int(rng.choice([8, 11]))
    stride, padding, dilation = (tuple(int(n) for n in rng.integers(low, high, 2)) for low, high in ((1, 4), (0, 4), (1, 4)))
    kernel = [int(rng.integers(1, max(1, min(5, (shape[1 + a] + 2 * padding[a] - 1) // dilation[a] + 1)) + 1)) for a in (0, 1)]
    weight = rng.normal(size=(out, channels // groups, *kernel)) * np.where(rng.random((out, 1, 1, 1)) < 0.1, 0, 0.6)
    bias = None if rng.random() < 0.3 else (rng.normal(size=out) * rng.choice([0.02, 0.3])).astype(np.float32)
    size = tuple((shape[1 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
    step = S.Conv2d(
        name, (wire,), weight=weight.astype(np.float32), bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return step, (out, *size)


def neuron(rng: Random, name: str, wire: str, shape: tuple[int, ...]) -> list[S.Step]:
    """With or without reset; thresholds at and below zero too, decays of 0 and 1, one number or one each."""
    decay = np.float32(rng.choice([0.0, 0.5, 0.9, 1.0])) if rng.random() < 0.6 else rng.uniform(0, 1, shape).astype(np.float32)
    threshold = np.float32(rng.choice([1.0, 0.4, 0.0, -0.2])) if rng.random() < 0.7 else rng.uniform(0.1, 1.2, shape).astype(np.float32)
    amplitude = np.float32(rng.choice([1.0, 0.5, -1.5])) if rng.random() < 0.8 else rng.uniform(0.5, 1.5, shape).astype(np.float32)
    strict, kind = bool(rng.random() < 0.7), int(rng.integers(0, 5))
    if kind == 0:
        membrane = S.Integrator(f"{name}.u", (wire,), decay=decay)
        return [membrane, S.Threshold(name, (membrane.name,), threshold=threshold, amplitude=amplitude, strict=strict)]
    reset = ("subtract", "zero", "value", "subtract")[kind - 1]
    now = kind == 4 or reset == "value"
    return [
        S.LIF(
            name,
            (wire,),
            decay=decay,
            threshold=threshold,
            reset=reset,
            reset_delay=not now,
            strict=strict,
            amplitude=amplitude,
            reset_value=np.float32(rng.choice([0.0, -0.3])),
        )
    ]


def network(seed: int) -> Program:
    """Two convolutions with neurons, and a read-out."""
    rng = np.random.default_rng(seed)
    shape = start = (int(rng.integers(1, 5)), int(rng.integers(1, 12)), int(rng.integers(1, 20)))
    steps: list[S.Step] = []
    wire = "input"
    for layer in ("a", "b"):
        step, shape = convolution(rng, f"conv_{layer}", wire, shape)
        steps += [step, *neuron(rng, layer, step.name, shape)]
        wire = layer
    flat = S.Reshape("flat", (wire,), shape=(int(np.prod(shape)),))
    read = S.Affine("read", ("flat",), weight=rng.normal(size=(3, *flat.shape)).astype(np.float32), bias=None)
    return Program(start, (*steps, flat, read), (Output("read", "read"), Output("total", "read", "sum")))


def bursts(program: Program, seed: int, steps: int, batch: int) -> np.ndarray:
    """Long silences between few events: ones, or real numbers."""
    rng = np.random.default_rng(seed + 1)
    shape = (steps, batch, *program.input_shape)
    lively = (rng.random((steps, batch)) < rng.choice([0.03, 0.3, 1.0])).reshape(steps, batch, 1, 1, 1)
    active = (rng.random(shape) < rng.choice([0.01, 0.1, 0.4])) & lively
    return np.where(active, 1.0 if rng.random() < 0.5 else rng.normal(size=shape), 0).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, weights=st.sampled_from(["float32", "float32", "int8", "int16"]), batch=st.integers(1, 3))
def test_compiled_equals_numpy(seed: int, weights: str, batch: int) -> None:
    """Whole, with the state read and put back in the middle, and stepped as a stream."""
    program = network(seed)
    x = bursts(program, seed, 40, batch)
    plain = EventEngine(program, batch, weights=weights, native=False).run(x)
    assert_same(plain, EventEngine(program, batch, threads=1 + seed % 3, weights=weights, native=True).run(x, chunk=1 + seed % 30))
    engine = EventEngine(program, batch, weights=weights, native=True)
    engine.run(x[:17])
    middle = engine.state
    engine.run(x[20:])
    engine.state = middle
    stream = engine.stream()
    for now, expected in zip(x[17:], plain.outputs["read"][17:], strict=True):
        stream.input[...] = now
        stream.step()
        assert stream.outputs["read"].tobytes() == expected.tobytes()
    for step, states in plain.states.items():
        assert states["u"].tobytes() == engine.state[step]["u"].tobytes()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_long_silences_are_caught_up_exactly(seed: int) -> None:
    """Watching a membrane keeps every tile stepped; not watching lets it be put off."""
    program = network(seed)
    x = bursts(program, seed, 400, 2)
    x[150:330] = 0
    plain = EventEngine(program, 2, native=False).run(x)
    assert_same(plain, EventEngine(program, 2, native=True).run(x))
    watched = EventEngine(program, 2, native=True).run(x, record=program.wires)
    assert watched.spikes == plain.spikes and watched.outputs["total"].tobytes() == plain.outputs["total"].tobytes()


@pytest.mark.parametrize("reset", ["subtract", "zero", "value"])
def test_quiet_tiles_are_put_off(reset: str) -> None:
    """Few events on a large map: most tiles are not stepped, and nobody can tell."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(8, 2, 5, 5)).astype(np.float32) * 0.4, (rng.normal(size=8) * 0.01).astype(np.float32)
    conv = S.Conv2d("conv", ("input",), weight=weight, bias=bias, padding=(2, 2))
    lif = S.LIF("lif", ("conv",), decay=np.float32(0.9), threshold=np.float32(1.0), reset=reset, reset_delay=reset != "value")
    program = Program((2, 40, 40), (conv, lif, S.SumPool2d("out", ("lif",), kernel=(40, 40), stride=(1, 1))), (Output("out", "out"),))
    x = (rng.random((200, 1, 2, 40, 40)) < 0.0005).astype(np.float32)
    engine = EventEngine(program, native=True)
    engine._machine.settle = lambda: None
    engine.run(x)
    pending = engine._machine.packed["conv"].arrays["pending"]
    assert np.mean(pending > 0) > 0.5
    plain = EventEngine(program, native=False).run(x)
    assert plain.spikes["lif"] > 0
    assert_same(plain, EventEngine(program, native=True).run(x))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=SEEDS, weights=st.sampled_from(["float32", "int8"]))
def test_every_wire_is_the_same(seed: int, weights: str) -> None:
    program = network(seed)
    x = bursts(program, seed, 6, 2)
    assert_same(*(EventEngine(program, 2, weights=weights, native=n).run(x, record=program.wires) for n in (False, True)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_beyond_float32_is_the_same(seed: int) -> None:
    """Infinity times the zero of a tap that is not there must not appear."""
    program = network(seed)
    grown = S.Scale("grown", ("input",), scale=np.float32(3e38))
    first = S.Conv2d(**{**{f: getattr(program.steps[0], f) for f in program.steps[0].__slots__}, "name": "conv_a", "inputs": ("grown",)})
    program = Program(program.input_shape, (grown, first, *program.steps[1:]), program.outputs)
    x = bursts(program, seed, 8, 1) * 4
    assert_same(*(EventEngine(program, native=n).run(x, record=program.wires) for n in (False, True)))


@pytest.mark.parametrize("alike", ["one number", "one a channel", "one a neuron"])
@pytest.mark.parametrize("channels", [3, 8, 16, 24])
def test_parameters_of_any_layout(channels: int, alike: str) -> None:
    """All tiles share parameters or none do; lanes between rows fire like neurons, and nobody sees it. Everything fires somewhere: words of
    spikes are full, and there are more than the kernel looks at together."""
    rng = np.random.default_rng(channels)
    shape = (channels, 21, 25)
    size = {"one number": (), "one a channel": (channels, 1, 1), "one a neuron": shape}[alike]
    weight, bias = rng.normal(size=(channels, 2, 3, 3)).astype(np.float32), rng.normal(size=channels).astype(np.float32) * 0.05
    conv = S.Conv2d("conv", ("input",), weight=weight, bias=None if alike == "one number" else bias, padding=(1, 1))
    decay, threshold = (rng.uniform(0.2, high, size).astype(np.float32) for high in (0.95, 0.9))
    lif = S.LIF("lif", ("conv",), decay=decay, threshold=threshold, reset="subtract")
    out = S.Affine("out", ("lif",), weight=rng.normal(size=(3, channels * 21 * 25)).astype(np.float32), bias=None)
    flat = S.Reshape("flat", ("lif",), shape=(channels * 21 * 25,))
    program = Program((2, 21, 25), (conv, lif, flat, replace(out, inputs=("flat",))), (Output("out", "out"), Output("lif", "lif", "sum")))
    rates = np.repeat([0.002, 0.9, 0.03, 0.5], [7, 3, 10, 1])[:, None, None, None, None]
    x = (rng.random((21, 2, *program.input_shape)) < rates).astype(np.float32)
    assert_same(*(EventEngine(program, 2, native=native).run(x) for native in (False, True)))


@pytest.mark.parametrize("wide", [70, 4500])
def test_lists_of_rows_with_few_and_many_events(wide: int) -> None:
    """What is expected of a row is what the one before it had; wrong guesses change nothing."""
    rng = np.random.default_rng(wide)
    spike = S.Threshold("spike", ("input",), threshold=np.float32(0.5))
    out = S.Affine("out", ("spike",), weight=rng.normal(size=(5, wide)).astype(np.float32), bias=None)
    program = Program((wide,), (spike, out), (Output("out", "out"), Output("spike", "spike", "sum")))
    rates = np.array([0, 1, 0.001, 0.02, 0.5, 0.02, 0.0, 0.9, 1.0, 0.03])[:, None, None]
    x = (rng.random((10, 3, wide)) < rates).astype(np.float32)
    runs = [EventEngine(program, 3, native=native).run(x) for native in (False, True)]
    assert_same(*runs)
    assert_same(runs[0], EventEngine(program, 3, native=True).run(x, chunk=1))


@pytest.mark.parametrize("wrong", [1023, 1024, 1025, 2999])
def test_events_out_of_order_anywhere_are_sorted(wrong: int) -> None:
    """Order is looked at piece by piece; also where two pieces meet."""
    program = network(3)
    size = int(np.prod(program.input_shape))
    place = np.sort(np.random.default_rng(wrong).choice(200 * size, 3000, replace=False))
    mixed = np.roll(place, wrong)  # the last is before the first at one place only
    runs = [EventEngine(program).run(Events(order % size, order // size, 200)) for order in (place, mixed)]
    assert_same(*runs)
    twice = np.insert(place, wrong, place[wrong - 1])
    value = np.ones(3001, np.float32)
    value[wrong - 1 : wrong + 1] = 0.5
    assert_same(runs[0], EventEngine(program).run(Events(twice % size, twice // size, 200, value=value)))


def test_events_in_order_and_shuffled_are_the_same() -> None:
    program = network(3)
    x = (bursts(program, 3, 50, 2) != 0).astype(np.float32)
    time, sample, index = np.nonzero(x.reshape(50, 2, -1))
    runs = []
    for order in (np.arange(len(time)), np.random.default_rng(0).permutation(len(time))):
        runs.append(EventEngine(program, 2).run(Events(index[order], time[order], 50, sample=sample[order])))
    runs.append(EventEngine(program, 2).run(x))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    nothing = np.zeros(0, np.int64)
    assert_same(EventEngine(program).run(Events(nothing, nothing, 5)), EventEngine(program).run(np.zeros((5, 1, *program.input_shape))))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_sums_over_windows(seed: int) -> None:
    """Overlapping, apart, padded, with a rest that no window covers."""
    rng = np.random.default_rng(seed)
    kernel, stride, padding = (tuple(int(n) for n in rng.integers(low, high, 2)) for low, high in ((1, 5), (1, 4), (0, 3)))
    start = (int(rng.integers(1, 4)), *(int(rng.integers(k, k + 8)) for k in kernel))
    program = Program(start, (S.SumPool2d("y", ("input",), kernel=kernel, stride=stride, padding=padding),), (Output("y", "y"),))
    x = bursts(program, seed, 6, 2)
    assert_same(*(EventEngine(program, 2, native=n).run(x) for n in (False, True)))


@pytest.mark.parametrize("reset", ["none", "subtract", "zero"])
@pytest.mark.parametrize("exponent", [0, -77, -79, -100, -124])
def test_states_at_the_end_of_the_normal_range(exponent: int, reset: str) -> None:
    """Events meet membranes that have just become too small to be kept, or are about to; currents of any size down to that."""
    rng = np.random.default_rng(exponent + 200)
    weight = (rng.normal(size=(9, 2, 3, 3)) * 2.0**exponent).astype(np.float32)
    conv = S.Conv2d("conv", ("input",), weight=weight, bias=None, padding=(1, 1))
    threshold = np.float32(max(2.0**exponent, 2.0**-126))
    kind: Literal["zero", "subtract"] = "zero" if reset == "zero" else "subtract"
    lif: list[S.Step] = [S.LIF("lif", ("conv",), decay=np.float32(0.5), threshold=threshold, reset=kind)]
    if reset == "none":
        lif = [S.Integrator("u", ("conv",), decay=np.float32(0.5)), S.Threshold("lif", ("u",), threshold=threshold)]
    program = Program((2, 6, 7), (conv, *lif), (Output("lif", "lif", "sum"),))
    compiled, plain = (EventEngine(program, native=native) for native in (True, False))
    for quiet in range(120 + exponent, 132 + exponent):
        x = (rng.random((max(quiet, 0) + 9, 1, 2, 6, 7)) < 0.2).astype(np.float32)
        x[3 : 3 + max(quiet, 0)] = 0
        assert_same(compiled.run(x), plain.run(x))
