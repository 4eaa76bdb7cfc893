"""Programs as NIR graphs: the exact reset-free forms of each reader, by profile.

The graph is built in memory, written to bytes, read back by `spikedeploy.readers.nir` (which knows NIR's equations and nothing of this
file), run in the reference runtime and compared with the program. Only then is anything handed out or written.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.exporters.atomic import write_bytes
from spikedeploy.exporters.nir_build import Builder, start
from spikedeploy.exporters.nir_check import check, spikes_apart
from spikedeploy.exporters.nir_file import to_bytes
from spikedeploy.exporters.nir_maps import STEPS, WORDS
from spikedeploy.exporters.nir_profiles import PROFILES, Discretisation, Profile
from spikedeploy.exporters.nir_relay import Parts, branches, in_line
from spikedeploy.program import Output, Program
from spikedeploy.readers.nir import from_bytes

__all__ = ["PROFILES", "Profile", "export", "write"]


def export(program: Program, *, profile: str = "generic", dt: float | None = None, discretisation: Discretisation | None = None) -> bytes:
    """The program as the bytes of a NIR file, verified; the same bytes for the same program on every run.

    profile          who will read it, a key of `PROFILES`
    dt               the time step that the reader will use, in the profile's units; the profile has a default
    discretisation   "euler" (decay 1 - dt/tau) or, for the profile `spec`, "exact" (decay exp(-dt/tau))

    Raises `ModelRefused` naming the layer that the profile cannot carry, `BadInput` on an option, `NotEquivalent` if the file read back
    computes anything else. The profile `lif` is another model by design; how many spikes differ stands in the file's `notes`.
    """
    row, dt, cut = _options(profile, dt, discretisation)
    program = _live(program)
    _supported(program, row)
    build = start(*_in_line(program, row), row, dt, cut)
    outputs = _fill(build)
    data = to_bytes(build, outputs, program.digest)
    if not row.exact:
        build.notes.append(_how_far(program, from_bytes(data)))
        return to_bytes(build, outputs, program.digest)
    left_out = {o.name for o in program.outputs} - {o.name for o in outputs}
    check(program, from_bytes(data), build.parts, left_out, row.input_range)
    return data


def _how_far(program: Program, artifact: Program) -> str:
    """What a profile that changes the model does to its spikes, on random input."""
    wrong, chances = spikes_apart(program, artifact)
    return f"NOT the same model: its neurons reset when they fire; {wrong} of {chances} spikes and silences differ on random input"


def write(
    program: Program,
    path: str | os.PathLike[str],
    *,
    profile: str = "generic",
    dt: float | None = None,
    discretisation: Discretisation | None = None,
) -> Path:
    """`export` to a file: the old file or the whole new one, nothing else. Returns the path; raises as `export` and `write_bytes` do."""
    return write_bytes(path, export(program, profile=profile, dt=dt, discretisation=discretisation))


def _options(profile: str, dt: float | None, discretisation: Discretisation | None) -> tuple[Profile, float, Discretisation]:
    row = PROFILES.get(profile)
    if row is None:
        raise BadInput(message("option profile", f"'{profile}' is unknown", f"one of {', '.join(PROFILES)} is needed"))
    dt = row.dt if dt is None else float(dt)
    if not 0 < dt < float("inf"):
        raise BadInput(message("option dt", f"it is {dt}", "a time step above zero is needed"))
    if row.fixed_dt and dt != row.dt:
        raise BadInput(
            message("option dt", f"it is {dt}", f"the reader of profile '{profile}' always takes {row.dt}", "Leave the option out.")
        )
    cut = discretisation or row.discretisation
    if discretisation not in (None, "euler", "exact"):
        raise BadInput(message("option discretisation", f"it is '{cut}'", "euler or exact is needed"))
    if cut == "exact" and row.form != "li-threshold":
        raise BadInput(
            message("option discretisation", f"profile '{profile}' is read with Euler steps", "euler is needed", "Use --profile spec.")
        )
    return row, dt, cut


def _live(program: Program) -> Program:
    """The program without the steps that no output needs."""
    needed = {output.wire for output in program.outputs}
    kept = []
    for step in reversed(program.steps):
        if needed & set(step.outputs):
            needed |= set(step.inputs)
            kept.append(step)
    if len(kept) == len(program.steps) or not kept:
        return program
    return Program(
        program.input_shape,
        tuple(reversed(kept)),
        program.outputs,
        input_kind=program.input_kind,
        origin=program.origin,
        notes=program.notes,
    )


def _in_line(program: Program, profile: Profile) -> tuple[Program, Parts]:
    """The program in the form that the reader can wire: without sums where it does not add."""
    if profile.fan_in == "line":
        return in_line(program)
    if _has_grids(program):
        return _as_matrices(program)
    if profile.fan_in == "sum" or not branches(program):
        return program, {}
    if profile.fan_in == "relay":
        return in_line(program)
    if any(isinstance(step, S.Conv2d) for step in program.steps):
        return program, {}
    try:
        return in_line(program)
    except ModelRefused:
        return program, {}


def _has_grids(program: Program) -> bool:
    """True when a vector becomes maps again: NIR can only flatten."""
    return any(
        isinstance(step, S.Reshape) and len(step.shape) > 1 and step.shape != program.wires[step.inputs[0]] for step in program.steps
    )


def _as_matrices(program: Program) -> tuple[Program, Parts]:
    """Everything between two layers of neurons as one matrix; the program itself where that cannot be."""
    try:
        lined, parts = in_line(program)
    except ModelRefused:
        return program, {}
    return replace(lined, notes=(*lined.notes, "what reshapes vectors to maps (and convolutions with it) is written as matrices")), parts


_MEMORIES = (S.MatrixMemory, S.DeltaMemory, S.DiagonalSSM)


def _supported(program: Program, profile: Profile) -> None:
    """Refuses what no node can say, before anything else is looked at."""
    if program.input_kind != "float":
        raise ModelRefused(message("model", "its input is token numbers", "NIR carries signals", "Use --target onnx."))
    # a memory first: it is what the layer is, and its sigmoids and norms are parts of it
    for index, step in sorted(enumerate(program.steps), key=lambda item: not isinstance(item[1], _MEMORIES)):
        kind, where = type(step), program.where(index)
        if kind not in STEPS:
            said = f"NIR has no node for {WORDS.get(kind, kind.__name__)}"
            raise ModelRefused(message(where, said, "linear maps, sums, delays and leaky neurons can be written", "Use --target onnx."))
        if kind is S.Delay and "Delay" not in profile.nodes:
            said = f"it needs a delay line, and the reader of profile '{profile.name}' has no Delay node"
            raise ModelRefused(message(where, said, "another form", "Use --profile generic or spec, or --truncation drop."))


def _fill(build: Builder) -> tuple[Output, ...]:
    """All steps as nodes; returns the readout."""
    for index, step in enumerate(build.program.steps):
        build.where = build.program.where(index)
        STEPS[type(step)](build, step)
    return _finish(build)


# --- outputs ---------------------------------------------------------------------------------------------------


def _finish(build: Builder) -> tuple[Output, ...]:
    """Output nodes and the readout; what cannot be carried is noted."""
    found: list[Output] = []
    ends: dict[str, str] = {}
    for output in build.program.outputs:
        if output.wire in build.wires and not (ends and _inner(build, output)):
            ends[output.wire] = ends.get(output.wire) or _end(build, output, len(ends))
            found.append(Output(output.name, ends[output.wire], output.reduce))
        elif _membrane_shown(build, output):
            found.append(output)
        else:
            build.notes.append(f"output '{output.name}' (membrane '{output.wire}') is not carried by this graph")
    if not ends:
        do = "Let the model return its spikes, or use --profile spec."
        where = f"output '{build.program.outputs[0].name}'"
        raise ModelRefused(message(where, "it is a membrane", "NIR's spiking nodes put out spikes only", do))
    return tuple(found)


def _inner(build: Builder, output: Output) -> bool:
    """A membrane beside the spikes, for a reader with one output: it stays inside, and the readout names its node."""
    return not build.profile.many_outputs and isinstance(build.program.writer(output.wire), S.Integrator)


def _end(build: Builder, output: Output, count: int) -> str:
    """An Output node on the wire; returns the name under which the wire is read back."""
    build.where = f"output '{output.name}'"
    if count and not build.profile.many_outputs:
        raise build.refuse("it is a second output", f"the reader of profile '{build.profile.name}' has one", "Use --profile generic.")
    if isinstance(build.program.writer(output.wire), S.Integrator) and build.profile.form == "cuba":
        build.notes.append(f"output '{output.name}' is a membrane (LI node): norse ignores such nodes silently, snnTorch refuses them")
    wire = build.plain(output.wire)
    if len(wire.nodes) > 1 or wire.nodes[0] == "input":  # readers do not add in front of an output
        wire = build.scaled(f"{output.wire}", wire, np.ones(wire.shape), "out")
    name = "output" if not count else build.node_name(f"output_{output.name}")
    build.names.pop(name, None)
    build.nodes[name] = ("Output", {"shape": np.array(wire.shape)})
    build.edges.append((wire.nodes[0], name))
    return build.names.get(wire.nodes[0], wire.nodes[0])


def _membrane_shown(build: Builder, output: Output) -> bool:
    """True when the reader of the graph can show this membrane from inside a spiking node, in the model's own units."""
    step = build.program.writer(output.wire)
    if build.profile.form == "lif" or output.wire in build.rescaled:
        return False
    if isinstance(step, S.LIF):
        return step.reset == "value" or (step.reset == "zero" and not step.reset_delay)
    return isinstance(step, S.Integrator) and bool(np.any(step.decay))
