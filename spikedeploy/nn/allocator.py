"""Large results in memory that earlier results have left: without page faults, which cost more than a fused neuron needs to fill it.

The system hands over every page of a fresh 64 MB tensor cleared, at 3 to 6 GB/s; memory that is already there takes three times as much.
`empty` therefore keeps what its tensors leave behind, up to `keep_memory` bytes in all, for the next tensors of the same size.
`reuse_memory` does so for every tensor of the process, in glibc: the price is a resident size that only grows.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from math import prod
from threading import Lock

import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of mallopt(3)."""

DEFAULT_MMAP_MAX, DEFAULT_TRIM = 65536, 128 * 1024

LEAST = 1 << 20
"""Bytes; smaller tensors come from the heap, which keeps its memory anyway."""


class Store:
    """Blocks of memory that no tensor uses, at most `limit` bytes of them; the longest unused go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: list[Tensor] = []
        self._returned: deque[Tensor] = deque()
        self._lock = Lock()

    def take(self, size: int) -> Tensor | None:
        """The block of `size` bytes that was used last."""
        with self._lock:
            self._settle()
            for place in reversed(range(len(self._kept))):
                if self._kept[place].numel() == size:
                    return self._kept.pop(place)
        return None

    def give_back(self, block: Tensor) -> None:
        """Runs when a tensor dies, which can be in the middle of `take`: it must not wait for the lock."""
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._returned:
            self._kept.append(self._returned.popleft())
        while sum(block.numel() for block in self._kept) > self.limit:
            self._kept.pop(0)

    def keep(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._settle()


_store = Store(1 << 30)


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """`torch.empty(shape, dtype=dtype)` on the CPU, in memory that an earlier result of the same size has left where there is some."""
    size = prod(shape) * dtype.itemsize
    if size < LEAST or not _store.limit:
        return torch.empty(shape, dtype=dtype)
    block = _store.take(size)
    if block is None:
        block = torch.empty(size, dtype=torch.uint8)
    loan = block.numpy()  # lives as long as the storage below, that is, as any tensor or view in this memory
    weakref.finalize(loan, _store.give_back, block).atexit = False
    storage = torch.from_numpy(loan).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage).resize_(shape)


def borrow(size: int) -> Tensor:
    """`size` bytes to work in, as they are found; `give_back` keeps them for the next call."""
    block = _store.take(size)
    return torch.empty(size, dtype=torch.uint8) if block is None else block


def give_back(block: Tensor) -> None:
    """What `borrow` gave, once nothing looks at it any more."""
    _store.give_back(block)


def keep_memory(limit: int) -> None:
    """Bytes of unused memory that the fused neurons keep for their next large results: 1 GiB unless told; 0 gives all of it back."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise BadInput(message("keep_memory", f"{limit!r}", "a number of bytes, 0 or more", "pass 0 to keep nothing"))
    _store.keep(limit)


def reuse_memory(on: bool = True) -> bool:
    """Turn reuse of freed memory on or off for this process; False where the C library has no `mallopt` (not glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mmaps, trim = (0, 2**31 - 1) if on else (DEFAULT_MMAP_MAX, DEFAULT_TRIM)
    return bool(mallopt(M_MMAP_MAX, mmaps)) and bool(mallopt(M_TRIM_THRESHOLD, trim))
