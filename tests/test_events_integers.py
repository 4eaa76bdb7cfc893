"""Integer weights in the compiled engine: exact sums, columns where they belong, the same bytes as the NumPy form."""

from __future__ import annotations

import numpy as np
import pytest
from test_events import assert_same, needs_native

from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine
from spikedeploy.runtime.events_ops_fused import folded_scales, folds
from spikedeploy.runtime.events_quant import quantise

WIDTHS = (1, 15, 17, 40, 63, 65, 100, 129, 200, 240)


def two_layers(wide: int, width: int, amplitude: float, bias: bool) -> Program:
    """A map, neurons of one amplitude, a map, neurons: nobody reads more of them than spikes."""
    rng = np.random.default_rng(width)
    steps = (
        S.Affine("fc1", ("input",), weight=rng.normal(size=(width, wide)), bias=rng.normal(size=width) if bias else None),
        S.Integrator("mem1", ("fc1",), decay=np.array(0.8)),
        S.Threshold("spk1", ("mem1",), threshold=np.array(0.7), amplitude=np.array(amplitude)),
        S.Affine("fc2", ("spk1",), weight=rng.normal(size=(width, width)), bias=None),
        S.Integrator("mem2", ("fc2",), decay=rng.uniform(0, 1, width)),
        S.Threshold("spk2", ("mem2",), threshold=np.array(0.4), strict=False),
    )
    return Program((wide,), steps, (Output("spikes", "spk2"), Output("count", "spk1", "sum")))


@needs_native
@pytest.mark.parametrize("weights", ["float32", "int8", "int16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_however_it_runs(width: int, weights: str) -> None:
    program = two_layers(70, width, amplitude=-0.5 if width % 2 else 1.0, bias=width % 3 == 0)
    rng = np.random.default_rng(0)
    x = (rng.random((9, 2, 70)) < rng.choice([0.0, 0.1, 0.6], (9, 1, 1))).astype(np.float32)
    x[5] *= np.float32(0.3)  # a row of other values
    plain = EventEngine(program, 2, weights=weights, native=False)
    first, second = plain.run(x, record=program.wires), plain.run(x[:1])
    assert first.spikes["spk1"] > 0
    for threads, options in ((1, {}), (1, {"order": "step"}), (2, {"chunk": 4}), (1, {"record": list(program.wires)})):
        engine = EventEngine(program, 2, threads, weights=weights, native=True)
        assert_same(first, engine.run(x, **options))
        assert_same(second, engine.run(x[:1], **options))


@needs_native
@pytest.mark.parametrize("weights", ["int8", "int16"])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 300, 513])
def test_the_largest_sums(rows: int, weights: str) -> None:
    """All weights at either end of the range, every input active: the sum of so many rows, column by column."""
    width, limit = 150, {"int8": 127, "int16": 32767}[weights]
    sign = np.where(np.arange(width) % 3 == 0, -1.0, 1.0)
    scale = np.float32(2.0**-8)
    weight = np.repeat((sign * limit * scale)[:, None], rows, axis=1)
    program = Program((rows,), (S.Affine("y", ("input",), weight=weight, bias=None),), (Output("y", "y"),))
    y = EventEngine(program, weights=weights, native=True).run(np.ones((2, 1, rows), np.float32)).outputs["y"]
    expected = (sign * limit * rows).astype(np.int32).astype(np.float32) * scale
    assert y[1, 0].tobytes() == expected.tobytes()


@needs_native
def test_more_rows_than_sixteen_bits_count() -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice([-1.0, 1.0], (20, 66_000), p=(0.9, 0.1))
    program = Program((66_000,), (S.Affine("y", ("input",), weight=weight, bias=np.ones(20)),), (Output("y", "y"),))
    runs = [EventEngine(program, weights="int8", native=native).run(np.ones((1, 1, 66_000), np.float32)) for native in (False, True)]
    assert_same(*runs)
    assert runs[0].outputs["y"].max() < -40_000


@needs_native
@pytest.mark.parametrize("size", [1e-31, 3e-36, 1.5e-36, 1.3e-37])
def test_scales_that_have_no_smaller_ones(size: float) -> None:
    """Scales whose 65,536th part is below the normal range; the smallest is beside one that is not."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(130, 50)) * np.where(np.arange(130) % 7 == 0, 1.0, size)[:, None]
    program = Program((50,), (S.Affine("y", ("input",), weight=weight, bias=None),), (Output("y", "y"),))
    x = (rng.random((5, 1, 50)) < 0.5).astype(np.float32)
    plain, compiled = (EventEngine(program, weights="int8", native=native).run(x) for native in (False, True))
    assert plain.outputs["y"].tobytes() == compiled.outputs["y"].tobytes()


def test_scales_fold_only_where_nothing_is_lost() -> None:
    assert folds(folded_scales(np.array([2.0**-110, 1.5 * 2.0**-110, 1.0, 3e38, -0.7], np.float32)))
    assert not folds(folded_scales(np.array([1.0, 1.5 * 2.0**-111], np.float32)))  # exact, but a processor may flush it


def test_no_weight_is_below_minus_127() -> None:
    """Two's complement has one more number below zero than above; symmetric weights do not use it, so 256 rows sum up to 32,512."""
    for weights, limit in (("int8", 127), ("int16", 32767)):
        q = quantise(np.random.default_rng(0).normal(size=(40, 40)) * np.logspace(-40, 38, 40)[:, None], weights).q  # type: ignore[arg-type]
        assert q.min() >= -limit and q.max() <= limit and np.abs(q).max() == limit


@needs_native
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_counts_of_long_sequences(weights: str) -> None:
    """More steps than a byte counts, in blocks, on top of what earlier blocks counted."""
    program = two_layers(30, 77, amplitude=1.0, bias=True)
    x = (np.random.default_rng(0).random((700, 2, 30)) < 0.3).astype(np.float32)
    plain = EventEngine(program, 2, weights=weights, native=False).run(x)
    assert plain.outputs["count"].max() > 300
    for chunk in (700, 300, 256, 1):
        assert_same(plain, EventEngine(program, 2, weights=weights, native=True).run(x, chunk=chunk))
