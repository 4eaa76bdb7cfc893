"""Both memory layers, every route: pieces, the future, other samples and layouts change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from memory_gradients import close
from memory_layers import every_layer, make

from spikedeploy.nn import AssociativeLeaky


@every_layer
def test_pieces_equal_the_whole(kind: type[Any], method: str) -> None:
    layer = make(kind, 4, 3, 2, method=method, chunk=16)
    x, state, parts = torch.randn(101, 2, 2), None, []
    with torch.no_grad():
        whole = layer.memory(x)
        for piece in x.split([1, 50, 13, 37]):
            parts.append(layer.memory(piece, state))
            _, state = layer(piece, state, return_state=True)
    close(torch.cat(parts), whole, 1e-6)
    exact = method == "native" or (method == "iterative" and kind is AssociativeLeaky)
    if exact:  # the bits of torch's norm of a key depend on where it lies in an array
        assert torch.equal(torch.cat(parts), whole)


@every_layer
@pytest.mark.parametrize("cut", [1, 16, 40, 64])
def test_nothing_reads_the_future(kind: type[Any], method: str, cut: int) -> None:
    layer = make(kind, 3, 5, 2, method=method, chunk=48)
    x = torch.randn(80, 2, 2)
    with torch.no_grad():
        before = layer(x)[:cut]
        x[cut:] = math.nan
        assert torch.equal(layer(x)[:cut], before)


@every_layer
def test_a_batch_element_is_alone(kind: type[Any], method: str) -> None:
    layer = make(kind, 5, 4, 2, method=method)
    x = torch.randn(70, 3, 2)
    with torch.no_grad():
        before = layer(x)
        x[3, 0] = math.inf
        assert torch.equal(layer(x)[:, 1:], before[:, 1:])


@every_layer
def test_any_layout_of_the_input(kind: type[Any], method: str) -> None:
    layer = make(kind, 3, 4, 2, method=method)
    x = torch.randn(2, 2, 30).permute(2, 0, 1)
    assert not x.is_contiguous()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.contiguous()))
