"""Only the native core needs code here; everything else is declared in pyproject.toml."""

import os
import platform
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
        compiler, place = self.compiler.compile, self.build_temp
        self.compiler.compile, self.build_temp = partial(side_by_side, compiler), f"{place}/{ext.name}"  # objects of their own
        try:
            super().build_extension(ext)
        except Exception as error:
            warnings.warn(f"{ext.name} was not built ({error}); spikedeploy will use a slower form", stacklevel=1)
        finally:
            self.compiler.compile, self.build_temp = compiler, place


# SPIKEDEPLOY_LEVELS=v4 builds that level and the one for every machine, which tells what the processor has: quicker to build.
LEVELS = os.environ.get("SPIKEDEPLOY_LEVELS", "v3,v4" if platform.machine().lower() in ("x86_64", "amd64") else "")
CORES = ["every", *filter(None, LEVELS.split(","))]

setup(cffi_modules=[f"spikedeploy/native/build.py:{core}" for core in CORES], cmdclass={"build_ext": OptionalNative})
