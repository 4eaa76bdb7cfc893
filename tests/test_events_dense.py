"""TopK, Nearest, Embedding, long sums, maps of rows, broadcasts in the compiled engine: the NumPy form's bytes, in one compiled call."""

from __future__ import annotations

import numpy as np
import pytest
from events_programs import Builder, random_input
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="the native core is not built")


def assert_compiled_and_same(program: Program, x: np.ndarray) -> None:
    compiled, plain = (EventEngine(program, x.shape[1], native=n) for n in (True, False))
    assert compiled._machine.compiled
    found, expected = (engine.run(x, record=[step.name for step in program.steps]) for engine in (compiled, plain))
    for name, value in expected.wires.items():
        assert found.wires[name].tobytes() == value.tobytes(), name


def numbers(rng: np.random.Generator, wide: int) -> tuple[S.Step, ...]:
    """Steps that turn a token into a row `raw` of any numbers at all: small, equal, zeros of both signs, infinite, undefined."""
    table = np.where(rng.random((5, wide)) < 0.5, rng.integers(-3, 4, (5, wide)), rng.normal(size=(5, wide)) * 2).astype(np.float32)
    odd = rng.random((3, *table.shape)) < rng.choice([0.0, 0.1, 0.9])
    table = np.where(odd[0], rng.choice(np.array([-0.0, 1e-45, 3e38], np.float32), table.shape), table)
    up, down = (np.where(on, sign * 3e38, -0.0).astype(np.float32) for on, sign in zip(odd[1:], (1, -1), strict=True))
    return (
        S.Embedding("table", ("input",), table=table),
        S.Embedding("up", ("input",), table=up),
        S.Embedding("down", ("input",), table=down),
        S.Scale("infinite", ("up",), scale=np.float32(10)),
        S.Scale("minus", ("down",), scale=np.float32(10)),
        S.Add("raw", ("table", "infinite", "minus")),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), wide=st.integers(1, 70))
def test_topk_and_nearest(seed: int, wide: int) -> None:
    """Ties, both zeros, infinities and NaN among the numbers."""
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.choice([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 3.0], int(rng.integers(1, 7)), replace=False)).astype(np.float32)
    steps = (
        *numbers(rng, wide),
        S.TopK("top", ("raw",), k=int(rng.integers(1, wide + 1))),
        S.Nearest("near", ("raw",), levels=levels),
        S.Nearest("both", ("top",), levels=levels),
    )
    program = Program((), steps, (Output("top", "top"), Output("both", "both"), Output("near", "near")), "index")
    assert_compiled_and_same(program, rng.integers(0, 5, (6, 2)))


@pytest.mark.parametrize("shapes", [((3,), (2, 3)), ((2, 3), (3,)), ((1,), (5,)), ((4, 1, 3), (2, 1), (2, 3)), ((17,), (17,), (1,))])
@pytest.mark.parametrize("kind", [S.Add, S.Mul])
def test_broadcasts(shapes: tuple[tuple[int, ...], ...], kind: type[S.Step]) -> None:
    shapes = shapes[:2] if kind is S.Mul else shapes
    rng = np.random.default_rng(0)
    steps: list[S.Step] = []
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        weight = rng.normal(size=(size, 5)).astype(np.float32)
        steps += [S.Affine(f"a{number}", ("input",), weight=weight, bias=None), S.Reshape(f"x{number}", (f"a{number}",), shape=shape)]
    steps.append(kind("y", tuple(f"x{number}" for number in range(len(shapes)))))
    assert_compiled_and_same(Program((5,), tuple(steps), (Output("y", "y"),)), rng.normal(size=(4, 3, 5)).astype(np.float32))


def test_a_stream_of_tokens_out_of_range_reads_no_strange_memory() -> None:
    program = Program((), (S.Embedding("e", ("input",), table=np.arange(6.0).reshape(3, 2)),), (Output("e", "e"),), "index")
    stream = EventEngine(program, native=True).stream()
    for token, row in ((2, 2), (-1, 0), (3, 0), (np.nan, 0), (1e30, 0)):
        stream.input[...] = token
        stream.step()
        assert stream.outputs["e"].tolist() == [[2.0 * row, 2.0 * row + 1]]


def test_embedding_of_several_tokens() -> None:
    program = Program((3,), (S.Embedding("e", ("input",), table=np.arange(20.0).reshape(4, 5)),), (Output("e", "e"),), "index")
    assert_compiled_and_same(program, np.random.default_rng(0).integers(0, 4, (5, 2, 3)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from(["rows", "total"]), st.sampled_from(["float32", "int8", "int16"]))
def test_between_neurons(seed: int, part: str, weights: str) -> None:
    """Whole and in chunks, from events and dense, every wire."""
    built = Builder(np.random.default_rng(seed), ((40,), (7,), (3, 4, 5))[seed % 3])
    for make in (built.neuron, getattr(built, part), built.neuron, getattr(built, part)):
        make()
    program = Program(built.input_shape, tuple(built.steps), (Output("y", built.wire),))
    x = random_input(program, seed, 9, 2)
    engines = [EventEngine(program, 2, weights=weights, native=n) for n in (True, False)]
    assert engines[0]._machine.compiled
    found, expected = (engine.run(x, record=program.wires) for engine in engines)
    for name, value in expected.wires.items():
        assert found.wires[name].tobytes() == value.tobytes(), name
    found, expected = engines[0].run(x, chunk=4), engines[1].run(x, order="step")
    assert found.outputs["y"].tobytes() == expected.outputs["y"].tobytes() and found.spikes == expected.spikes
