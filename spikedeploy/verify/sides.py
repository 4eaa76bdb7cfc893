"""The two sides of a verification: what was trained, and what was made of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spikedeploy.artifact import MEANING, TOPK, Opened, deployed, open_artifact, taken
from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program
from spikedeploy.topk import kept
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import Party, ProgramParty, Real
from spikedeploy.verify.probes import tie_findings

DEPLOYMENTS: tuple[Mapping[str, Any], ...] = tuple(
    {key: value for key, value in (("semantics", semantics), ("truncation", truncation)) if value}
    for truncation in (None, "drop")
    for semantics in (None, "recurrence", "snntorch-1.0.0")
)
"""All of them: an artifact that was made under one says so by its program's digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """program: what is deployed; trained: the same without any chosen change of meaning; model: the torch model, if there is one."""

    program: Program
    trained: Program
    model: Any = None

    def parties(self) -> Sequence[Party]:
        """The trained form."""
        if self.model is None:
            return ()
        from spikedeploy.verify.torch_party import TorchParty

        return (TorchParty(self.model, self.trained),)


@dataclass(frozen=True, slots=True)
class About:
    """What the certificate says of the artifact."""

    name: str | None = None
    sha256: str | None = None
    findings: tuple[Finding, ...] = ()


def sides_of(model: Any, x: Real | None, options: dict[str, Any], made_from: str | None = None) -> Sides:
    """What `model` (path, Program, or torch module) is. `made_from` is the digest of the program that the artifact says it was made from.

    Raises `BadInput` for a module without an input to trace it with, and for anything else.
    """
    if isinstance(model, (str, os.PathLike)):
        opened = open_artifact(model, "model", "nir", **taken(model, options))
        model = opened.model if opened.program is None else opened.program
    if isinstance(model, Program):
        return Sides(_made_sparse(model, options), model)
    if not hasattr(model, "named_modules"):
        raise BadInput(message("model", f"it is a {type(model).__name__}", "a path, a torch module or a Program is needed"))
    return _converted(model, example_of(model, x), options, made_from)


def _made_sparse(program: Program, options: Mapping[str, Any]) -> Program:
    return kept(program, **{name: options[name] for name in TOPK if name in options})


def _converted(model: Any, example: Any, options: Mapping[str, Any], made_from: str | None) -> Sides:
    """Converted by the chosen meaning; when none is, by that under which the model becomes what the artifact was made from. Top-k is
    never guessed."""
    from spikedeploy.conversion import convert

    trained, chosen = convert(model, example), {name: options[name] for name in MEANING if name in options}
    whole = trained
    if chosen:
        whole = deployed(model, example, chosen)
    for meaning in DEPLOYMENTS if made_from is not None and not chosen else ():
        other = convert(model, example, **meaning) if meaning else trained
        if _made_sparse(other, options).digest == made_from:
            whole = other
            break
    return Sides(_made_sparse(trained if whole.digest == trained.digest else whole, options), trained, model)


def example_of(model: Any, x: Real | None) -> Any:
    """None for a model that remembers its own example; else the given input as a tensor, or zeros as wide as the first layer is."""
    import torch

    if getattr(model, "example", None):
        return None
    if x is not None:
        return torch.from_numpy(np.array(x, np.int64 if x.dtype.kind in "iu" else np.float32))
    for module in model.modules():
        for name, make in FIRST.items():
            if isinstance(size := getattr(module, name, None), int):
                return make(size)
    raise BadInput(
        message(
            "model",
            "it was saved without an example input",
            "one is needed to know its shapes",
            "Give one with --input (of address events, with their 'shape').",
        )
    )


def _signal(width: int) -> Any:
    import torch

    return torch.zeros(3, 2, width)


def _tokens(rows: int) -> Any:
    import torch

    return torch.zeros(3, 2, dtype=torch.int64)


FIRST: Mapping[str, Callable[[int], Any]] = {"in_features": _signal, "in_dim": _signal, "num_embeddings": _tokens}
"""What a layer calls its input's width, and an example of that width `(T, B, ...)`. A convolution does not know its image."""


def opened_artifact(artifact: Any, options: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The artifact, opened if it is a path; and the digest of the program that it says it was made from."""
    if isinstance(artifact, (str, os.PathLike)):
        artifact = open_artifact(artifact, "nir", "onnx", **taken(artifact, options))
    runner = artifact.runner if isinstance(artifact, Opened) else artifact
    program = artifact.program if isinstance(artifact, Opened) else artifact
    if isinstance(program, Program):
        return artifact, next((note.removeprefix(MADE_FROM) for note in program.notes if note.startswith(MADE_FROM)), None)
    return artifact, getattr(getattr(runner, "info", None), "digest", None)


MADE_FROM = "made from program "
"""How the NIR reader notes what the file says of its origin."""


def artifact_parties(sides: Sides, artifact: Any) -> tuple[Sequence[Party], About]:
    """The artifact as parties, and what is known of the file."""
    if artifact is None:
        return (), About()
    if isinstance(artifact, Opened):
        parties, findings = PARTIES[artifact.kind](sides, artifact)
        return parties, About(artifact.path.name, artifact.sha256, findings)
    if isinstance(artifact, Program):
        parties, findings = _program_parties(sides, artifact, "artifact")
        return parties, About(findings=findings)
    if hasattr(artifact, "observe"):
        return (artifact,), About()
    parties, findings = _onnx_parties(sides, artifact, "artifact")
    return parties, About(findings=findings)


def _program_parties(sides: Sides, program: Program, name: str) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    if program.input_shape != sides.program.input_shape:
        text = f"the artifact takes inputs of shape {program.input_shape}, the model {sides.program.input_shape}"
        raise BadInput(message("artifact", text, "they must be equal", "Is it another model's?"))
    program, unsaid = _read_out(sides.program, program)
    party = ProgramParty(f"{name} (float32)", program, sides.program)
    renamed, findings = _renamed(sides.program, party)
    return (renamed,), (*findings, *unsaid, *_origin(sides.program, program), *tie_findings(renamed))


def _read_out(source: Program, program: Program) -> tuple[Program, tuple[Finding, ...]]:
    """A file that does not come from here cannot say how its output is reduced over time (NIR has no word for it); the model's way is
    then taken, and that is said."""
    wanted = [output.reduce for output in source.outputs]
    ours = any(note.startswith(MADE_FROM) for note in program.notes)
    if ours or len(wanted) != len(program.outputs) or {output.reduce for output in program.outputs} != {"none"} or set(wanted) == {"none"}:
        return program, ()
    outputs = tuple(replace(output, reduce=reduce) for output, reduce in zip(program.outputs, wanted, strict=True))
    said = Finding("note", f"the artifact does not say how to read it out; the model's way is taken: {', '.join(wanted)} over time")
    return replace(program, outputs=outputs), (said,)


def _origin(source: Program, program: Program) -> Iterator[Finding]:
    """What the file says of itself; a warning where it says that another program is in it."""
    for note in program.notes:
        made_from = note.removeprefix(MADE_FROM) if note.startswith(MADE_FROM) else None
        if made_from is None:
            yield Finding("note", note)
        elif made_from != source.digest:
            text = f"the artifact says it was {MADE_FROM}{made_from[:16]}, this model converts to {source.digest[:16]}"
            yield Finding("warn", f"{text}: other weights, or other options", {"artifact": made_from, "model": source.digest})


def _renamed(source: Program, party: ProgramParty) -> tuple[ProgramParty, tuple[Finding, ...]]:
    """A file that somebody else wrote has names of its own: its outputs and layers are then taken in order, and that is said."""
    findings = []
    own, wanted = ([output.name for output in program.outputs] for program in (party.program, source))
    if len(own) == len(wanted) and not set(own) & set(wanted):
        party.output_names = dict(zip(own, wanted, strict=True))
    ours, theirs = ([step.name for step in program.spiking] for program in (source, party.program))
    if not party.places() and len(ours) == len(theirs):
        party.aliases = dict(zip(ours, theirs, strict=True))
        findings = [
            Finding(
                "note", "no layer has the model's name, so layers were taken in order: " + ", ".join(map(" = ".join, party.aliases.items()))
            )
        ]
    return party, tuple(findings)


def _open_nir(sides: Sides, opened: Opened) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    assert opened.program is not None
    return _program_parties(sides, opened.program, opened.path.name)


def _open_onnx(sides: Sides, opened: Opened) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    return _onnx_parties(sides, opened.runner, opened.path.name)


def _onnx_parties(sides: Sides, runner: Any, name: str) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    """A step cell; nothing inside a model of whole sequences can be replaced or shown."""
    from spikedeploy.verify.onnx_party import OnnxParty, onnx_findings

    if not hasattr(runner, "run_forced"):
        needed = "a program, or the runner of a step cell, is needed to judge layer by layer"
        raise BadInput(message(name, f"it is a {type(runner).__name__}", needed, "Beside a sequence model lies its step cell: name that."))
    return (OnnxParty(runner, sides.program, name),), tuple(onnx_findings(runner, sides.program))


PARTIES: Mapping[str, Callable[[Sides, Opened], tuple[Sequence[Party], tuple[Finding, ...]]]] = {"nir": _open_nir, "onnx": _open_onnx}
"""Per kind of artifact: who takes part for it."""
