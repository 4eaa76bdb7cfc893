"""AssociativeLeaky as a layer: snnTorch's parameters and options, batch chunks, refusals, autocast."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from associative_loops import every_method, make, reference_states
from memory_gradients import close, gradients

from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky, memory_native
from spikedeploy.nn.surrogate import Surrogate


@pytest.mark.parametrize("use_q", [True, False])
def test_checkpoints_move_both_ways(use_q: bool) -> None:
    library = snntorch.AssociativeLeaky(4, 3, 5, 15, use_q_projection=use_q)
    layer = AssociativeLeaky(4, 3, 5, 15, use_q_projection=use_q)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in library.state_dict().items()}
    layer.load_state_dict(library.state_dict())
    x = torch.randn(6, 2, 4)
    torch.testing.assert_close(layer(x), library(x))
    library.load_state_dict(AssociativeLeaky(4, 3, 5, 15, use_q_projection=use_q).state_dict())


def test_gradients_are_the_library_s_where_it_is_right() -> None:
    """Over few steps the product of decays is far from 1e-8, and the library's parallel form is its recurrence."""
    library, layer = snntorch.AssociativeLeaky(4, 3, 3, 9), AssociativeLeaky.from_num_spiking_neurons(4, 9)
    layer.load_state_dict(library.state_dict())
    x = torch.randn(4, 2, 4)
    for module in (library, layer):
        module(x).square().sum().backward()
    for (name, a), (_, b) in zip(library.named_parameters(), layer.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        close(b.grad, a.grad, 1e-2, name)


def test_state_quantiser_and_callable_surrogates_are_kept() -> None:
    quantise = lambda s: torch.round(s * 2) / 2  # noqa: E731
    layer = make(3, 2, 2, spike_grad=snntorch.surrogate.fast_sigmoid(slope=5), state_quant=quantise)
    assert layer.spike_grad == Surrogate("fast_sigmoid", 5.0)
    x = torch.randn(9, 1, 2)
    expected = (quantise(layer.memory(x)).flatten(2) > 1).float()
    layer.to_q = None
    assert torch.equal(layer(x), expected)


@every_method
@pytest.mark.parametrize("use_q", [True, False])
def test_options_set_later_act_as_the_library_s(method: str, use_q: bool) -> None:
    """Attributes that a trained layer of the library may hold; over few steps the library's form is the recurrence."""
    library = snntorch.AssociativeLeaky(4, 3, 3, 9, use_q_projection=use_q)
    layer = AssociativeLeaky(4, 3, 3, 9, use_q, method=method)
    layer.load_state_dict(library.state_dict())
    x = torch.randn(5, 2, 4)
    changes: list[dict[str, Any]] = [
        {"threshold": torch.tensor(0.3)},
        {"threshold": torch.rand(9)},
        {"graded_spikes_factor": torch.rand(9)},  # d = n: a factor of what is read would have the same shape
        {"spike_grad": snntorch.surrogate.fast_sigmoid(slope=5)},
        {"output": False},
        {"state_quant": lambda s: torch.round(s * 2) / 2},
    ]
    for change in changes:
        for module in (library, layer):
            for name, value in change.items():
                setattr(module, name, value)
        theirs, ours = library(x), layer(x)
        close(ours.detach(), theirs.detach(), 1e-5, str(change))
        if not library.state_quant:
            expected = torch.autograd.grad(theirs.square().sum(), library.to_k.weight)[0]
            close(torch.autograd.grad(ours.square().sum(), layer.to_k.weight)[0], expected, 1e-3, str(change))


@every_method
@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_batch_chunks_change_nothing(method: str, size: int) -> None:
    whole, pieces = (make(3, 4, 2, method=method, chunk=16, batch_chunk=chunk) for chunk in (None, size))
    x, start = torch.randn(40, 5, 2), torch.randn(5, 3, 4, dtype=torch.float64)
    expected = gradients(lambda x, s: whole(x, s, return_state=True), whole, x, start)
    for name, value in gradients(lambda x, s: pieces(x, s, return_state=True), pieces, x, start).items():
        close(value, expected[name], 1e-5, name)


def test_initial_retention_is_the_bias() -> None:
    assert torch.allclose(make(2, 3, 2, initial_retention=50.0).to_alpha.bias, torch.full((3,), math.log(50.0)))
    assert torch.allclose(make(2, 3, 2, initial_retention=[1.0, 2.0, 4.0]).to_alpha.bias, torch.tensor([1.0, 2.0, 4.0]).log())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "convolution"}, "decay that is the same at every step"),
        ({"method": "magic"}, "method='magic'"),
        ({"chunk": 0}, "chunk=0"),
        ({"batch_chunk": 0}, "batch_chunk=0"),
        ({"graded_spikes_factor": torch.ones(4)}, "graded_spikes_factor of shape"),
        ({"threshold": torch.ones(5)}, "threshold of shape"),
        ({"num_spiking_neurons": 7}, "must equal d_value \\* d_key = 6"),
        ({"initial_retention": -1.0}, "positive finite steps"),
        ({"topk_k": 4}, "a count from 1 to 3"),
        ({"topk_v": 0.0}, "a count from 1 to 2"),
        ({"spike_grad": "no such"}, "surrogate gradient"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        AssociativeLeaky(2, 2, 3, **options)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
def test_maps_that_do_not_fit_are_refused() -> None:
    """The kernel reads their memory as what the layer says they are."""
    with pytest.raises(BadInput, match="in torch"):
        make(2, 3, 2, method="native")(torch.randn(4, 1, 2, dtype=torch.float64))
    for name, rows, columns in (("to_q", 5, 2), ("to_v", 2, 1), ("to_alpha", 2, 2)):
        layer = make(2, 3, 2, method="native")
        setattr(layer, name, torch.nn.Linear(columns, rows))
        with pytest.raises(BadInput, match=f"weight of {name[3:]} .* is needed"):
            layer(torch.randn(4, 1, 2))


def test_wrong_shapes_are_refused() -> None:
    layer = make(2, 3, 2)
    for x in (torch.zeros(4, 2), torch.zeros(4, 1, 3), torch.zeros(0, 1, 2)):
        with pytest.raises(BadInput, match="an input of shape"):
            layer(x)
    with pytest.raises(BadInput, match="a state of shape"):
        layer(torch.zeros(4, 1, 2), torch.zeros(2, 2, 3))
    with pytest.raises(BadInput, match="perfect square"):
        AssociativeLeaky.from_num_spiking_neurons(2, 8)


def test_without_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "switched off")
    layer, x = make(2, 3, 2), torch.randn(5, 1, 2)
    assert layer.route(x) == "prefix"
    close(layer.memory(x).detach(), torch.from_numpy(reference_states(layer, x)), 1e-6)
    with pytest.raises(BadInput, match="switched off"):
        make(2, 3, 2, method="native")(x)


@every_method
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_state(method: str, kind: torch.dtype) -> None:
    layer, x = make(3, 4, 5, method=method, initial_retention=50.0), torch.randn(70, 2, 5).to(kind)
    expected = layer(x.float())
    with torch.autocast("cpu", dtype=kind):
        found, states = layer(x=x), layer.memory(x)
    assert torch.equal(found, expected)
    assert states.dtype == torch.float32
    assert torch.equal(states, layer.memory(x.float()))


@every_method
def test_decays_next_to_one_do_not_drift_within_a_long_segment(method: str) -> None:
    """Rounded to float32 such a decay would err by up to 3e-8 at every step, always to the same side."""
    torch.manual_seed(5)
    z = torch.tensor([12.0, 17.0, 18.0], dtype=torch.float64).expand(20000, 1, 3)
    v, k = torch.randn(20000, 1, 2) + 1, torch.randn(20000, 1, 3) + 1
    state, expected = np.zeros((2, 3)), np.empty((20000, 1, 2, 3))
    alpha = 1 / (1 + np.exp(-z[0, 0].numpy()))
    for t, (v_t, k_t) in enumerate(zip(v[:, 0].double().numpy(), k[:, 0].double().numpy(), strict=True)):
        state = state * alpha + np.outer(v_t, k_t)
        expected[t] = state
    start = torch.zeros(1, 2, 3, dtype=torch.float64)
    if method == "native":
        found = memory_native.states(False)((torch.cat([v, k, z.float()], -1),), start)[0]
    else:
        found = AssociativeLeaky.routes[method]((v, k, z.contiguous()), start)[0]
    close(found, torch.from_numpy(expected), 1e-6 if method == "associative" else 5e-7, method)
