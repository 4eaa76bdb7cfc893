"""The engine against the float64 reference for thousands of steps, on every model of the tests' zoo: no spike may differ outside the
rounding bound.

    PYTHONPATH=tests python benchmarks/soak.py [--steps 5000] [--out benchmarks/results/soak.csv]

Each spiking layer is judged on the reference's inputs to that layer: the engine runs the linear maps and neurons between two spiking
layers, fed with the spikes of the float64 reference, and its decisions are compared wherever the reference is farther from the threshold
than its bound E (docs/verify.md).
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import zoo

from spikedeploy import steps as S
from spikedeploy.conversion import convert
from spikedeploy.program import INPUT, Output, Program
from spikedeploy.runtime import EventEngine
from spikedeploy.verify.bounds import bound
from spikedeploy.verify.inputs import random_input


def parts(program: Program) -> list[tuple[str, list[str]]]:
    """Per spiking layer: its wire and the spike wires (or the input) that it depends on through steps that do not spike."""
    spiking = {step.name for step in program.spiking}
    found = []
    for step in program.spiking:
        seen: list[str] = []
        waiting = list(step.inputs)
        while waiting:
            wire = waiting.pop()
            if wire == INPUT or wire in spiking:
                seen.append(wire)
            else:
                writer = program.writer(wire)
                assert writer is not None
                waiting += writer.inputs
        found.append((step.name, sorted(set(seen))))
    return found


def isolated(program: Program, layer: str, sources: list[str]) -> Program:
    """The program from its sources to the layer; the sources lie one after another in its input."""
    needed, waiting = set(), [layer]
    while waiting:
        wire = waiting.pop()
        writer = program.writer(wire)
        if wire not in sources and writer is not None and writer.name not in needed:
            needed.add(writer.name)
            waiting += writer.inputs
    if sources == [INPUT]:
        steps = [step for step in program.steps if step.name in needed]
        return Program(program.input_shape, tuple(steps), (Output(layer, layer),), program.input_kind)
    given: list[S.Step] = []
    start = 0
    for source in sources:
        shape = program.wires[source]
        given.append(S.Slice(f"given {source}", (INPUT,), start, start + prod(shape)))
        given.append(S.Reshape(f"from {source}", (f"given {source}",), shape))
        start += prod(shape)
    steps = [replace(s, inputs=tuple(f"from {w}" if w in sources else w for w in s.inputs)) for s in program.steps if s.name in needed]
    return Program((start,), (*given, *steps), (Output(layer, layer),))


def judged(program: Program, steps: int, batch: int) -> list[dict[str, Any]]:
    x = random_input(program, steps, batch, 0)
    bounds = bound(program, x)
    rows = []
    for layer, sources in parts(program):
        alone = isolated(program, layer, sources)
        wires = {INPUT: x, **bounds.spikes}
        given = (
            x if sources == [INPUT] else np.concatenate([wires[s].reshape(steps, batch, -1) for s in sources], axis=2).astype(np.float32)
        )
        spikes = EventEngine(alone, batch).run(given).outputs[layer]
        step = program.step(layer)
        assert isinstance(step, S.Firing)
        decision = bounds.decisions[layer]
        inside = np.abs(decision.value - step.threshold) <= decision.error
        different = (spikes != 0) != (bounds.spikes[layer] != 0)
        rows.append({
            "layer": layer, "decisions": different.size, "undecided": int(inside.sum()),
            "different inside": int((different & inside).sum()),
            "different outside": int((different & ~inside).sum()), "verdict": "equal" if not np.any(different & ~inside) else "DIFFERENT",
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in zoo.MODELS.items():
        model, x = make()
        for row in judged(convert(model, x), arguments.steps, arguments.batch):
            rows.append({"model": name, **row})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    fields = ["model", "layer", "decisions", "undecided", "different inside", "different outside", "verdict"]
    with arguments.out.open("w", newline="") as file:
        file.write(f"# PYTHONPATH=tests python benchmarks/soak.py --steps {arguments.steps} --batch {arguments.batch}\n")
        table = csv.DictWriter(file, fields)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
