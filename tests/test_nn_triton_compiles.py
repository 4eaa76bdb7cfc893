"""The Triton kernels compile to a GPU's machine code, on any machine: a compiler refuses much that the interpreter lets pass."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

COMMON = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def build(kernel, pointers, **constants):
    kinds = {name: "*" + pointers[name] if name in pointers else "i32" for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=places)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert len(result.asm["cubin"]) > 1000
    return result.asm["ptx"]
"""

LEAKY = """
from spikedeploy.nn import triton_leaky as kernels

for io, state in (("fp32", "fp32"), ("fp32", "fp64"), ("fp64", "fp64")):
    arrays = dict.fromkeys(("x", "mem", "spk", "threshold", "amplitude", "grad_mem", "grad_spk", "grad_x"), io)
    arrays |= dict.fromkeys(("final", "initial", "decay"), state)
    arrays |= dict.fromkeys(("carry", "first_carry", "g_decay", "g_threshold", "g_amplitude"), "fp64")
    for reset in (0, 1, 2):
        ptx = build(kernels.forward, arrays, reset=reset, strict=True, store=True, spikes=True, block=64)
        assert "fma" not in ptx
        for kind in range(7 if reset == 1 else 1):
            build(kernels.backward, arrays, k=0.3, reset=reset, strict=False, store=True, spikes=True, kind=kind, block=64)
    build(kernels.forward, arrays, reset=0, strict=True, store=False, spikes=False, block=64)
    build(kernels.backward, arrays, k=2.0, reset=0, strict=True, store=False, spikes=False, kind=0, block=64)
print("built")
"""

MEMORY = """
from spikedeploy.nn import triton_memory as kernels

for io in ("fp32", "fp64"):
    arrays = dict.fromkeys(("v", "k", "states", "dstates", "dv"), io)
    arrays |= dict.fromkeys(("alpha", "start", "end", "dend", "dk", "dalpha", "dstart"), "fp64")
    for rows, columns in ((1, 1), (32, 32), (4, 256)):
        build(kernels._forward, arrays, ROWS=rows, COLS=columns)
        build(kernels._backward, arrays, ROWS=rows, COLS=columns)
print("built")
"""


@pytest.mark.parametrize("code", [LEAKY, MEMORY], ids=["leaky", "memory"])
def test_kernels_compile_without_a_gpu(code: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout == "built\n", result.stderr
