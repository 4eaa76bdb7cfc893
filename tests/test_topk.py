"""Top-k of keys and values: the program's TopK step, straight-through gradient, counts and fractions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikedeploy import steps as S
from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky
from spikedeploy.nn.topk import topk, topk_count
from spikedeploy.runtime import reference


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=5, max_size=5), min_size=1), st.integers(1, 5))
def test_what_is_kept_is_what_the_program_s_step_keeps(rows: list[list[float]], k: int) -> None:
    x = np.array(rows)
    expected = reference.topk(S.TopK("t", ("x",), k), x, {})
    assert np.array_equal(topk(torch.from_numpy(x), k).numpy(), expected)


def test_ties_go_to_the_lowest_index() -> None:
    assert topk(torch.tensor([1.0, -1.0, 1.0, 0.5]), 2).tolist() == [1.0, -1.0, 0.0, 0.0]


def test_the_gradient_is_straight_through() -> None:
    x = torch.tensor([[3.0, -1.0, 2.0]], requires_grad=True)
    (topk(x, 1) * torch.tensor([5.0, 7.0, 9.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[5.0, 7.0, 9.0]]


@pytest.mark.parametrize(
    ("value", "count"),
    [(None, None), (1, 1), (8, 8), (1.0, 8), (0.5, 4), (0.25, 2), (0.3, 3), (0.01, 1), (1e-12, 1), (np.int64(2), 2), (np.float32(0.5), 4)],
)
def test_counts_and_fractions(value: int | float | None, count: int | None) -> None:
    assert topk_count(value, 8) == count


@pytest.mark.parametrize("value", [0, 9, -1, 0.0, 1.5, -0.5, True, float("nan"), "1", np.True_])
def test_other_numbers_are_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="a count from 1 to 8, or a fraction"):
        topk_count(value, 8)


def test_a_sparse_layer_writes_only_the_chosen_cells() -> None:
    torch.manual_seed(0)
    layer, x = AssociativeLeaky(3, 6, 5, topk_k=2, topk_v=0.5), torch.randn(1, 4, 3)
    assert bool(((layer.memory(x) != 0).sum((2, 3)) == 6).all())
    delta = DeltaRuleLeaky(3, 6, 5, topk_k=2, topk_v=0.5)
    key = delta.project(x)[1]
    assert bool(((key != 0).sum(-1) == 2).all())
    torch.testing.assert_close(key.norm(dim=-1), torch.ones(1, 4))


def test_training_reaches_entries_that_are_not_kept() -> None:
    torch.manual_seed(0)
    layer = AssociativeLeaky(3, 4, 4, topk_k=1, topk_v=1, use_q_projection=False)
    layer(torch.randn(6, 2, 3)).sum().backward()
    assert layer.to_k.weight.grad is not None
    assert bool((layer.to_k.weight.grad.abs().sum(1) > 0).all())
