"""Only the native core needs code here; everything else is declared in pyproject.toml."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from setuptools import setup
from setuptools.command.build_ext import build_ext


def side_by_side(compile_sources, sources: list[str], **options: object) -> list[str]:
    """The compiler's `compile`, one source per call: setuptools compiles them one after the other."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [made for objects in pool.map(lambda source: compile_sources([source], **options), sources) for made in objects]


class OptionalNative(build_ext):
    """Without a C compiler the package installs all the same and runs on its NumPy and torch forms."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # whatever a toolchain can fail with
            warnings.warn(f"the native core was not built ({error}); spikedeploy will use its slower forms", stacklevel=1)

    def build_extension(self, ext: object) -> None:
        self.compiler.compile = partial(side_by_side, self.compiler.compile)
        try:
            super().build_extension(ext)
        except Exception as error:
            warnings.warn(f"the native core was not built ({error}); spikedeploy will use its slower forms", stacklevel=1)


setup(cffi_modules=["spikedeploy/native/build.py:ffi"], cmdclass={"build_ext": OptionalNative})
