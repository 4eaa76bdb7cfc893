"""Only the native core needs code here; everything else is declared in pyproject.toml."""

import warnings

from setuptools import setup
from setuptools.command.build_ext import build_ext


class OptionalNative(build_ext):
    """Without a C compiler the package installs all the same and runs on its NumPy and torch forms."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # whatever a toolchain can fail with
            warnings.warn(f"the native core was not built ({error}); spikedeploy will use its slower forms", stacklevel=1)

    def build_extension(self, ext: object) -> None:
        try:
            super().build_extension(ext)  # type: ignore[arg-type]
        except Exception as error:
            warnings.warn(f"the native core was not built ({error}); spikedeploy will use its slower forms", stacklevel=1)


setup(cffi_modules=["spikedeploy/native/build.py:ffi"], cmdclass={"build_ext": OptionalNative})
