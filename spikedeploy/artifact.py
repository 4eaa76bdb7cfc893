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

    options   how the caller wants it taken
    program   its iterative form as read (.nir); a model has one by `program_of`
    model     the parallel torch model (.pt)
    runner    the ONNX Runtime cell (.onnx)
    """

    path: Path
    kind: str
    sha256: str
    options: Mapping[str, Any]
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

MEANING: Mapping[str, tuple[str, tuple[str, str]]] = {
    "semantics": ("Gen2 layer", ("recurrence", "snntorch-1.0.0")),
    "truncation": ("kernel_truncation_steps", ("exact", "drop")),
}
"""What a conversion can be told: what in a model it is about, and its two values."""
TOPK = ("topk_k", "topk_v")
"""What a program can be made sparse by."""
TAKES: Mapping[str, tuple[str, ...]] = {
    "model": ("model", *MEANING, *TOPK),
    "nir": ("dt", "discretisation", *TOPK),
    "onnx": (),
}
"""Per kind of file: the options that have a meaning for it. A cell is what it was when it was written."""


def kind_of(path: str | os.PathLike[str], *kinds: str) -> str:
    """The kind of file by its suffix. Raises `BadInput` on another, or one that is not among `kinds`."""
    found = OPEN.get(Path(path).suffix.lower(), ("", None))[0]
    allowed = [suffix for suffix, (kind, _) in OPEN.items() if not kinds or kind in kinds]
    if not found or found not in (kinds or (found,)):
        raise BadInput(message(f"{path}", f"a file name ending in '{Path(path).suffix}'", f"one of {', '.join(allowed)} is needed"))
    return found


def understood(thing: Any) -> tuple[str, ...]:
    """The options that have a meaning for a path, a program or a torch model; none for anything else."""
    if isinstance(thing, str | os.PathLike):
        return TAKES[kind_of(thing)]
    if isinstance(thing, Program):
        return TOPK
    return (*MEANING, *TOPK) if hasattr(thing, "named_modules") else ()


def taken(path: str | os.PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of several files, those for this one."""
    return {name: options[name] for name in TAKES[kind_of(path)] if name in options}


def refuse_idle(options: Mapping[str, Any], *things: Any) -> None:
    """Raises `BadInput` for an option that has a meaning for none of `things`: its user would believe that it had an effect."""
    known = {name for thing in things for name in understood(thing)}
    for name, value in options.items():
        if value is not None and name not in known:
            found = f"it has no meaning for {' and '.join(map(_called, things))}"
            raise BadInput(message(f"option {name.replace('_', '-')}", found, "an option for such a file is needed", "Leave it out."))


def _called(thing: Any) -> str:
    return str(thing) if isinstance(thing, str | os.PathLike) else f"a {type(thing).__name__}"


def open_artifact(path: str | os.PathLike[str], *kinds: str, **options: Any) -> Opened:
    """Open a file by its suffix; of the options (`TAKES`), those that are None count as not given.

    Raises `BadInput` or `ModelRefused` with a clear message on whatever is wrong with it, and for an option that has no effect on it.
    """
    kind = kind_of(path, *kinds)
    refuse_idle(options, path)
    given = {name: value for name, value in options.items() if value is not None}
    digest = digest_of(path)
    return Opened(Path(path), kind, digest, given, **OPEN[Path(path).suffix.lower()][1](Path(path), given))


def program_of(opened: Opened, x: Any = None) -> Program:
    """The iterative form of what was opened, by the options that it was opened with; a model is converted, with `x` as the example where
    it was saved without one.

    Raises `BadInput` for an ONNX cell, which only a runner can run; `ModelRefused` for a model that cannot be converted.
    """
    from spikedeploy.topk import kept

    if opened.runner is not None:
        raise BadInput(
            message(f"{opened.path}", "it is an ONNX cell", "a .pt or .nir file is needed here", "ONNX cells run in ONNX Runtime.")
        )
    whole = _converted(opened, x) if opened.program is None else opened.program
    return kept(whole, **{name: opened.options[name] for name in TOPK if name in opened.options})


def _converted(opened: Opened, x: Any) -> Program:
    from spikedeploy.verify.sides import example_of

    return deployed(opened.model, example_of(opened.model, x), opened.options)


def deployed(model: Any, example: Any, options: Mapping[str, Any]) -> Program:
    """A torch model, converted by the meaning that is among the options. Raises `BadInput` for one that changes nothing in this model."""
    from spikedeploy.conversion import convert

    chosen = {name: options[name] for name in MEANING if name in options}
    program = convert(model, example, **chosen)
    for name, value in chosen.items():
        (other,) = set(MEANING[name][1]) - {value}
        if convert(model, example, **chosen | {name: other}).digest == program.digest:
            found = f"it changes nothing: the model has no {MEANING[name][0]}"
            raise BadInput(message(f"option {name}", found, "an option for such a model is needed", "Leave it out."))
    return program
