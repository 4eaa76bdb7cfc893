"""Functions with the same bits in C and NumPy, and close to the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spikedeploy import native
from spikedeploy.runtime.events_math import activation, log32, row_sum
from spikedeploy.runtime.events_ops_dense import FUNCTIONS

TRUE = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "exp": math.exp,
}
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_close_to_the_truth(name: str) -> None:
    x = np.concatenate([np.linspace(-8, 8, 2001), [-87, 87, 1e-6, -1e-6, 0.0625, -0.0625]]).astype(np.float32)
    truth = np.array([TRUE[name](float(v)) for v in x])
    found = activation(name, x)
    assert found.dtype == np.float32
    error = np.abs(found.astype(np.float64) - truth)
    assert np.all(error <= 0.501 * np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64) + (1e-14 if "gelu" in name else 0))


def test_log_is_close_to_the_truth() -> None:
    x = np.geomspace(1e-8, 1e8, 3001).astype(np.float32)
    truth = np.array([math.log(float(v)) for v in x])
    assert np.all(np.abs(log32(x) - truth) <= 0.51 * np.spacing(np.abs(truth).astype(np.float32)) + 1e-15)


@pytest.mark.skipif(not native.available(), reason="the native core is not built")
@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 40), elements=ANY))
def test_same_bits_in_c(x: np.ndarray) -> None:
    ffi, lib = native.core()
    for number, name in enumerate(FUNCTIONS):
        y = np.empty_like(x)
        lib.sd_event_function(number, ffi.cast("float *", x.ctypes.data), ffi.cast("float *", y.ctypes.data), len(x))
        assert y.tobytes() == activation(name, x).tobytes(), name
    positive = np.abs(x) + np.float32(1e-8)
    y = np.empty_like(x)
    lib.sd_event_log(ffi.cast("float *", positive.ctypes.data), ffi.cast("float *", y.ctypes.data), len(x))
    assert y.tobytes() == log32(positive).tobytes()


def test_row_sum_is_a_sum() -> None:
    x = np.random.default_rng(0).integers(-9, 9, (3, 37)).astype(np.float32)
    assert np.array_equal(row_sum(x), x.sum(axis=1))
