"""Bounds of verification: they hold, and are not empty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verify_programs import X, dyadic, leaky, normal, single
from verify_programs import same_numbers as same_numbers

from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference
from spikedeploy.verify.bounds import bound
from spikedeploy.verify.rounding import UNIT, grid, sum_is_exact
from spikedeploy.verify.rules import Doubt

KINDS = {
    "affine": single(S.Affine("y", X, normal(5, 7), normal(5)), (7,)),
    "conv": single(S.Conv2d("y", X, normal(4, 1, 3, 3), normal(4), (2, 1), (1, 0), (1, 2), 2), (2, 7, 9)),
    "pool": single(S.SumPool2d("y", X, (2, 3), (1, 2), (0, 1)), (2, 5, 7)),
    "scale": single(S.Scale("y", X, normal(3), normal(3)), (3,)),
    "relu": single(S.Activation("y", X, "relu"), (9,)),
    "gelu": single(S.Activation("y", X, "gelu"), (9,)),
    "gelu_tanh": single(S.Activation("y", X, "gelu_tanh"), (9,)),
    "silu": single(S.Activation("y", X, "silu"), (9,)),
    "sigmoid": single(S.Activation("y", X, "sigmoid"), (9,)),
    "tanh": single(S.Activation("y", X, "tanh"), (9,)),
    "norm": single(S.LayerNorm("y", X, normal(6), normal(6)), (6,)),
    "l2": single(S.L2Normalize("y", X), (6,)),
    "topk": single(S.TopK("y", X, 2), (7,)),
    "delay": single(S.Delay("y", X, 3), (4,)),
    "integrator": single(S.Integrator("y", X, np.linspace(0.1, 0.999, 6).astype(np.float32)), (6,)),
    "ssm": single(S.DiagonalSSM("y", X, *(0.6 * normal(4, 5) for _ in range(4)), d=normal(4)), (4,)),
}


def chained(program: Program) -> Program:
    """The step behind a first rounding, so that its rule sees an error in its input too."""
    (step,) = program.steps
    first = S.Scale(
        "first", X, np.float32(1 / 3) + np.zeros(program.input_shape, np.float32), np.full(program.input_shape, 0.1, np.float32)
    )
    return Program(program.input_shape, (first, replace(step, inputs=("first",))), program.outputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [False, True])
def test_float32_stays_within_the_bound_of_every_step_kind(kind: str, behind: bool) -> None:
    program = chained(KINDS[kind]) if behind else KINDS[kind]
    x = normal(40, 3, *program.input_shape, scale=2)
    found = bound(program, x).outputs["y"]
    narrow = reference.run(program, x, dtype=np.float32).outputs["y"]
    error = np.abs(narrow - found.value)
    assert (error <= found.error).all()
    rounded = error[found.error > 0]
    if kind not in ("relu", "delay", "topk") or behind:
        assert rounded.max() > 0  # something was rounded, so the bound was put to a test
        assert (found.error <= 2e4 * UNIT * (1 + np.abs(found.value).max())).all()  # and it is no excuse for anything


def memory(kind: type[S.Step], **options: object) -> Program:
    steps: list[S.Step] = [S.Affine(n, X, normal(*shape)) for n, shape in (("v", (3, 6)), ("q", (4, 6)), ("a", (4, 6)), ("b", (1, 6)))]
    steps += [S.L2Normalize("k", ("q",)), S.Activation("alpha", ("a",), "sigmoid"), S.Activation("beta", ("b",), "sigmoid")]
    wires = ("v", "k", "alpha", "beta") if kind is S.DeltaMemory else ("v", "q", "alpha")
    steps += [kind("S", wires, **options), S.Threshold("spk", ("S",), np.array(1.0, np.float32))]  # type: ignore[arg-type]
    return Program((6,), tuple(steps), (Output("S", "S"), Output("spikes", "spk")))


@pytest.mark.parametrize(
    "program",
    [memory(S.MatrixMemory), memory(S.MatrixMemory, semantics="snntorch-1.0.0"), memory(S.DeltaMemory)],
    ids=["recurrence", "snntorch", "delta"],
)
def test_float32_stays_within_the_bound_of_matrix_memories(program: Program) -> None:
    x = normal(150, 2, 6)
    found = bound(program, x).outputs["S"]
    error = np.abs(reference.run(program, x, dtype=np.float32).outputs["S"] - found.value)
    assert (error <= found.error).all()
    assert (error / np.maximum(found.error, 1e-30)).max() > 0.001


@given(
    reset=st.sampled_from(["subtract", "zero", "value"]),
    late=st.booleans(),
    decay=st.sampled_from([0.0, 0.37, 0.9, 0.997]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_float32_stays_within_the_bound_of_resetting_neurons(reset: str, late: bool, decay: float, seed: int) -> None:
    theta = np.array([0.5, 1.0, 1.3], np.float32)
    lif = S.LIF("lif", X, np.float32(decay) + np.zeros(3, np.float32), theta, reset, late and reset != "value")  # type: ignore[arg-type]
    program = Program((3,), (lif,), (Output("mem", "lif.mem"), Output("spikes", "lif")))
    x = np.random.default_rng(seed).normal(size=(60, 2, 3)).astype(np.float32)
    found = bound(program, x)
    run = reference.run(program, x, dtype=np.float32, record=["lif", "lif.mem"])
    same = np.cumsum((run.wires["lif"] != 0) != (found.spikes["lif"] != 0), axis=0) == 0
    error = np.abs(run.wires["lif.mem"] - found.membranes["lif"].value)
    assert (error <= found.membranes["lif"].error)[same].all()
    assert same.mean() > 0.9


def test_exactness_is_proven_where_it_holds_and_only_there() -> None:
    program = leaky(dyadic(5, 7), 0.5)
    x = np.round(normal(12, 3, 7))
    assert (bound(program, x).decisions["lif"].error == 0).all()
    assert (bound(program, x, Doubt(parameters=1)).decisions["lif"].error[-1] > 0).any()
    third = leaky(dyadic(5, 7), 1 / 3)
    assert (bound(third, x).decisions["lif"].error[-1] > 0).all()


def test_grid_is_the_lowest_set_bit() -> None:
    assert grid(np.array([1.0, 0.75, 6.0, -0.125])).tolist() == [0, -2, 1, -3]
    assert grid(np.array([0.0]))[0] > 1000
    assert bool(sum_is_exact(np.array(2.0**24), np.array(0))) and not bool(sum_is_exact(np.array(2.0**24 + 1), np.array(0)))
