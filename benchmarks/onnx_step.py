"""What one step of an ONNX cell costs: against the bare runtime, against other ways to step, Scan against the loop, one cell against many.

    python benchmarks/onnx_step.py [--rounds 41] [--out benchmarks/results/onnx_step.csv]

All sides of a comparison run in one process, in short turns of about 100 steps, on one thread; figures are medians over rounds, and ratios
and differences are medians of what was found within a round, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime as ort
import torch

from spikedeploy import steps as S
from spikedeploy.exporters.onnx_cell import export
from spikedeploy.program import Output, Program
from spikedeploy.runtime.onnx_runner import OnnxRunner
from spikedeploy.runtime.onnx_sequence import SequenceRunner

Side = Callable[[], object]
RNG = np.random.default_rng(0)


def affine(name: str, source: str, wide: int, out: int) -> S.Affine:
    weight = RNG.normal(size=(out, wide)) / wide**0.5
    return S.Affine(name, (source,), weight.astype(np.float32), RNG.normal(size=out).astype(np.float32) * np.float32(0.2))


def memory(name: str, source: str, m: int, d: int, n: int, *, query: bool) -> list[S.Step]:
    """An associative layer; the wire `name` is `(d*d,)` with a query projection, `(d*n,)` without."""
    steps: list[S.Step] = [
        affine(f"{name}.v", source, m, d),
        affine(f"{name}.k", source, m, n),
        affine(f"{name}.a", source, m, n),
        S.Activation(f"{name}.alpha", (f"{name}.a",), "sigmoid"),
        S.MatrixMemory(f"{name}.S", (f"{name}.v", f"{name}.k", f"{name}.alpha")),
        S.Threshold(f"{name}.spk", (f"{name}.S",), np.array(1, np.float32)),
    ]
    if not query:
        return [*steps, S.Reshape(name, (f"{name}.spk",), (d * n,))]
    product = S.MatMul(f"{name}.PQ", (f"{name}.spk", f"{name}.Q"))
    return [
        *steps,
        affine(f"{name}.q", source, m, n * d),
        S.Reshape(f"{name}.Q", (f"{name}.q",), (n, d)),
        product,
        S.Reshape(name, (product.name,), (d * d,)),
    ]


def leaky(widths: list[int]) -> Program:
    steps: list[S.Step] = []
    for index, (wide, out) in enumerate(pairwise(widths)):
        steps += [
            affine(f"fc{index}", f"lif{index - 1}" if index else "input", wide, out),
            S.Integrator(f"lif{index}.mem", (f"fc{index}",), np.full(out, 0.9, np.float32)),
            S.Threshold(f"lif{index}", (f"lif{index}.mem",), np.array(1, np.float32)),
        ]
    return Program((widths[0],), tuple(steps), (Output("out", steps[-1].name),))


def associative(m: int, d: int, *, query: bool) -> Program:
    return Program((m,), tuple(memory("mem", "input", m, d, d, query=query)), (Output("out", "mem"),))


# --- the sides -------------------------------------------------------------------------------------------------


def bare(data: bytes, x: np.ndarray, session: Any) -> Side:
    """ONNX Runtime alone: the runner's own session (the same weights in the same pages) under IOBinding, nothing done with inputs, outputs
    or states."""
    binding, kept = session.io_binding(), []
    model = onnx.load_from_string(data)
    for bind, infos in ((binding.bind_input, model.graph.input), (binding.bind_output, model.graph.output)):
        for info in infos:
            shape = [1, *(d.dim_value for d in info.type.tensor_type.shape.dim[1:])]
            array = x.astype(np.float32).copy() if info.name == "input" else np.zeros(shape, np.float32)
            kept.append(array)
            bind(info.name, "cpu", 0, np.float32, shape, array.ctypes.data)

    def step(kept: list[np.ndarray] = kept) -> None:  # the buffers live as long as the side
        session.run_with_iobinding(binding)

    return step


def _session(data: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Nothing:
    """A binding that does nothing."""

    def run(self) -> None:
        pass


def emptied(data: bytes, x: np.ndarray) -> Side:
    """What the runner itself does: checks, the input in, the output out. Measured alone, because as a difference of two runs of a large
    cell it drowns in their noise."""
    runner = OnnxRunner(data)
    runner._bindings = (Nothing(), Nothing())
    return lambda: runner.step(x)


def plain_run(data: bytes, x: np.ndarray) -> Side:
    """`session.run` with a dictionary, states handed back and forth as arrays."""
    session = _session(data)
    names = [o.name for o in session.get_outputs()]
    states = {i.name: np.zeros([1, *i.shape[1:]], np.float32) for i in session.get_inputs() if i.name != "input"}

    def step() -> None:
        found = dict(zip(names, session.run(names, {"input": x, **states}), strict=True))
        for name in states:
            states[name] = found[name.replace("past_", "present_", 1)]

    return step


def ort_values(data: bytes, x: np.ndarray) -> Side:
    """`run_with_ort_values`, states kept as OrtValues."""
    session = _session(data)
    names = [o.name for o in session.get_outputs()]
    make = ort.OrtValue.ortvalue_from_numpy
    states = {i.name: make(np.zeros([1, *i.shape[1:]], np.float32)) for i in session.get_inputs() if i.name != "input"}

    def step() -> None:
        found = dict(zip(names, session.run_with_ort_values(names, {"input": make(x), **states}), strict=True))
        found["output"].numpy()
        for name in states:
            states[name] = found[name.replace("past_", "present_", 1)]

    return step


def numpy_step(program: Program, x: np.ndarray) -> Side:
    """The associative layer by hand, in NumPy."""
    w = {s.name[4:]: (s.weight.T.copy(), s.bias) for s in program.steps if isinstance(s, S.Affine)}
    (d, n), state = program.wires["mem.S"], [np.zeros((1, *program.wires["mem.S"]), np.float32)]

    def step() -> np.ndarray:
        v, k, a = (x @ w[key][0] + w[key][1] for key in "vka")
        alpha = 1 / (1 + np.exp(-a))
        state[0] = state[0] * alpha[:, None] + v[:, :, None] * k[:, None]
        spikes = (state[0] > 1).astype(np.float32)
        if "q" not in w:
            return spikes.reshape(1, d * n)
        return (spikes @ (x @ w["q"][0] + w["q"][1]).reshape(1, n, d)).reshape(1, d * d)

    return step


def torch_sides(program: Program, x: np.ndarray) -> dict[str, Side]:
    """The same layer in torch, eager and compiled; the compiled one is left out where there is no compiler."""
    w = {s.name[4:]: (torch.from_numpy(s.weight.copy()), torch.from_numpy(s.bias.copy())) for s in program.steps if isinstance(s, S.Affine)}
    (d, n), linear, given = program.wires["mem.S"], torch.nn.functional.linear, torch.from_numpy(x)

    def cell(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v, k, a = (linear(x, *w[key]) for key in "vka")
        state = state * torch.sigmoid(a)[:, None] + v[:, :, None] * k[:, None]
        spikes = (state > 1).float()
        y = spikes.reshape(1, d * n) if "q" not in w else (spikes @ linear(x, *w["q"]).reshape(1, n, d)).reshape(1, d * d)
        return y, state

    def side(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Side:
        state = [torch.zeros(1, d, n)]

        def step() -> None:
            with torch.inference_mode():
                _, state[0] = function(given, state[0])

        return step

    sides = {"torch eager": side(cell)}
    try:
        compiled = side(torch.compile(cell))
        compiled()
        sides["torch.compile"] = compiled
    except Exception as error:
        print("torch.compile left out:", str(error).splitlines()[0], file=sys.stderr)
    return sides


# --- the comparisons -------------------------------------------------------------------------------------------


def steps_of(name: str, program: Program) -> Iterator[tuple[str, str, Side, int]]:
    """One cell, many ways to step it; ratios are to ONNX Runtime alone."""
    data, x = export(program), RNG.normal(size=(1, *program.input_shape)).astype(np.float32)
    runner = OnnxRunner(data)
    sides: dict[str, Side] = {"ONNX Runtime alone, bound": bare(data, x, runner._session), "OnnxRunner.step": lambda: runner.step(x)}
    sides["OnnxRunner.step without the runtime"] = emptied(data, x)
    sides |= {"session.run": plain_run(data, x), "run_with_ort_values": ort_values(data, x)}
    if "mem.S" in program.wires:
        sides |= {"NumPy": numpy_step(program, x), **torch_sides(program, x)}
    for side, step in sides.items():
        yield name, side, step, 1


def scan_of(name: str, program: Program, length: int = 400) -> Iterator[tuple[str, str, Side, int]]:
    """The loop over the cell against the Scan model; both give the same bits."""
    x = RNG.normal(size=(length, 1, *program.input_shape)).astype(np.float32)
    runner, scan, bound = (
        OnnxRunner(export(program)),
        SequenceRunner(export(program, sequence=True)),
        bare(export(program), x[0], _session(export(program))),
    )
    assert runner.run(x).outputs["out"].tobytes() == scan.run(x).outputs["out"].tobytes()
    yield f"sequence, {name}", "OnnxRunner.run", lambda: runner.run(x), length
    yield f"sequence, {name}", "ONNX Runtime alone, bound loop", lambda: [bound() for _ in range(length)], length
    yield f"sequence, {name}", "Scan", lambda: scan.run(x), length


def stack() -> Iterator[tuple[str, str, Side, int]]:
    """Eight associative layers of d = n = 8 in one cell, and in eight cells that feed each other."""
    layers = [memory(f"m{i}", f"m{i - 1}" if i else "input", 64, 8, 8, query=True) for i in range(8)]
    whole = OnnxRunner(export(Program((64,), tuple(s for layer in layers for s in layer), (Output("out", "m7"),))))
    parts = [OnnxRunner(export(Program((64,), tuple(memory("m", "input", 64, 8, 8, query=True)), (Output("out", "m"),)))) for _ in range(8)]
    x = RNG.normal(size=(1, 64)).astype(np.float32)

    def chain() -> None:
        y = x
        for part in parts:
            y = part.step(y)

    yield "8 layers of d = 8", "one cell", lambda: whole.step(x), 1
    yield "8 layers of d = 8", "eight cells", chain, 1


def comparisons() -> Iterator[tuple[str, list[tuple[str, Side, int]]]]:
    """Groups of sides that run in turns; the first of a group is what its ratios are to."""
    groups = [
        steps_of("step, d = n = 64, input 64, with query", associative(64, 64, query=True)),
        steps_of("step, d = n = 64, input 64, no query", associative(64, 64, query=False)),
        steps_of("step, leaky 784-512-512-10", leaky([784, 512, 512, 10])),
        steps_of("step, leaky 16-16", leaky([16, 16])),
        scan_of("d = n = 64, no query", associative(64, 64, query=False)),
        scan_of("d = n = 16, with query", associative(16, 16, query=True)),
        scan_of("leaky 32-64-64-10", leaky([32, 64, 64, 10])),
        stack(),
    ]
    for group in groups:
        rows = list(group)
        yield rows[0][0], [(side, call, count) for _, side, call, count in rows]


def measured(sides: list[tuple[str, Side, int]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Per side: microseconds a step, its ratio to the first side and its difference, each the median over rounds of short turns."""
    times: dict[str, list[float]] = {name: [] for name, _, _ in sides}
    for turn in range(rounds + 1):
        for name, call, count in sides:
            repeats = max(1, 100 // count)
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - start) / (repeats * count) * 1e6)
    base = times[sides[0][0]]
    return {
        name: (
            statistics.median(found),
            statistics.median(a / b for a, b in zip(found, base, strict=True)),
            statistics.median(a - b for a, b in zip(found, base, strict=True)),
        )
        for name, found in times.items()
    }


def machine() -> str:
    """The processor, without names of hosts or paths."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, one thread; onnxruntime {ort.__version__}, torch {torch.__version__}, numpy {np.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/onnx_step.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for group, sides in comparisons():
        found = measured(sides, options.rounds)
        for side, (microseconds, ratio, more) in found.items():
            rows.append((group, side, f"{microseconds:.2f}", f"{ratio:.2f}", f"{more:+.2f}"))
            print(f"{group:42} {side:36} {microseconds:9.2f} us  x{ratio:6.2f} {more:+9.2f} us", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as stream:
        stream.write(f"# python benchmarks/onnx_step.py --rounds {options.rounds}\n# {machine()}\n")
        csv.writer(stream, lineterminator="\n").writerows(
            [("comparison", "side", "us_per_step", "ratio_to_first", "us_more_than_first"), *rows]
        )


if __name__ == "__main__":
    main()
