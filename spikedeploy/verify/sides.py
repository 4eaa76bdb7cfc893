"""The two sides of a verification: what was trained, and what was made of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedeploy.artifact import Opened, open_artifact
from spikedeploy.errors import BadInput, message
from spikedeploy.program import Program
from spikedeploy.verify.certificate import Finding
from spikedeploy.verify.parties import Party, ProgramParty, Real
from spikedeploy.verify.probes import tie_findings

DEPLOYMENT = ("semantics", "truncation")
"""Options of the conversion that choose another meaning than the one that was trained."""


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


def sides_of(model: Any, x: Real | None, options: dict[str, Any]) -> Sides:
    """What `model` (path, Program, or torch module) is. Raises `BadInput` for a module without an input to trace it with."""
    if isinstance(model, Program):
        return Sides(model, model)
    if isinstance(model, (str, os.PathLike)):
        opened = open_artifact(model, "model", "nir", model=options.pop("model", None))
        if opened.program is not None:
            return Sides(opened.program, opened.program)
        model = opened.model
    options.pop("model", None)
    return _converted(model, x, options)


def _converted(model: Any, x: Real | None, options: Mapping[str, Any]) -> Sides:
    from spikedeploy.conversion import convert

    example = example_of(model, x)
    program = convert(model, example, **options)
    chosen = {key: value for key, value in options.items() if key not in DEPLOYMENT}
    trained = program if len(chosen) == len(options) else convert(model, example, **chosen)
    return Sides(program, program if trained.digest == program.digest else trained, model)


def example_of(model: Any, x: Real | None) -> Any:
    """None for a model that remembers its own example; else the given input as a tensor."""
    import torch

    if getattr(model, "example", None):
        return None
    if x is None:
        raise BadInput(
            message(
                "model",
                "it was saved without an example input",
                "one is needed to know its shapes",
                "Give one with --input, or save it with one.",
            )
        )
    return torch.from_numpy(np.array(x, np.int64 if x.dtype.kind in "iu" else np.float32))


def artifact_parties(sides: Sides, artifact: Any, options: Mapping[str, Any]) -> tuple[Sequence[Party], About]:
    """The artifact as parties, and what is known of the file."""
    if artifact is None:
        return (), About()
    if isinstance(artifact, (str, os.PathLike)):
        opened = open_artifact(artifact, "nir", "onnx", dt=options.get("dt"))
        parties, findings = PARTIES[opened.kind](sides, opened)
        return parties, About(Path(artifact).name, opened.sha256, findings)
    if isinstance(artifact, Program):
        parties, findings = _program_parties(sides, artifact, "artifact")
        return parties, About(findings=findings)
    if hasattr(artifact, "observe"):
        return (artifact,), About()
    from spikedeploy.verify.onnx_party import OnnxParty, onnx_findings

    return (OnnxParty(artifact, sides.program),), About(findings=tuple(onnx_findings(artifact, sides.program)))


def _program_parties(sides: Sides, program: Program, name: str) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    from spikedeploy.verify.relay import RelayParty

    if program.input_shape != sides.program.input_shape:
        text = f"the artifact takes inputs of shape {program.input_shape}, the model {sides.program.input_shape}"
        raise BadInput(message("artifact", text, "they must be equal", "Is it another model's?"))
    party = RelayParty(f"{name} (float32)", program, sides.program)
    renamed = _outputs_renamed(sides.program, party)
    return (renamed,), (*tie_findings(renamed), *(Finding("note", note) for note in program.notes))


def _outputs_renamed(source: Program, party: ProgramParty) -> ProgramParty:
    """Outputs that have the same place in the list but another name are the same (formats have their own names)."""
    own = [output.name for output in party.program.outputs]
    wanted = [output.name for output in source.outputs]
    if own != wanted and len(own) == len(wanted) and not set(own) & set(wanted):
        party.output_names = dict(zip(own, wanted, strict=True))
    return party


def _open_nir(sides: Sides, opened: Opened) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    assert opened.program is not None
    return _program_parties(sides, opened.program, opened.path.name)


def _open_onnx(sides: Sides, opened: Opened) -> tuple[Sequence[Party], tuple[Finding, ...]]:
    from spikedeploy.verify.onnx_party import OnnxParty, onnx_findings

    return (OnnxParty(opened.runner, sides.program, opened.path.name),), tuple(onnx_findings(opened.runner, sides.program))


PARTIES: Mapping[str, Callable[[Sides, Opened], tuple[Sequence[Party], tuple[Finding, ...]]]] = {"nir": _open_nir, "onnx": _open_onnx}
"""Per kind of artifact: who takes part for it."""
