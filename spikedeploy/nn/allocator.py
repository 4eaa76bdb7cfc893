"""Large results in memory that earlier results have left: without page faults, which cost more than a fused neuron needs to fill it.

The system hands over every page of a fresh 64 MB tensor cleared, at 3 to 6 GB/s; memory that is already there takes three times as much.
`empty` therefore keeps what its tensors leave behind, up to `keep_memory` bytes in all, for the next tensors of the same size.
`reuse_memory` does so for every tensor of the process, in glibc: the price is a resident size that only grows.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikedeploy.errors import BadInput, message

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of mallopt(3)."""

DEFAULT_MMAP_MAX, DEFAULT_TRIM = 65536, 128 * 1024

LEAST = 1 << 20
"""Bytes; smaller tensors come from the heap, which keeps its memory anyway."""


Array = np.ndarray[Any, Any]

KINDS = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
"""What is kept for; one type to NumPy and to torch."""


class Store:
    """Blocks of memory that no tensor uses, at most `limit` bytes of them; the longest unused go first."""

    def __init__(self, limit: int) -> None:
        self.limit, self._held = limit, 0
        self._kept: list[tuple[int, Tensor]] = []
        self._returned: deque[tuple[int, Tensor]] = deque()
        self._lock = Lock()

    def take(self, size: int) -> Tensor:
        """A block of `size` bytes: the one that was used last, or a new one."""
        with self._lock:
            self._settle()
            for place in reversed(range(len(self._kept))):
                if self._kept[place][0] == size:
                    self._held -= size
                    return self._kept.pop(place)[1]
        return torch.empty(size, dtype=torch.uint8)

    def give_back(self, size: int, block: Tensor) -> None:
        """Runs when a tensor dies, which can be in the middle of `take`: it must not wait for the lock."""
        self._returned.append((size, block))
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._returned:
            self._kept.append(self._returned.popleft())
            self._held += self._kept[-1][0]
        while self._held > self.limit:
            self._held -= self._kept.pop(0)[0]

    def keep(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._settle()


_store = Store(1 << 30)


class Loan(weakref.ref[Array]):
    """Says when an array ends that lies in a block; it lives as long as any tensor or view in this memory."""

    __slots__ = ("block", "size")
    block: Tensor
    size: int


_loans: dict[int, Loan] = {}


def _ended(loan: Loan, loans: dict[int, Loan] = _loans, give_back: Callable[[int, Tensor], None] = _store.give_back) -> None:
    """At the exit of the process too, when the names of this module may be gone."""
    del loans[id(loan)]
    give_back(loan.size, loan.block)


def empty(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """`torch.empty(shape, dtype=dtype)` on the CPU, in memory that an earlier result of the same size has left where there is some."""
    size = prod(shape) * dtype.itemsize
    if size < LEAST or not _store.limit:
        return torch.empty(shape, dtype=dtype)
    block = _store.take(size)
    array: Array = np.ndarray(shape, KINDS[dtype], block.numpy().data)
    loan = Loan(array, _ended)
    loan.block, loan.size = block, size
    _loans[id(loan)] = loan
    return torch.from_numpy(array)


def borrow(size: int) -> Tensor:
    """`size` bytes to work in, as they are found; `give_back` keeps them for the next call."""
    return _store.take(size)


def give_back(block: Tensor) -> None:
    """What `borrow` gave, once nothing looks at it any more."""
    _store.give_back(block.numel(), block)


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
