"""Top-k put into a program: only the largest entries of every memory's keys and values are left."""

from __future__ import annotations

from dataclasses import replace

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.program import Program
from spikedeploy.steps import Step

Keep = int | float
"""How much is kept: a whole number is a count, a float in (0, 1] a fraction of the width, rounded up."""

MEMORIES = (S.MatrixMemory, S.DeltaMemory)


def memories_of(program: Program) -> list[Step]:
    """The matrix memories. Raises `ModelRefused` where there is none: nothing else has keys and values."""
    found: list[Step] = [step for step in program.steps if isinstance(step, MEMORIES)]
    if not found:
        kinds = ", ".join(sorted({type(step).__name__ for step in program.spiking})) or "no spiking layer"
        raise ModelRefused(
            message(
                "model",
                f"no matrix memory in it ({kinds}), so top-k has nothing to make sparse",
                "a Gen2 or Gen3 layer (AssociativeLeaky, DeltaRuleLeaky) is needed",
                "`spikedeploy report` counts what any other model does.",
            )
        )
    return found


def with_topk(program: Program, k: Keep = 1.0, v: Keep = 1.0) -> Program:
    """The same program with `TopK` on the keys and values of every matrix memory.

    k, v  how much of the keys `(n,)` and of the values `(d,)` is kept, by magnitude, ties by lowest index; 1.0 (all) inserts nothing

    Keys that are brought to length 1 (Gen3) are made sparse before that, as in training. A layer that was trained with top-k keeps
    its own: the smaller count decides. Raises `ModelRefused` without a matrix memory, `BadInput` on a count that does not fit.
    """
    for step in memories_of(program):
        program = _sparse(program, step.name, "v", 0, v)
        program = _sparse(program, step.name, "k", 1, k)
    return program


def _sparse(program: Program, memory: str, short: str, place: int, keep: Keep) -> Program:
    """One wire of one memory. The step goes where the lowering of a layer with top-k has it, so that the digests agree."""
    reader, place = _reader(program, program.step(memory), place)
    source = reader.inputs[place]
    count, writer = count_of(keep, program.wires[source][-1], f"--topk-{short} of '{memory}'"), program.writer(source)
    if count >= (writer.k if isinstance(writer, S.TopK) else program.wires[source][-1]):
        return program
    top = S.TopK(_free(program, f"{memory.removesuffix('.S')}.{short}_top"), (source,), count)
    inputs = tuple(top.name if index == place else wire for index, wire in enumerate(reader.inputs))
    steps = [replace(step, inputs=inputs) if step is reader else step for step in program.steps]
    steps.insert(_place(program, memory, source), top)
    origin = {**program.origin, **({top.name: program.origin[memory]} if memory in program.origin else {})}
    return replace(program, steps=tuple(steps), origin=origin)


def _reader(program: Program, step: Step, place: int) -> tuple[Step, int]:
    """The step before which the wire is made sparse: the memory, or the normalisation of its keys."""
    writer = program.writer(step.inputs[place])
    return (writer, 0) if isinstance(writer, S.L2Normalize) else (step, place)


def _place(program: Program, memory: str, source: str) -> int:
    """Where the new step goes: before the first that reads the keys or the values, but after what computes `source`."""
    step = program.step(memory)
    readers = [_reader(program, step, place)[0] for place in (0, 1)]
    written = [index for index, other in enumerate(program.steps) if source in other.outputs]
    return max([index + 1 for index in written] + [min(program.steps.index(reader) for reader in readers)])


def _free(program: Program, name: str) -> str:
    while name in program.wires:
        name += "2"
    return name


def count_of(keep: Keep, width: int, where: str) -> int:
    """How many of `width` entries are kept. Raises `BadInput`."""
    from spikedeploy.nn.topk import topk_count

    count = topk_count(keep, width, where)
    assert count is not None
    return count


def parse_keep(text: str, option: str) -> tuple[Keep, ...]:
    """`1.0,0.5,8`: fractions in (0, 1] and counts, in order, each once. Raises `BadInput`."""
    found = dict.fromkeys(_number(part.strip(), option) for part in text.split(","))
    return tuple(value for kind, value in found)


def parse_one(text: str | None, option: str) -> Keep | None:
    """One number of `parse_keep`; None where the option is not given. Raises `BadInput`."""
    return None if text is None else _number(text.strip(), option)[1]


def _number(part: str, option: str) -> tuple[str, Keep]:
    """With its kind, because 1 (an entry) and 1.0 (all) are equal numbers."""
    try:
        value: Keep = int(part) if part.isdecimal() and len(part) < 10 else float(part)
    except ValueError:
        value = 0
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise BadInput(
            message(option, repr(part), "fractions in (0, 1] and counts, with commas between them, are needed", "For example 1.0,0.5,8.")
        )
    return type(value).__name__, value
