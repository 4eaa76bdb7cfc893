"""The Triton kernels of the leaky neuron in Triton's interpreter on the CPU, against the naive loop: numbers only, no timing."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")

from spikedeploy.nn import Surrogate, leaky_scan
from spikedeploy.nn import scan_triton as st

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


@pytest.mark.parametrize(
    ("reset", "shape"), [("none", (70, 2, 3)), ("none", (101, 1, 7)), ("none", (1, 2, 3)), ("subtract", (20, 2, 3)), ("zero", (20, 2, 3))]
)
@pytest.mark.parametrize("kind", ["atan", "fast_sigmoid", "sigmoid", "triangular"])
@pytest.mark.parametrize("wide", [False, True])
def test_triton_is_the_loop(reset, shape, kind, wide):
    torch.manual_seed(0)
    base = [torch.randn(shape), torch.rand(shape[2]), torch.rand(shape[2]) + 0.2, torch.rand(shape[2]) + 0.5, torch.randn(shape[1:])]
    weights = [torch.randn(shape), torch.randn(shape), torch.randn(shape[1:])]
    outcomes = []
    for method in ("iterative", "triton"):
        x, decay, threshold, graded, initial = leaves = [leaf.clone().requires_grad_() for leaf in base]
        results = leaky_scan(
            x, decay, threshold, graded=graded, initial=initial, reset=reset, surrogate=Surrogate(kind, 1.5), wide_state=wide, method=method
        )
        loss = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
        outcomes.append((results, torch.autograd.grad(loss, leaves)))
    (expected, wanted), (got, grads) = outcomes
    assert torch.equal(got[0], expected[0])
    for a, b in [*zip(got[1:], expected[1:], strict=True), *zip(grads, wanted, strict=True)]:
        assert (a - b).abs().max() <= 2e-5 * b.abs().max().clamp(min=1)


def test_time_is_cut_only_where_lanes_are_few_and_nothing_resets():
    assert st.chunk_length(4096, 16, linear=True) < 4096
    assert st.chunk_length(4096, 16384, linear=True) == 4096
    assert st.chunk_length(4096, 16, linear=False) == 4096
