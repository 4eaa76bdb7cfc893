"""What leaky layers refuse, and the dtypes and states they accept: the same on every route."""

from __future__ import annotations

import pytest
import snntorch
import torch
from snntorch.functional.quant import state_quant

from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, Leaky, LinearLeaky, StateLeaky, leaky_scan

METHODS = ("iterative", "prefix", "associative", "convolution", *(("native",) if native.available() else ()))
every_method = pytest.mark.parametrize("method", METHODS)
coarse = state_quant(num_bits=4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: StateLeaky(0.9, 3, method="parallel"), "method 'parallel'"),
        (lambda: LinearLeaky(0.9, 3, 3, method="parallel"), "method 'parallel'"),
        (lambda: Leaky(0.9, method="prefix"), "method 'prefix' with reset 'subtract'"),
        (lambda: Leaky(0.9, reset_mechanism="zero", method="native", spike_grad=lambda u: (u > 0).float()), "surrogate of your own"),
        (lambda: Leaky(0.9, state_quant=coarse, method="native"), "method 'native' with a state that is quantised"),
        (lambda: StateLeaky(0.9, 3, batch_chunk=0), "batch_chunk 0"),
        (lambda: Leaky(0.9, batch_chunk=1.5), "batch_chunk 1.5"),
        (lambda: StateLeaky(0.9, 3, kernel_truncation_steps=2.5), "kernel_truncation_steps 2.5"),
        (lambda: StateLeaky(0.9, 3, state_quant=True), "state_quant True"),
        (lambda: Leaky(0.9, state_quant=8), "state_quant 8"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_built(make, says):
    with pytest.raises(BadInput, match=says):
        make()


@pytest.mark.parametrize("layer", [Leaky(0.9, state_quant=coarse), StateLeaky(0.9, 3, kernel_truncation_steps=2)])
@pytest.mark.parametrize("x", [torch.ones(4, 2, 3, dtype=torch.long), torch.ones(0, 2, 3), torch.ones(4, 0, 3), torch.ones(3)])
def test_what_is_no_sequence_is_refused_by_unfused_layers_too(layer, x):
    with pytest.raises(BadInput, match="an input of"):
        layer(x)


def test_a_quantised_state_has_the_shape_of_a_step():
    with pytest.raises(BadInput, match=r"an initial state of shape \(1, 3\)"):
        Leaky(0.9, state_quant=coarse)(torch.zeros(4, 2, 3), torch.zeros(1, 3))


@every_method
@pytest.mark.parametrize("reset", ["none", "subtract"])
def test_results_have_the_dtype_of_the_input(method, reset):
    if reset != "none" and method not in ("iterative", "native"):
        return
    x = torch.randn(6, 2, 3)
    wide = [torch.rand(3, dtype=torch.float64).requires_grad_() for _ in range(3)]
    narrow = [p.detach().float().requires_grad_() for p in wide]
    found = leaky_scan(x, wide[0], wide[1], graded=wide[2], reset=reset, method=method)
    assert [result.dtype for result in found] == [torch.float32] * 3
    expected = leaky_scan(x, narrow[0], narrow[1], graded=narrow[2], reset=reset, method=method)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    grads = torch.autograd.grad(found[0].sum() + found[1].sum(), wide)
    assert [grad.dtype for grad in grads] == [torch.float64] * 3


@every_method
def test_one_value_is_one_value_however_many_axes_it_has(method):
    x, one = torch.randn(6, 2, 3), torch.full((1, 1, 1, 1), 0.5)
    expected = leaky_scan(x, 0.5, 0.5, graded=0.5, method=method)
    found = leaky_scan(x, one, one, graded=one, method=method)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_librarys_way_to_start_works():
    layer, x = Leaky(0.9), torch.randn(6, 2, 3)
    mem = layer.init_leaky()
    assert torch.equal(layer(x, mem)[0], layer(x)[0])


def test_the_kept_membrane_moves_with_the_layer_and_is_not_saved():
    layer, x = Leaky(0.9, init_hidden=True), torch.randn(6, 2, 3)
    layer(x)
    assert list(layer.state_dict()) == list(snntorch.Leaky(0.9).state_dict())
    assert layer.mem.dtype == torch.float32
    assert layer.double().mem.dtype == torch.float64
    layer.reset_mem()
    assert torch.equal(layer(x.double()), Leaky(0.9).double()(x.double())[0])


def test_a_reset_that_no_library_has_is_refused():
    state = {**Leaky(0.9).state_dict(), "reset_mechanism_val": torch.tensor(7)}
    with pytest.raises(BadInput, match="reset_mechanism_val 7"):
        Leaky(0.9).load_state_dict(state)


@pytest.mark.parametrize("options", [{"spike_grad": snntorch.surrogate.heaviside()}, {"state_quant": coarse}])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: StateLeaky(0.9, 4, **options),
        lambda **options: Leaky(0.9, **options),
        lambda **options: AssociativeLeaky(4, 2, 3, **options),
        lambda **options: DeltaRuleLeaky(4, 2, 3, use_q_projection=False, **options),
    ],
)
def test_the_librarys_functions_may_give_float32(make, kind, options):
    """As all of `snntorch.surrogate` and its quantisers do: results still have the dtype of the input."""
    results = make(**options).to(kind)(torch.randn(5, 2, 4).to(kind))
    assert {result.dtype for result in (results if isinstance(results, tuple) else (results,))} == {kind}
