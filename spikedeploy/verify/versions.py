"""What took part, for the certificate and for `spikedeploy doctor`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

PACKAGES = ("spikedeploy", "torch", "snntorch", "numpy", "nir", "onnx", "onnxruntime")


def versions(packages: tuple[str, ...] = PACKAGES) -> Mapping[str, str]:
    """Versions of the packages that decide numbers (not imported), and of Python."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def version(name: str) -> str:
    """The installed version of a distribution; `not installed` when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
