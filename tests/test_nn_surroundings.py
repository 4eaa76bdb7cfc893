"""The training layers inside what torch puts around layers: copies, checkpoints, hooks, modes, threads, transforms."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikedeploy import native
from spikedeploy.errors import BadInput
from spikedeploy.nn import S4D, AssociativeLeaky, DeltaRuleLeaky, Leaky, LinearLeaky, SpikingLIF, StateLeaky, keep_memory

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: Leaky(0.9, learn_beta=True, learn_threshold=True),
    "Leaky, chunks": lambda: Leaky(0.9, learn_beta=True, method="speculative"),
    "Leaky, loop": lambda: Leaky(0.9, learn_beta=True, method="iterative"),
    "StateLeaky": lambda: StateLeaky(0.9, 4, learn_beta=True),
    "StateLeaky, prefix": lambda: StateLeaky(0.9, 4, learn_beta=True, method="prefix"),
    "LinearLeaky": lambda: LinearLeaky(0.9, 4, 6),
    "AssociativeLeaky": lambda: AssociativeLeaky(4, 2, 3),
    "AssociativeLeaky, torch": lambda: AssociativeLeaky(4, 2, 3, method="associative"),
    "DeltaRuleLeaky": lambda: DeltaRuleLeaky(4, 2, 3),
    "S4D": lambda: S4D(4, 6, form="scan"),
    "SpikingLIF": lambda: SpikingLIF(),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def sequence() -> Tensor:
    return torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def gradients(layer: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor | None]:
    """Of the input and all parameters."""
    x, parameters = sequence(), list(layer.parameters())
    y = first(layer(x)) if run is None else run(x)
    return list(torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True))


def same(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all(u is v if u is None or v is None else torch.equal(u, v) for u, v in zip(a, b, strict=True))


@every_layer
def test_copies_and_files(make: Callable[[], nn.Module]) -> None:
    """Also while the graph of a call is alive, which belongs to the layer that was called."""
    layer, file = make(), io.BytesIO()
    y = first(layer(sequence()))
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert same(gradients(other), gradients(layer))
        assert all(p.grad is None for p in other.parameters())
    y.sum().backward()


@every_layer
def test_checkpointing_changes_no_bit(make: Callable[[], nn.Module]) -> None:
    layer, expected = make(), None
    for how in ({}, {"use_reentrant": False}):
        found = gradients(layer, lambda x, how=how: checkpoint(lambda z: first(layer(z)), x, **how) if how else first(layer(x)))
        assert expected is None or same(found, expected)
        expected = found
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        assert same(gradients(layer), expected)


@every_layer
def test_modes_and_hooks(make: Callable[[], nn.Module]) -> None:
    layer, calls = make(), []
    expected = first(layer(sequence()))
    with torch.inference_mode():
        y = first(layer(sequence()))
        assert y.is_inference() and torch.equal(y, expected)
    with torch.no_grad():
        y = first(layer(sequence()))
        assert not y.requires_grad and torch.equal(y, expected)
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    gradients(layer)
    assert calls == ["forward", "backward"]


@every_layer
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "bfloat16"])
def test_sixteen_bits(make: Callable[[], nn.Module], mixed: bool) -> None:
    layer, x = make(), sequence()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        y = first(layer(x) if mixed else layer.bfloat16()(x.bfloat16()))
    assert mixed or y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert y.isfinite().all() and gradient.isfinite().all()


@every_layer
def test_threads_share_a_layer(make: Callable[[], nn.Module]) -> None:
    """As torch's data parallelism does; memory is handed back and given out again meanwhile."""
    layer, wrong = make(), []
    expected = gradients(layer)

    def work() -> None:
        for _ in range(5):
            if not same(gradients(layer), expected):
                wrong.append(1)

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_share_the_memory_that_results_leave() -> None:
    layer, wrong = Leaky(0.9), []
    x = torch.randn(100, 8, 400)  # results beyond the size from which on memory is kept
    expected = first(layer(x))

    def work(limit: int) -> None:
        for _ in range(10):
            keep_memory(limit)
            if not torch.equal(first(layer(x)), expected):
                wrong.append(limit)

    threads = [Thread(target=work, args=(limit,)) for limit in (0, 1 << 20, 1 << 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keep_memory(1 << 30)
    assert not wrong


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "S4D" or native.available()])  # without the core S4D is plain torch
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # of torch's own jvp
def test_transforms_of_torch_func_are_refused(name: str) -> None:
    layer, x = LAYERS[name](), sequence().detach()
    asked: list[Callable[[], Any]] = [
        lambda: torch.func.vmap(lambda z: first(layer(z)))(x[None]),
        lambda: torch.func.grad(lambda z: first(layer(z)).sum())(x),
        lambda: torch.func.jvp(lambda z: first(layer(z)), (x,), (x,)),
    ]
    for ask in asked:
        with pytest.raises(BadInput, match=r"a transform of torch\.func .*; this layer's gradient is known to torch\.autograd only"):
            ask()
    torch.func.functional_call(layer, dict(layer.named_parameters()), (x,))  # transforms nothing


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0)])
@pytest.mark.parametrize("make", [LAYERS[name] for name in ("Leaky", "Leaky, chunks", "StateLeaky", "AssociativeLeaky", "DeltaRuleLeaky")])
def test_an_empty_axis_is_refused(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="an input of shape"):
        make()(torch.zeros(shape))
