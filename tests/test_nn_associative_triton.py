"""The Triton kernel in Triton's interpreter, in a process of its own: the interpreter is chosen when Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from spikedeploy.errors import BadInput
from spikedeploy.nn import AssociativeLeaky

CHECK = """
import torch
from spikedeploy.nn import AssociativeLeaky

for (d, n, steps, dtype) in ((3, 5, 21, torch.float64), (40, 33, 6, torch.float64), (1, 1, 1, torch.float32), (4, 2, 9, torch.float32)):
    torch.manual_seed(0)
    one, other = (AssociativeLeaky(2, d, n, method=method, chunk=8, initial_retention=9.0).to(dtype) for method in ("triton", "iterative"))
    other.load_state_dict(one.state_dict())
    x, start = torch.randn(steps, 2, 2, dtype=dtype), torch.randn(2, d, n, dtype=torch.float64)
    found = []
    for layer in (one, other):
        a, s = x.clone().requires_grad_(), start.clone().requires_grad_()
        y, last = layer(a, s, True)
        (y.square().sum() + last.square().sum()).backward()
        found.append([y, last, a.grad, s.grad, *(p.grad for p in layer.parameters())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 1e-9)
print("same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_computes_the_recurrence() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout == "same\n", result.stderr


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BadInput, match=r"Triton (is not installed|runs on a GPU)"):
        AssociativeLeaky(2, 2, 2, method="triton")(torch.zeros(3, 1, 2))
