"""`spikedeploy doctor`."""

from __future__ import annotations

import os
import platform
from typing import Any

import click

from spikedeploy.cli.common import as_json, show, working

OPTIONAL = ("nirtorch", "norse", "scikit-learn", "hypothesis", "triton")


@click.command(epilog="Example: spikedeploy doctor --json", short_help="Show versions and what this machine can do.")
@as_json
def command(as_json: bool) -> None:
    """Show the versions that decide numbers, whether the native core is there (and if not, why), and what accelerators there are."""
    with working("looking around"):
        found = findings()
    show(found, "\n".join(_lines(found)), as_json)


def findings() -> dict[str, Any]:
    """What was found, as plain data."""
    from spikedeploy import native
    from spikedeploy.verify.versions import version, versions

    return {
        "versions": dict(versions()),
        "optional": {name: version(name) for name in OPTIONAL},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "native core": {
            "available": native.available(),
            "name": native.name(),
            "why not": native.why_not(),
            "passed over": native.passed_over(),
        },
        "onnxruntime": _onnxruntime(),
        "cuda": _cuda(),
    }


def _onnxruntime() -> dict[str, Any]:
    try:
        import onnxruntime

        return {"available": True, "providers": list(onnxruntime.get_available_providers())}
    except ImportError as error:
        return {"available": False, "why not": str(error)}


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"available": False, "why not": "this torch has no CUDA" if torch.version.cuda is None else "no device was found"}
    return {"available": True, "device": torch.cuda.get_device_name(0)}


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for topic, facts in found.items():
        lines.append(topic)
        lines += [f"  {name:14s} {value}" for name, value in facts.items() if value != ""]
    return lines
