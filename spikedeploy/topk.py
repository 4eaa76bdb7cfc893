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
                "Leave top-k out.",
            )
        )
    return found


def with_topk(program: Program, k: Keep = 1.0, v: Keep = 1.0) -> Program:
    """The same program with `TopK` on the keys and values of every matrix memory, and a note that says what is kept.

    k, v  how much of the keys `(n,)` and of the values `(d,)` is kept, by magnitude, ties by lowest index; 1.0 (all) inserts nothing

    Keys that are brought to length 1 (Gen3) are made sparse before that, as in training. Raises `ModelRefused` without a matrix memory,
    `BadInput` on a count that does not fit, or that is more than a layer was trained to keep.
    """
    for step in memories_of(program):
        sparse = _sparse(_sparse(program, step.name, "v", v), step.name, "k", k)
        if sparse is not program:
            kept = " and ".join(_kept(sparse, step.name, short) for short in PLACES)
            program = replace(sparse, notes=(*sparse.notes, f"top-k: '{step.name}' keeps {kept}"))
    return program


def kept(program: Program, topk_k: Keep | None = None, topk_v: Keep | None = None) -> Program:
    """`with_topk` as the command line has it: the program itself where neither is given."""
    if topk_k is None and topk_v is None:
        return program
    return with_topk(program, 1.0 if topk_k is None else topk_k, 1.0 if topk_v is None else topk_v)


PLACES = {"v": 0, "k": 1}
"""Which input of a memory is what."""


def _kept(program: Program, memory: str, short: str) -> str:
    reader, place = _reader(program, program.step(memory), PLACES[short])
    wire = reader.inputs[place]
    return f"{_count(program, wire)} of {program.wires[wire][-1]} {'keys' if short == 'k' else 'values'}"


def _count(program: Program, wire: str) -> int:
    """How many entries of a wire can differ from zero by a `TopK`."""
    writer = program.writer(wire)
    return writer.k if isinstance(writer, S.TopK) else program.wires[wire][-1]


def _sparse(program: Program, memory: str, short: str, keep: Keep) -> Program:
    """One wire of one memory. The step goes where the lowering of a layer with top-k has it, so that the digests agree."""
    reader, place = _reader(program, program.step(memory), PLACES[short])
    source, where = reader.inputs[place], f"--topk-{short} of '{memory}'"
    width, own = program.wires[source][-1], _count(program, source)
    count = count_of(keep, width, where)
    if own < count < width:
        found, do = f"{keep} is {count} of {width}", "Give less, or 1.0 to leave the layer as it was trained."
        raise BadInput(message(where, found, f"the layer was trained to keep {own}", do))
    if count >= own:
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


def parse_one(text: str, option: str) -> Keep:
    """One number of `parse_keep`. Raises `BadInput`."""
    return _number(text.strip(), option)[1]


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
