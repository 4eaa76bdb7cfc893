"""Every test, and every process that a test starts, sees the installed package and one thread; torch draws the same numbers in each.

Python puts the working directory in front of the path of a child; in the checkout that is a `spikedeploy` whose `runtime` and `exporters`
are elsewhere.
"""

from __future__ import annotations

import os

os.environ["PYTHONSAFEPATH"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# One verdict per commit: the same examples on every run. SPIKEDEPLOY_FUZZ=1 lets hypothesis walk where it will.
settings.register_profile("steady", derandomize=True)
settings.load_profile("default" if os.environ.get("SPIKEDEPLOY_FUZZ") else "steady")


@pytest.fixture(autouse=True)
def same_torch_numbers() -> None:
    """A test draws the same numbers alone and in any company."""
    torch.manual_seed(0)
