"""The event-driven engine against ONNX Runtime and snnTorch, in one process, in turns, on one thread.

    python benchmarks/events.py [--rounds 7] [--only floor,memory,camera,wide,bandwidth,threads,layers] [--out benchmarks/results]

A figure is the median over rounds of the mean time of a step. Every layer's threshold is set so that its spikes have the sparsity named;
the input has it too.
ONNX Runtime's side is the fastest of four: the exported cell and a leaner one (Gemm, Mul, Add, Greater, Cast), each stepped through
IOBinding and as a Scan.
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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime as ort
import torch
from events_programs import associative, calibrated, camera, layers
from events_sides import Side, bound_loop, lean, on_events, scan, snntorch_loop, streamed, whole

from spikedeploy import steps as S
from spikedeploy.exporters.onnx_cell import export
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
TARGETS = dict(zip(SPARSITIES, (2.5, 6, 9, 13, 26), strict=True))

Sides = dict[str, tuple[Side, float]]


def in_turns(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Microseconds a step of each side, round by round; `(side, steps in one call)`."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side, _ in sides.values():
        side()
    for _ in range(rounds):
        for name, (side, steps) in sides.items():
            begin = time.perf_counter()
            side()
            times[name].append((time.perf_counter() - begin) / steps * 1e6)
    return times


def medians(sides: Sides, rounds: int) -> dict[str, float]:
    """Microseconds a step of each side, in turns."""
    return {name: statistics.median(values) for name, values in in_turns(sides, rounds).items()}


Row = dict[str, Any]


def active_bytes(program: Program, x: np.ndarray) -> float:
    """Bytes of float32 weight rows that a step reads."""
    run = EventEngine(program).run(x)
    total = float(np.count_nonzero(x)) / len(x) * program.steps[0].weight.shape[0]
    for step in program.steps[3:]:
        if isinstance(step, S.Affine):
            total += run.spikes[step.inputs[0]] / len(x) * step.weight.shape[0]
    return total * 4


COLUMNS = 128


def counted(program: Program, x: np.ndarray) -> float:
    """What int8 would gain if the first-level cache held all weights: vector operations of float32 over those of int8, for vectors of 16
    numbers and panels of 128 columns.

    A row of a panel is 8 loads and additions of float32, and 6 operations of int8 (two lines; add, shift, add). Once a panel and step come
    32 operations of its neurons, and for int8 28 that make currents of sums.
    """
    rows = active_bytes(program, x) / (4 * COLUMNS)
    panels = sum(-(-step.weight.shape[0] // COLUMNS) for step in program.steps if isinstance(step, S.Affine))
    return (8 * rows + 32 * panels) / (6 * rows + 60 * panels)


def idle(sizes: tuple[int, ...], steps: int, **options: Any) -> Side:
    """What remains where no weight is ever read: no input, no spike, yet every neuron is updated at every step, because a small bias
    without a leak forbids the proof that it stays silent."""
    return whole(layers(sizes, [1.0] * (len(sizes) - 1), bias=1e-7, decay=1.0), np.zeros((steps, 1, sizes[0]), np.float32), **options)


def measure_layers(rounds: int) -> Iterator[Row]:
    for sizes in ((784, 512, 512, 10), (128, 256, 256, 256, 1000)):
        for sparsity in SPARSITIES:
            rng = np.random.default_rng(1)
            x = (rng.random((1000, 1, sizes[0])) >= sparsity).astype(np.float32)
            program = calibrated(sizes, x, sparsity)
            cell, sequence = export(program, static_batch=1), export(program, sequence=True)
            sides: Sides = {
                "engine whole": (whole(program, x), len(x)),
                "engine streamed": (streamed(program, x), len(x)),
                "int8 whole": (whole(program, x, weights="int8"), len(x)),
                "engine idle": (idle(sizes, len(x)), len(x)),
                "ort cell": (bound_loop(cell, x[:300]), 300),
                "ort scan": (scan(sequence, x[:300]), 300),
                "ort lean cell": (bound_loop(lean(program, scan=False), x[:300]), 300),
                "ort lean scan": (scan(lean(program, scan=True), x[:300]), 300),
                "snntorch": (snntorch_loop(program, x[:100]), 100),
            }
            found = medians(sides, rounds)
            best = min(value for name, value in found.items() if name.startswith("ort"))
            above = [found[name] - found["engine idle"] for name in ("engine whole", "int8 whole")]
            yield {
                "what": "-".join(map(str, sizes)), "sparsity": sparsity, **{k: round(v, 3) for k, v in found.items()},
                "times ort": round(best / found["engine whole"], 2), "target": TARGETS[sparsity],
                "times snntorch": round(found["snntorch"] / found["engine whole"], 1),
                "int8 against float32": round(found["engine whole"] / found["int8 whole"], 2),
                "int8 against float32 above idle": round(above[0] / above[1], 2),
                "int8 by count": round(counted(program, x), 2), "int8 target": 2,
                "weight GB/s": round(active_bytes(program, x) / found["engine whole"] / 1e3, 1),
            }  # fmt: skip


def measure_memory(rounds: int) -> Iterator[Row]:
    """Gen2, d = n = 64, input 256."""
    program = associative(256, 64)
    for sparsity in (0.5, 0.9, 0.99):
        x = (np.random.default_rng(1).random((100, 1, 256)) >= sparsity).astype(np.float32)
        sides: Sides = {
            "engine whole": (whole(program, x), len(x)), "engine streamed": (streamed(program, x), len(x)),
            "ort cell": (bound_loop(export(program, static_batch=1), x), len(x)), "ort scan": (scan(export(program, sequence=True), x),
            len(x)),
        }  # fmt: skip
        found = medians(sides, rounds)
        fired = EventEngine(program).run(x).spikes["spk"] / len(x) / 4096
        best = min(found["ort cell"], found["ort scan"])
        yield {
            "what": "Gen2 d=n=64 input 256", "sparsity": sparsity, "cells that spike": round(fired, 4), **{k: round(v, 2) for k,
            v in found.items()},
            "times ort cell": round(found["ort cell"] / found["engine streamed"], 2),
            "times best ort": round(best / found["engine whole"], 2),
            "target": 5 if sparsity == 0.9 else "",
        }  # fmt: skip


def measure_camera(rounds: int) -> Iterator[Row]:
    """Events like an event camera's: 1 % of the pixels at every step, address events in, convolutions.

    The engine runs them in calls of 5,000 steps, which take about as long as a turn of the other sides, and "in 1000s", where a call begins
    with caches that the other sides filled and ends soon after.
    """
    program = camera([0.45, 0.35])
    for rate in (0.01, 0.003):
        x = (np.random.default_rng(1).random((5000, 1, 2, 34, 34)) < rate).astype(np.float32)
        few = x[:1000]
        sides: Sides = {
            "engine events": (on_events(program, x), len(x)), "engine events in 1000s": (on_events(program, few), len(few)),
            "engine dense": (whole(program, few), len(few)), "engine streamed": (streamed(program, few), len(few)),
            "ort cell": (bound_loop(export(program, static_batch=1), x[:200]), 200),
            "ort scan": (scan(export(program, sequence=True), x[:200]), 200),
        }  # fmt: skip
        found = medians(sides, 3 * rounds)
        run = EventEngine(program).run(few)
        rates = {f"rate {name}": round(run.rate(name), 4) for name in run.spikes}
        best = min(found["ort cell"], found["ort scan"])
        yield {
            "what": "2x34x34 conv conv 10", "input rate": rate, **rates, **{k: round(v, 2) for k, v in found.items()},
            "times ort": round(best / found["engine events"], 1),
            "times ort in 1000s": round(best / found["engine events in 1000s"], 1), "target": 30 if rate == 0.01 else "",
        }  # fmt: skip


def measure_wide(rounds: int) -> Iterator[Row]:
    """The same events into linear layers, 2312-512-512-10."""
    sizes = (2 * 34 * 34, 512, 512, 10)
    x = (np.random.default_rng(1).random((400, 1, sizes[0])) < 0.01).astype(np.float32)
    program = calibrated(sizes, x, 0.99)
    sides: Sides = {
        "engine whole": (whole(program, x), len(x)), "engine streamed": (streamed(program, x), len(x)),
        "ort cell": (bound_loop(export(program, static_batch=1), x[:200]), 200), "ort scan": (scan(export(program, sequence=True),
        x[:200]), 200),
        "ort lean cell": (bound_loop(lean(program, scan=False), x[:200]), 200),
    }  # fmt: skip
    found = medians(sides, rounds)
    best = min(value for name, value in found.items() if name.startswith("ort"))
    yield {
        "what": "-".join(map(str, sizes)),
        "input rate": 0.01,
        **{k: round(v, 2) for k, v in found.items()},
        "times ort": round(best / found["engine whole"], 1),
        "target": 30,
    }


def readers(name: str, megabytes: float, total: float = 100) -> Sides:
    """Reading that many bytes again and again, in order, as three vector loops do: the engine's check of its input, NumPy's maximum, a dot
    product. Side by side with what they are to measure. A step is a gigabyte."""
    from spikedeploy import native
    from spikedeploy.runtime.events_pack import aligned

    ffi, lib = native.core()
    x = aligned((int(megabytes * 250_000),), np.float32)
    x[:] = 1
    pointer = ffi.cast("float *", x.ctypes.data)
    loops: dict[str, Side] = {"check": lambda: lib.sd_event_finite(pointer, len(x)), "max": x.max, "dot": lambda: np.dot(x, x)}

    times = max(1, round(total / megabytes))

    def again(loop: Side) -> None:
        for _ in range(times):
            loop()

    return {f"{name} {megabytes:g} MB {loop}": (partial(again, read), times * megabytes / 1e3) for loop, read in loops.items()}


def share(times: dict[str, list[float]], side: str, gigabytes: float, cache: str) -> tuple[float, float, float]:
    """GB/s of a side that reads so much in a step, GB/s of the best reading loop of that cache, and the share: of both in one round, the
    median over the rounds, because the clock changes from round to round."""
    best = min((name for name in times if name.startswith(cache)), key=lambda name: statistics.median(times[name]))
    shares = [gigabytes * read / own for own, read in zip(times[side], times[best], strict=True)]
    speeds = (gigabytes / statistics.median(times[side]), 1 / statistics.median(times[best]))
    return speeds[0] * 1e6, speeds[1] * 1e6, statistics.median(shares)


def measure_bandwidth(rounds: int) -> Iterator[Row]:
    """Active weight bytes over time, against reading in order from the cache that holds them: L2 for whole sequences (a panel of half a
    megabyte, and what is read with it), L3 for streams. The best reading loop counts, right beside the side that it measures."""
    for sizes in ((512, 512, 512), (2048, 2048), (2048, 2048, 2048)):
        weights = sum(a * b * 4 for a, b in pairwise(sizes)) / 1e6
        for sparsity in (0.5, 0.9):
            x = (np.random.default_rng(1).random((1024, 1, sizes[0])) >= sparsity).astype(np.float32)
            program = calibrated(sizes, x, sparsity)
            sides: Sides = {
                **readers("near", 0.5), "engine whole": (whole(program, x), len(x)), **readers("near", 1.0),
                "int8 whole": (whole(program, x, weights="int8"), len(x)),
                **readers("far", weights), "engine streamed": (streamed(program, x[:256]), 256),
            }  # fmt: skip
            times, size = in_turns(sides, 3 * rounds), active_bytes(program, x)
            found = {side: statistics.median(times[side]) for side in ("engine whole", "engine streamed", "int8 whole")}
            whole_speed, near, whole_share = share(times, "engine whole", size / 1e9, "near")
            stream_speed, far, stream_share = share(times, "engine streamed", size / 1e9, "far")
            yield {
                "what": "-".join(map(str, sizes)), "sparsity": sparsity,
                **{k: round(v, 2) for k, v in found.items()}, "active MB": round(size / 1e6, 3),
                "whole GB/s": round(whole_speed, 1), "L2 read GB/s": round(near, 1), "whole of L2": round(whole_share, 3),
                "streamed GB/s": round(stream_speed, 1), "read of all weights GB/s": round(far, 1),
                "streamed of it": round(stream_share, 3),
                "int8 against float32": round(found["engine whole"] / found["int8 whole"], 2), "int8 target": 2,
            }  # fmt: skip


def measure_threads(rounds: int) -> Iterator[Row]:
    """Whole sequences on several threads, as far as the process may use several processors. For information."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for sizes, steps in (((784, 512, 512, 10), 1000), ((128, 256, 256, 256, 1000), 1000), ((2048, 2048, 2048), 512)):
        for sparsity in (0.5, 0.9):
            x = (np.random.default_rng(1).random((steps, 1, sizes[0])) >= sparsity).astype(np.float32)
            program = calibrated(sizes, x, sparsity)
            counts = [n for n in (1, 2, 4) if n <= usable]
            sides = {f"threads {n}": (whole(program, x, threads=n), steps) for n in counts}
            yield {"what": "-".join(map(str, sizes)), "sparsity": sparsity, **{k: round(v, 3) for k, v in medians(sides, rounds).items()}}


def measure_floor(rounds: int) -> Iterator[Row]:
    """What is paid without events: per neuron and step with every membrane stepped, per step when silence is proven; and the bare call."""
    for bias, what in ((1e-7, "stepped: silence cannot be proven"), (0.0, "skipped: silence is proven")):
        steps = (
            S.Affine("fc", ("input",), weight=np.zeros((4096, 16)), bias=np.full(4096, bias)),
            S.Integrator("mem", ("fc",), decay=np.array(1.0)),
            S.Threshold("lif", ("mem",), threshold=np.array(1.0)),
            S.Affine("out", ("lif",), weight=np.zeros((1, 4096)), bias=None),
        )
        program = Program((16,), steps, (Output("out", "out", "sum"),))
        x = np.zeros((2000, 1, 16), np.float32)
        found = medians({"engine": (whole(program, x), len(x))}, rounds)["engine"]
        yield {
            "what": f"4096 neurons, {what}",
            "us a step": round(found, 4),
            "ns a neuron and step": round(found / 4.096, 4),
            "target": 0.3,
        }
    one = Program((1,), (S.Affine("fc", ("input",), weight=np.ones((1, 1)), bias=None),), (Output("fc", "fc"),))
    step = EventEngine(one).stream().step

    def calls() -> None:
        for _ in range(10_000):
            step()

    checked = EventEngine(one)
    now = np.ones((1, 1), np.float32)
    found_calls = medians({"stream": (calls, 10_000), "step": (lambda: [checked.step(now) for _ in range(2000)], 2000)}, rounds)
    yield {"what": "one neuron, stream().step()", "us a step": round(found_calls["stream"], 4), "target": 1}
    yield {"what": "one neuron, EventEngine.step(x), checked and copied", "us a step": round(found_calls["step"], 4)}


MEASURES: dict[str, Callable[[int], Iterator[Row]]] = {
    "floor": measure_floor,
    "memory": measure_memory,
    "camera": measure_camera,
    "wide": measure_wide,
    "bandwidth": measure_bandwidth,
    "threads": measure_threads,
    "layers": measure_layers,
}


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )
    versions = f"numpy {np.__version__}, onnxruntime {ort.__version__}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, one thread; Python {platform.python_version()}, {versions}"


def write(path: Path, rows: list[Row]) -> None:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        file.write(f"# python benchmarks/events.py {' '.join(sys.argv[1:])}\n# {machine()}\n# microseconds a step, medians, in turns\n")
        table = csv.DictWriter(file, fields)
        table.writeheader()
        table.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only.split(","):
        rows = []
        for row in MEASURES[name](arguments.rounds):
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            rows.append(row)
        write(arguments.out / f"events_{name}.csv", rows)


if __name__ == "__main__":
    main()
