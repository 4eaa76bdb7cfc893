"""AssociativeLeaky: every route against the reference loop (values) and against autograd through a float64 loop (gradients)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_gradients import close, gradients, sizes

from spikedeploy import native
from spikedeploy import steps as S
from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky, memory_native
from spikedeploy.nn.surrogate import KINDS, Surrogate
from spikedeploy.program import Output, Program
from spikedeploy.runtime import reference

METHODS = ("iterative", "prefix", "associative", *(("native",) if native.available() else ()))
every_method = pytest.mark.parametrize("method", METHODS)


def weights(layer: torch.nn.Linear) -> tuple[Any, Any]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def reference_states(layer: AssociativeLeaky, x: torch.Tensor, start: torch.Tensor | None = None) -> np.ndarray:
    """S by the reference runtime in float64."""
    steps = (
        S.Affine("v", ("input",), *weights(layer.to_v)),
        S.Affine("k", ("input",), *weights(layer.to_k)),
        S.Affine("z", ("input",), *weights(layer.to_alpha)),
        S.Activation("alpha", ("z",), "sigmoid"),
        S.MatrixMemory("S", ("v", "k", "alpha")),
    )
    program = Program((layer.in_dim,), steps, (Output("S", "S"),))
    states = None if start is None else {"S": {"S": start.numpy()}}
    return reference.run(program, x.detach().numpy(), states=states).outputs["S"]


def loop(layer: AssociativeLeaky, x: torch.Tensor, state: torch.Tensor, spike: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations of the docstring, one step after the other; `layer` in float64."""
    outputs = []
    v, k, alpha = layer.to_v(x), layer.to_k(x), torch.sigmoid(layer.to_alpha(x))
    q = None if layer.to_q is None else layer.to_q(x)
    for t in range(len(x)):
        state = state * alpha[t][:, None, :] + v[t][:, :, None] * k[t][:, None, :]
        p = spike(state.flatten(1) - layer.threshold).reshape(state.shape) * layer.graded_spikes_factor
        y = p if q is None else p @ q[t].reshape(len(p), layer.d_key, layer.d_value)
        outputs.append(y.flatten(1))
    return torch.stack(outputs), state


def make(d: int, n: int, m: int, **options: Any) -> AssociativeLeaky:
    torch.manual_seed(d * 100 + n * 10 + m)
    return AssociativeLeaky(m, d, n, **options)


@every_method
@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 140),
    st.integers(1, 3),
    st.integers(1, 19),
    st.integers(1, 19),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([None, 1e-6, 0.05, 20.0, 1e6]),
)
def test_states_are_those_of_the_reference(
    method: str, t: int, b: int, d: int, n: int, m: int, chunk: int, retention: float | None
) -> None:
    layer = make(d, n, m, method=method, chunk=chunk, initial_retention=retention)
    x, start = torch.randn(t, b, m), torch.randn(b, d, n, dtype=torch.float64)
    expected = torch.from_numpy(reference_states(layer, x, start))
    with torch.no_grad():
        close(layer.memory(x, start), expected, 1e-6)
        _, last = layer(x, start, return_state=True)
    close(last, expected[-1], 1e-6)


@every_method
@settings(max_examples=5, deadline=None)
@given(st.integers(1, 90), st.integers(1, 2), st.integers(1, 18), st.integers(1, 18), st.booleans(), st.sampled_from([None, 1e-3, 1e5]))
def test_outputs_and_gradients_are_those_of_the_float64_loop(
    method: str, t: int, b: int, d: int, n: int, use_q: bool, retention: float | None
) -> None:
    options: dict[str, Any] = {"learn_threshold": True, "learn_graded_spikes_factor": True, "graded_spikes_factor": 1.5}
    layer = make(
        d, n, 3, method=method, chunk=17, use_q_projection=use_q, initial_retention=retention, threshold=torch.rand(d, n), **options
    )
    exact = make(d, n, 3, use_q_projection=use_q, threshold=torch.rand(d, n), **options).double()
    exact.load_state_dict(layer.state_dict())
    x, start = torch.randn(t, b, 3), torch.randn(b, d, n, dtype=torch.float64)
    expected = gradients(lambda x, s: loop(exact, x, s, Surrogate()), exact, x.double(), start)
    wide = make(d, n, 3, method=method, chunk=17, use_q_projection=use_q, threshold=torch.rand(d, n), **options).double()
    wide.load_state_dict(layer.state_dict())
    found = gradients(lambda x, s: wide(x, s, return_state=True), wide, x.double(), start)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value, 1e-9, name)
    with torch.no_grad():
        fired = [one.memory(inputs, start).flatten(-2) > one.threshold for one, inputs in ((wide, x.double()), (layer, x))]
    if torch.equal(*fired):  # no spike within float32 rounding of its threshold
        terms = sizes(loop, exact, x.double(), start, Surrogate())
        for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
            close(value, expected[name], 1e-5, name, terms.get(name))


def long_reference(layer: AssociativeLeaky, x: torch.Tensor) -> torch.Tensor:
    """S by the reference runtime's memory step alone: a whole program would take its time over 65,536 steps."""
    v, k, alpha = layer.double().to_v(x.double()), layer.to_k(x.double()), torch.sigmoid(layer.to_alpha(x.double()))
    step, state, states = S.MatrixMemory("S", ("v", "k", "a")), {"S": np.zeros((x.shape[1], layer.d_value, layer.d_key))}, []
    for inputs in zip(*(i.detach().numpy() for i in (v, k, alpha)), strict=True):
        states.append(reference.matrix_memory(step, *inputs, state))
    layer.float()
    return torch.from_numpy(np.stack(states))


@pytest.mark.parametrize("retention", [0.053, 9999.0])  # mean alpha 0.05 and 0.9999
def test_sixty_five_thousand_steps(retention: float) -> None:
    layer = make(2, 3, 2, initial_retention=retention, chunk=256)
    x = torch.randn(65_536, 1, 2)
    expected = long_reference(layer, x)
    for method in METHODS[1:]:
        layer.method = method
        with torch.no_grad():
            found = layer.memory(x)
        each = (found.double() - expected).abs().amax((1, 2, 3)) / expected.abs().amax((1, 2, 3))
        assert float(each.max()) < 1e-5, f"{method}, at every step"
        close(found, expected, 1e-6, method)


@every_method
def test_long_gradients_are_those_of_the_float64_loop(method: str) -> None:
    layer = make(3, 2, 2, method=method, initial_retention=9999.0, chunk=64)
    exact = make(3, 2, 2).double()
    exact.load_state_dict(layer.state_dict())
    x, start = torch.randn(400, 1, 2) / 4, torch.zeros(1, 3, 2, dtype=torch.float64)
    linear = {"spike_grad": lambda u: u}
    layer.spike_grad = linear["spike_grad"]
    expected = gradients(lambda x, s: loop(exact, x, s, linear["spike_grad"]), exact, x.double(), start)
    terms = sizes(loop, exact, x.double(), start, linear["spike_grad"])
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-5, name, terms.get(name))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("alpha", [1e-6, 0.9999])
def test_float32_keeps_the_gradients_of_float64_over_65536_steps(alpha: float) -> None:
    """The float64 form is the one held against the loop above; here only the length is new."""
    torch.manual_seed(0)
    packed = torch.randn(65_536, 1, 7)
    packed[..., 5:] += math.log(alpha / (1 - alpha))
    q, start, found = torch.randn(65_536, 1, 6), torch.randn(1, 3, 2), []
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype, copy=True).requires_grad_() for x in (packed, q)]
        y, last = memory_native.spikes(given[0], (given[1],), torch.tensor(1.0), start.double(), Surrogate())
        found.append([last.detach(), *torch.autograd.grad(y, given, torch.cos(torch.arange(y.numel(), dtype=dtype)).reshape(y.shape))])
    for narrow, wide in zip(*found, strict=True):
        close(narrow, wide, 1e-5)


@every_method
@pytest.mark.parametrize("use_q", [True, False])
def test_gradcheck(method: str, use_q: bool) -> None:
    layer = make(3, 2, 2, method=method, use_q_projection=use_q, chunk=4, spike_grad=torch.sigmoid, learn_threshold=True).double()
    names = [name for name, _ in layer.named_parameters()]

    def run(x: torch.Tensor, start: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, start, True))

    x, start = torch.randn(7, 2, 2, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, start, *layer.parameters()))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("kind", KINDS)
def test_every_surrogate_runs_fused(kind: str) -> None:
    surrogate = Surrogate(kind, 3.0)
    layer = make(5, 9, 2, method="native", spike_grad=surrogate).double()
    x, start = torch.randn(70, 2, 2, dtype=torch.float64), torch.randn(2, 5, 9, dtype=torch.float64)
    expected = gradients(lambda x, s: loop(layer, x, s, surrogate), layer, x, start)
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-9, name)


@every_method
def test_pieces_equal_the_whole(method: str) -> None:
    layer = make(4, 3, 2, method=method, chunk=16)
    x, state, parts = torch.randn(101, 2, 2), None, []
    with torch.no_grad():
        whole = layer.memory(x)
        for piece in x.split([1, 50, 13, 37]):
            parts.append(layer.memory(piece, state))
            _, state = layer(piece, state, return_state=True)
    close(torch.cat(parts), whole, 1e-6)
    if method in ("native", "iterative"):
        assert torch.equal(torch.cat(parts), whole)


@every_method
@pytest.mark.parametrize("cut", [1, 16, 40, 64])
def test_nothing_reads_the_future(method: str, cut: int) -> None:
    layer = make(3, 5, 2, method=method, chunk=48)
    x = torch.randn(80, 2, 2)
    with torch.no_grad():
        before = layer(x)[:cut]
        x[cut:] = math.nan
        assert torch.equal(layer(x)[:cut], before)


@every_method
def test_a_batch_element_is_alone(method: str) -> None:
    layer = make(5, 4, 2, method=method)
    x = torch.randn(70, 3, 2)
    with torch.no_grad():
        before = layer(x)
        x[3, 0] = math.inf
        assert torch.equal(layer(x)[:, 1:], before[:, 1:])


@every_method
def test_any_layout_of_the_input(method: str) -> None:
    layer = make(3, 4, 2, method=method)
    x = torch.randn(2, 2, 30).permute(2, 0, 1)
    assert not x.is_contiguous()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.contiguous()))


@every_method
def test_only_what_asks_for_a_gradient_gets_one(method: str) -> None:
    layer = make(3, 4, 2, method=method, chunk=8)
    x = torch.randn(20, 2, 2)
    full = gradients(lambda x, s: layer(x, s, return_state=True), layer, x, torch.zeros(2, 3, 4, dtype=torch.float64))
    for only in ("to_v.weight", "to_alpha.bias", "to_q.weight"):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name == only)
        seed = torch.Generator().manual_seed(5)
        y = layer(x)
        assert isinstance(y, torch.Tensor)
        (y * torch.randn(y.shape, generator=seed)).sum().backward()
        got = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        assert list(got) == [only]
        if only == "to_q.weight":
            close(got[only], full[only], 1e-6)
        layer.zero_grad()
    assert not layer.requires_grad_(False)(x).requires_grad


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("use_q", [False, True])
def test_bits_do_not_depend_on_the_number_of_threads(batch: int, delta: bool, use_q: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch element is run by one thread or by several, which share its rows and its steps."""
    monkeypatch.setattr(memory_native, "PARALLEL_FROM", 0)
    torch.manual_seed(4)
    d, n, before, runs = 21, 18, torch.get_num_threads(), []
    packed, q = torch.randn(130, batch, d + 2 * n + delta), (torch.randn(130, batch, d * n),) if use_q else ()
    start, limit = torch.randn(batch, d, n, dtype=torch.float64), torch.rand(d * n)
    given = [x.requires_grad_() for x in (packed, start, limit, *q)]
    try:
        for threads in (1, 2, 3, 4, 9):
            torch.set_num_threads(threads)
            y, last = memory_native.spikes(packed, q, limit, start, Surrogate(), delta)
            runs.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), given)])
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layer_type", [AssociativeLeaky, DeltaRuleLeaky])
def test_bits_of_a_layer_do_not_depend_on_the_number_of_threads(batch: int, layer_type: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes the projections too, and sums their gradients over the batch and over time."""
    monkeypatch.setattr(memory_native, "PARALLEL_FROM", 0)
    torch.manual_seed(4)
    layer, before, runs = layer_type(5, 21, 18, threshold=0.3, learn_threshold=True), torch.get_num_threads(), []
    x, start = torch.randn(150, batch, 5), torch.randn(batch, 21, 18, dtype=torch.float64)
    try:
        for threads in (1, 2, 3, 4, 9):
            torch.set_num_threads(threads)
            runs.append(gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(other[name], value) for name, value in runs[0].items())


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("threshold", [-1e9, 1e9, 0.2])
@pytest.mark.parametrize("t, b, d, n, m", [(1, 1, 1, 1, 1), (131, 2, 17, 33, 9), (65, 3, 40, 20, 17), (40, 1, 48, 64, 33)])
def test_any_rate_and_size(threshold: float, t: int, b: int, d: int, n: int, m: int) -> None:
    """Products go over the cells that fire: all of them, none, some; widths that fill the kernel's vectors and that do not."""
    layer = make(d, n, m, method="native", threshold=threshold, spike_grad="straight_through").double()
    x, start = torch.randn(t, b, m, dtype=torch.float64), torch.randn(b, d, n, dtype=torch.float64)
    expected = gradients(lambda x, s: loop(layer, x, s, Surrogate("straight_through")), layer, x, start)
    for name, value in gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start).items():
        close(value, expected[name], 1e-9, name)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("hooked", ["to_q", "to_k"])
def test_maps_with_hooks_are_called(hooked: str) -> None:
    """The kernel makes the plain ones; what a hook sees and changes is made outside of it."""
    layer, seen = make(5, 6, 3, method="native").double(), []
    getattr(layer, hooked).register_forward_hook(lambda module, inputs, y: seen.append(y) or y * 2)
    x, start = torch.randn(70, 2, 3, dtype=torch.float64), torch.zeros(2, 5, 6, dtype=torch.float64)
    found = gradients(lambda x, s: layer(x, s, return_state=True), layer, x, start)
    assert len(seen) == 1
    expected = gradients(lambda x, s: loop(layer, x, s, Surrogate()), layer, x, start)
    for name, value in expected.items():
        close(found[name], value, 1e-9, name)


@pytest.mark.skipif(not native.available(), reason="needs the native core")
@pytest.mark.parametrize("retention, steps", [(None, 700), (1000.0, 700), (None, 20_000)])
@pytest.mark.parametrize("kind", ["fast_sigmoid", "sigmoid"])
def test_float32_gradients_where_the_surrogate_is_steep(kind: str, retention: float | None, steps: int) -> None:
    """The kernel makes what writes the state in float64, so the slope of a spike is taken where it is."""
    found, x, seed = [], torch.randn(steps, 1, 16), torch.randn(steps, 1, 256)
    for dtype in (torch.float32, torch.float64):
        options: dict[str, Any] = {
            "spike_grad": kind,
            "initial_retention": retention,
            "threshold": torch.ones(256),
            "learn_threshold": True,
        }
        layer = make(16, 16, 16, method="native", **options).to(dtype)
        given = x.to(dtype, copy=True).requires_grad_()
        wanted = {"x": given, **dict(layer.named_parameters())}
        found.append(dict(zip(wanted, torch.autograd.grad(layer(given), list(wanted.values()), seed.to(dtype)), strict=True)))
    for name, wide in found[1].items():
        close(found[0][name], wide, 1e-5, name)


def test_dyadic_models_are_bit_equal() -> None:
    """alpha = sigmoid(0) = 1/2 and whole weights: every operation is exact, ties at the threshold included."""
    layers = [make(3, 4, 2, method=method) for method in METHODS]
    for layer in layers:
        with torch.no_grad():
            for parameter, value in layer.named_parameters():
                value.zero_() if parameter.startswith("to_alpha") else value.copy_(torch.round(value * 3))
    x = torch.randint(-1, 2, (20, 2, 2)).float()
    with torch.no_grad():
        states, outputs = [layer.memory(x) for layer in layers], [layer(x) for layer in layers]
    assert torch.equal(states[0].double(), torch.from_numpy(reference_states(layers[0], x)))
    assert bool((states[0] == 1).any()), "a tie must occur"
    for other, y in zip(states[1:], outputs[1:], strict=True):
        assert torch.equal(other, states[0])
        assert torch.equal(y, outputs[0])


@every_method
@pytest.mark.parametrize("logit", [-14.0, 14.0])
def test_extreme_decays(method: str, logit: float) -> None:
    """alpha at 1e-6 and at 1 - 1e-6."""
    layer = make(3, 4, 2, method=method)
    with torch.no_grad():
        layer.to_alpha.bias.fill_(logit)
    x = torch.randn(300, 1, 2)
    with torch.no_grad():
        close(layer.memory(x), torch.from_numpy(reference_states(layer, x)), 1e-6)


def test_the_torch_forms_do_not_hold_the_state_of_the_whole_sequence() -> None:
    layer, saved = make(8, 8, 2, method="prefix", chunk=64, use_q_projection=False), []
    x = torch.randn(2048, 1, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(saved) < 2048 * 64, "all saved tensors together are smaller than S over the sequence"


# --- as snnTorch's --------------------------------------------------------------------------------------------------


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
