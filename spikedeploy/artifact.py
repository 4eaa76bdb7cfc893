"""What can be opened, by suffix: one table. Each row says how a file becomes something to inspect, to verify and to run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A file, opened.

    program   its iterative form as read (.nir); a model has one by `program_of`
    model     the parallel torch model (.pt)
    runner    the ONNX Runtime cell (.onnx)
    """

    path: Path
    kind: str
    sha256: str
    program: Program | None = None
    model: Any = None
    runner: Any = None


def digest_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file. Raises `BadInput` when it is missing or a directory."""
    where = Path(path)
    if where.is_dir():
        raise BadInput(message(f"{path}", "it is a directory", "a file is needed"))
    if not where.exists():
        raise BadInput(message(f"{path}", "there is no such file", "an existing file is needed"))
    try:
        with where.open("rb") as stream:
            result = sha256()
            while block := stream.read(1 << 20):
                result.update(block)
    except OSError as error:
        raise BadInput(message(f"{path}", f"it cannot be read ({error.strerror})", "a readable file is needed")) from None
    return result.hexdigest()


def _open_model(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from spikedeploy.checkpoint import load_model

    factory = options.get("model")
    if factory and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the caller's own module, where the caller stands
    return {"model": load_model(path, model=factory)}


def _open_nir(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from spikedeploy.readers.nir import read

    return {"program": read(path, dt=options.get("dt"), discretisation=options.get("discretisation"))}


def _open_onnx(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from spikedeploy.readers.onnx_info import read_cell
    from spikedeploy.runtime.onnx_runner import OnnxRunner
    from spikedeploy.runtime.onnx_sequence import SequenceRunner

    info = read_cell(path)[2]
    if info.kind == "sequence":
        return {"runner": SequenceRunner(path)}
    return {"runner": OnnxRunner(path, record=[spikes.layer for spikes in info.spikes])}


OPEN: Mapping[str, tuple[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]]] = {
    ".pt": ("model", _open_model),
    ".pth": ("model", _open_model),
    ".nir": ("nir", _open_nir),
    ".onnx": ("onnx", _open_onnx),
}
"""Per suffix: what kind of file it is, and how it is opened."""

TAKES: Mapping[str, tuple[str, ...]] = {"model": ("model",), "nir": ("dt", "discretisation"), "onnx": ()}
"""Per kind of file: the options that say how to open it."""


def kind_of(path: str | os.PathLike[str], *kinds: str) -> str:
    """The kind of file by its suffix. Raises `BadInput` on another, or one that is not among `kinds`."""
    found = OPEN.get(Path(path).suffix.lower(), ("", None))[0]
    allowed = [suffix for suffix, (kind, _) in OPEN.items() if not kinds or kind in kinds]
    if not found or found not in (kinds or (found,)):
        raise BadInput(message(f"{path}", f"a file name ending in '{Path(path).suffix}'", f"one of {', '.join(allowed)} is needed"))
    return found


def taken(path: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of several files, those for this one."""
    return {name: options[name] for name in TAKES[kind_of(path)] if name in options}


def _refuse_idle(path: object, options: Mapping[str, Any], used: tuple[str, ...]) -> None:
    """An option without an effect would let its user believe that it had one."""
    for name, value in options.items():
        if value is not None and name not in used:
            found = f"it has no meaning for {path}"
            raise BadInput(message(f"option {name}", found, "an option for such a file is needed", "Leave it out."))


def open_artifact(path: str | os.PathLike[str], *kinds: str, **options: Any) -> Opened:
    """Open a file by its suffix. Raises `BadInput` or `ModelRefused` with a clear message on whatever is wrong with it, and for an option
    that has no effect on it."""
    kind = kind_of(path, *kinds)
    _refuse_idle(path, options, TAKES[kind])
    digest = digest_of(path)
    return Opened(Path(path), kind, digest, **OPEN[Path(path).suffix.lower()][1](Path(path), options))


def program_of(opened: Opened, x: Any = None, **options: Any) -> Program:
    """The iterative form of what was opened; a model is converted, with `x` as the example where it was saved without one.

    Raises `BadInput` for an ONNX cell, which only a runner can run, and for options where there is nothing to convert.
    """
    if opened.program is not None:
        _refuse_idle(opened.path, options, ())
        return opened.program
    if opened.model is None:
        raise BadInput(
            message(f"{opened.path}", "it is an ONNX cell", "a .pt or .nir file is needed here", "ONNX cells run in ONNX Runtime.")
        )
    from spikedeploy.conversion import convert
    from spikedeploy.verify.sides import example_of

    return convert(opened.model, example_of(opened.model, x), **options)
