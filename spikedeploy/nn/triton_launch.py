"""How a Triton kernel is launched: on the GPU of its tensors, which need not be the current one, and without fused multiply-add."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **options: Any) -> None:
    """`kernel[grid](first, *arguments, **options)`."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *arguments, **options, enable_fp_fusion=False)
