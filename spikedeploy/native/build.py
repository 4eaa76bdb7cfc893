"""How the native core is built: every `*.c` here, declared by the `*.h` of the same name, in one extension for all Pythons.

A header holds plain C declarations only (no preprocessor), so that cffi and the C compiler read the same text.
Floating-point contraction is off: a fused multiply-add would give other bits on another machine.
On x86-64 the core is built once for each level of the processor: `_core` for all, `_core_v3` for AVX2, `_core_v4` for AVX-512.
Clones of single functions (`target_clones`) were slower: GCC takes vectors that the base machine lacks apart before it makes them.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADERS = sorted(path.name for path in HERE.glob("*.h"))
SOURCES = sorted(path.name for path in HERE.glob("*.c") if not path.name.startswith("_core"))
READ = sorted([*HEADERS, *(path.name for path in HERE.glob("*.inc")), Path(__file__).name])
"""What the sources include and how they are compiled: a core older than any of it is built again."""


def core(name: str, *options: str) -> FFI:
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef((HERE / header).read_text())
    ffi.set_source(
        f"spikedeploy.native.{name}",
        "#include <stdint.h>\n#include <stddef.h>\n" + "\n".join(f'#include "{header}"' for header in HEADERS),
        sources=[f"spikedeploy/native/{source}" for source in SOURCES],
        depends=[f"spikedeploy/native/{name}" for name in READ],
        include_dirs=["spikedeploy/native"],
        extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", *options],
        extra_link_args=["-fopenmp"],
        libraries=["m"],
        py_limited_api=True,
    )
    return ffi


every = core("_core")
v3 = core("_core_v3", "-march=x86-64-v3")
v4 = core("_core_v4", "-march=x86-64-v4")
