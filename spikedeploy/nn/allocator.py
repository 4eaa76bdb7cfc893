"""Keep freed memory for the next tensor instead of returning it to the system: large CPU tensors then start without page faults.

A fresh 64 MB tensor costs more in page faults (3 GB/s) than a fused neuron needs to fill it. `reuse_memory()` tells glibc, for the whole
process, to serve large blocks from its own heap and never to return it. The price is a resident size that only grows.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of mallopt(3)."""

DEFAULT_MMAP_MAX, DEFAULT_TRIM = 65536, 128 * 1024


def reuse_memory(on: bool = True) -> bool:
    """Turn reuse of freed memory on or off for this process; False where the C library has no `mallopt` (not glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mmaps, trim = (0, 2**31 - 1) if on else (DEFAULT_MMAP_MAX, DEFAULT_TRIM)
    return bool(mallopt(M_MMAP_MAX, mmaps)) and bool(mallopt(M_TRIM_THRESHOLD, trim))
