"""How the native core is built: every `*.c` here, declared by the `*.h` of the same name, in one extension for all Pythons.

A header holds plain C declarations only (no preprocessor), so that cffi and the C compiler read the same text.
Floating-point contraction is off: a fused multiply-add would give other bits on another machine.
"""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADERS = sorted(path.name for path in HERE.glob("*.h"))
SOURCES = sorted(path.name for path in HERE.glob("*.c") if path.name != "_core.c")

ffi = FFI()
for header in HEADERS:
    ffi.cdef((HERE / header).read_text())
ffi.set_source(
    "spikedeploy.native._core",
    "#include <stdint.h>\n#include <stddef.h>\n" + "\n".join(f'#include "{header}"' for header in HEADERS),
    sources=[f"spikedeploy/native/{source}" for source in SOURCES],
    include_dirs=["spikedeploy/native"],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"],
    extra_link_args=["-fopenmp"],
    libraries=["m"],
    py_limited_api=True,
)
