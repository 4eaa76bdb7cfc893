"""The lazy form of the matrix memory against the eager recurrence in float64, within the rounding bound; what it saves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused
from spikedeploy.program import Output, Program
from spikedeploy.runtime.events_lazy import LazyMemory, savings


def sparse(rng: np.random.Generator, size: int, keep: int) -> np.ndarray:
    x = rng.normal(size=size).astype(np.float32)
    x[np.argsort(-np.abs(x))[keep:]] = 0
    return x


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), low=st.sampled_from([0.0, 0.05, 0.6, 0.99]))
def test_equal_up_to_rounding(seed: int, low: float) -> None:
    """E_t = (t + 8) 2^-23 sum of |terms|: every term is divided by c and multiplied by it again, and c is a product of t factors."""
    rng = np.random.default_rng(seed)
    d, n = 5, 7
    lazy = LazyMemory(d, n, 0.8)
    state, size = np.zeros((d, n)), np.zeros((d, n))
    for t in range(120):
        v, k = sparse(rng, d, 2), sparse(rng, n, 2)
        alpha = rng.uniform(low, 1, n).astype(np.float32)
        alpha[rng.random(n) < 0.02] = 0
        lazy.step(v, k, alpha)
        write = np.outer(v.astype(np.float64), k.astype(np.float64))
        state, size = state * alpha + write, size * alpha + np.abs(write)
        bound = (t + 8) * 2.0**-23 * size + 1e-30
        assert np.all(np.abs(lazy.state - state) <= bound)
        clear = np.abs(state - 0.8) > bound + 2.0**-22
        assert np.array_equal(lazy.spikes[clear], (state > 0.8)[clear])


def program(keep_v: int, keep_k: int) -> Program:
    rng = np.random.default_rng(0)
    wide = 16
    steps = [
        S.Affine(name, ("input",), weight=rng.normal(size=(wide, 4)), bias=np.full(wide, 3.0 if name == "a" else 0.0)) for name in "vka"
    ]
    return Program(
        (4,),
        (
            *steps,
            S.Activation("alpha", ("a",), function="sigmoid"),
            S.TopK("v.top", ("v",), k=keep_v),
            S.TopK("k.top", ("k",), k=keep_k),
            S.MatrixMemory("S", ("v.top", "k.top", "alpha")),
            S.Threshold("spk", ("S",), threshold=np.array(1.0)),
        ),
        (Output("spk", "spk"),),
    )


def test_fewer_entries_save_operations() -> None:
    x = np.random.default_rng(1).normal(size=(30, 1, 4)).astype(np.float32)
    few, many = (savings(program(keep, keep), x)["S"] for keep in (2, 16))
    assert few.eager == many.eager == 30 * 3 * 256
    assert few.saved > 0.8 > many.saved


def test_a_threshold_of_zero_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"a threshold of 0\.0"):
        LazyMemory(2, 2, 0.0)
