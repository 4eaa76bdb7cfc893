"""Memory that large results leave behind serves the next ones, and never one that is still in use."""

import gc
import threading

import pytest
import torch

from spikedeploy.errors import BadInput
from spikedeploy.nn import Leaky, allocator, keep_memory

SHAPE = (300, 7, 131)


@pytest.fixture(autouse=True)
def _nothing_kept():
    keep_memory(0)
    keep_memory(1 << 30)
    yield
    keep_memory(1 << 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [SHAPE, (1 << 20,), (3,), (0, 5), ()])
def test_it_is_an_empty_tensor(shape, dtype):
    x = allocator.empty(shape, dtype)
    assert x.shape == torch.Size(shape)
    assert x.dtype == dtype
    assert x.is_contiguous()
    assert x._base is None
    assert x.data_ptr() % 64 == 0
    x.fill_(1)
    assert x.sum() == x.numel()


def test_memory_is_used_again_once_nothing_sees_it():
    x = allocator.empty(SHAPE, torch.float32)
    address, part, array = x.data_ptr(), x[1:, 0], x.numpy()
    del x
    assert allocator.empty(SHAPE, torch.float32).data_ptr() != address
    del part
    assert allocator.empty(SHAPE, torch.float32).data_ptr() != address
    del array
    assert allocator.empty(SHAPE, torch.float64).data_ptr() != address
    assert allocator.empty(SHAPE[::-1], torch.float32).data_ptr() == address


def test_no_more_is_kept_than_asked():
    size = 4 * torch.Size(SHAPE).numel()
    keep_memory(2 * size)
    alive = [allocator.empty(SHAPE, torch.float32) for _ in range(5)]
    del alive
    assert len(allocator._store._kept) == 2
    keep_memory(size)
    assert len(allocator._store._kept) == 1
    keep_memory(0)
    assert not allocator._store._kept
    x = allocator.empty(SHAPE, torch.float32)
    del x
    assert not allocator._store._kept


@pytest.mark.parametrize("limit", [-1, 1.5, True, None, "1"])
def test_a_limit_is_a_number_of_bytes(limit):
    with pytest.raises(BadInput, match="number of bytes"):
        keep_memory(limit)


def test_threads_never_share_a_block():
    clashes = []

    def work(mark: int) -> None:
        for _ in range(200):
            x = allocator.empty(SHAPE, torch.float32)
            x.fill_(mark)
            clashes.extend([mark] * int((x != mark).any()))
            del x

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes


def test_results_and_gradients_kept_by_the_caller_stay_as_they_are():
    layer = Leaky(beta=0.9, reset_mechanism="subtract")
    kept = []
    for seed in range(4):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        spk, mem = layer(x)
        (spk.sum() + mem.sum()).backward()
        kept.append((spk.detach(), mem.detach(), x.grad, spk.detach().clone(), mem.detach().clone(), x.grad.clone()))
        del spk, mem
        gc.collect()
    for spk, mem, grad, spk_then, mem_then, grad_then in kept:
        assert torch.equal(spk, spk_then)
        assert torch.equal(mem, mem_then)
        assert torch.equal(grad, grad_then)


def test_results_can_be_changed_in_place():
    x = torch.randn(SHAPE).requires_grad_()
    spk, mem = Leaky(beta=0.9)(x)
    spk.add_(1)
    (mem + spk).sum().backward()
    plain = x.detach().clone().requires_grad_()
    torch.autograd.backward(Leaky(beta=0.9)(plain), [torch.ones(SHAPE)] * 2)
    assert torch.equal(x.grad, plain.grad)
