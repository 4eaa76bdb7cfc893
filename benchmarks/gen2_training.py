"""Gen2 training, forward and backward: this project's AssociativeLeaky against snnTorch's, and Gen3 against Gen2.

    python benchmarks/gen2_training.py

One process per setting, both sides interleaved, medians. The settings: one thread, and torch's default number of threads, each the same for
both sides; glibc's allocator as it is, and one that reuses its memory (fresh pages cost more than the arithmetic at these sizes). Peak
memory is measured in a process per case. Before every timed call, and outside of it, a large block is asked for and given back and one
small operation is run: the allocator then sorts what the call before has freed, which otherwise the next side would pay for.
Writes `benchmarks/results/gen2_training.csv` and `.png`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import snntorch
import torch
from torch import Tensor, nn

from spikedeploy.nn import AssociativeLeaky, DeltaRuleLeaky

RESULTS = Path(__file__).resolve().parent / "results"
SIDES, STEPS, BATCH = (16, 32, 64), (64, 256, 1024, 4096, 8192), 2
REUSE = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "536870912"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SETTINGS: tuple[tuple[str, dict[str, str]], ...] = (
    ("default", ONE_THREAD),
    ("reusing", ONE_THREAD | REUSE),
    ("default", {}),
    ("reusing", REUSE),
)
"""Allocator by name, and what the environment of the process says; without OMP_NUM_THREADS torch takes all cores."""
NOTE = (
    "what bounds the ratio: two products of d*d*n multiply-adds per step (Q once more in the backward, and the gradient of the spikes), "
    "three more of d*n*in_dim over the columns that fire, and what a call of torch costs"
)
TARGET_SPEED, TARGET_MEMORY, TARGET_GEN3 = 5.0, 0.25, 3.0

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "ours": lambda d: AssociativeLeaky(d, d, d, method="native"),
    "snntorch": lambda d: snntorch.AssociativeLeaky(d, d, d, d * d),
    "torch form": lambda d: AssociativeLeaky(d, d, d, method="prefix"),
    "gen3": lambda d: DeltaRuleLeaky(d, d, d, method="native"),
}


def settle() -> None:
    """Leave the allocator as it is after a call long ago: see above."""
    torch.empty(1 << 28, dtype=torch.uint8)  # never touched, so it costs no page
    torch.ones(16).add_(1)


def once(layer: nn.Module, x: Tensor, seed: Tensor) -> float:
    """Seconds of one forward and backward, gradients of the input and of all parameters."""
    settle()
    begin = time.perf_counter()
    layer(x).backward(seed)
    seconds = time.perf_counter() - begin
    layer.zero_grad()
    x.grad = None
    return seconds


def case(d: int, steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(steps, BATCH, d, requires_grad=True), torch.randn(steps, BATCH, d * d)


def timed(d: int, steps: int) -> dict[str, float]:
    """Median milliseconds of every side, interleaved."""
    names = [name for name in LAYERS if name != "torch form" or steps <= 1024]
    layers = {name: LAYERS[name](d) for name in names}
    x, seed = case(d, steps)
    repeats = 3 if d * d * steps > 10_000_000 else 7 if d * d * steps > 5_000_000 else 15
    for layer in layers.values():
        once(layer, *case(d, min(steps, 64)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, layer in layers.items():
            times[name].append(once(layer, x, seed) * 1e3)
    return {name: median(values) for name, values in times.items()}


def peak(name: str, d: int, steps: int) -> float:
    """MiB that one forward and backward adds at its peak to a process that has its input, output gradient and layer."""
    layer = LAYERS[name](d)
    once(layer, *case(d, 8))
    x, seed = case(d, steps)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    once(layer, x, seed)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def child(task: list[Any], environment: dict[str, str]) -> Any:
    """`task` in a process of its own."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env={**inherited, **environment}).stdout)


def work(task: list[Any]) -> Any:
    if task[0] == "time":
        return [[torch.get_num_threads(), d, steps, timed(d, steps)] for d in SIDES for steps in STEPS]
    return peak(*task[1:])


def rows_of(allocator: str, environment: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for threads, d, steps, times in child(["time"], environment):
        row = {"d=n": d, "T": steps, "B": BATCH, "threads": threads, "allocator": allocator}
        row |= {f"{name} ms": round(value, 3) for name, value in times.items()}
        rows.append(row | {"speedup": round(times["snntorch"] / times["ours"], 2), "gen3/gen2": round(times["gen3"] / times["ours"], 2)})
    return rows


def memory_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        ours, other = (child(["peak", name, row["d=n"], row["T"]], ONE_THREAD) for name in ("ours", "snntorch"))
        row |= {"ours MiB": round(ours, 1), "snntorch MiB": round(other, 1), "memory ratio": round(ours / max(other, 0.1), 3)}


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """What was aimed at, and every case that misses it."""
    long = [row for row in rows if row["T"] >= 1024]
    lines = []
    for name, missed, aim in (
        ("speedup", lambda r: r["speedup"] < TARGET_SPEED, f"at least {TARGET_SPEED:g} for T >= 1024"),
        ("memory ratio", lambda r: r.get("memory ratio", 0) > TARGET_MEMORY, f"at most {TARGET_MEMORY:g} for T >= 1024"),
        ("gen3/gen2", lambda r: r["gen3/gen2"] > TARGET_GEN3, f"at most {TARGET_GEN3:g}"),
    ):
        values = [row[name] for row in long if name in row]
        misses = [f"d={r['d=n']} T={r['T']} {r['allocator']}, {r['threads']} threads: {r[name]}" for r in long if name in r and missed(r)]
        lines.append(
            f"{name}: {min(values)} to {max(values)}, aimed at {aim}; " + ("met" if not misses else "missed at " + ", ".join(misses))
        )
    return lines


def machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    return f"{cpu}, {os.cpu_count()} cores; torch {torch.__version__}, snntorch {snntorch.__version__}, Python {platform.python_version()}"


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max(row["threads"] for row in rows)
    drawing, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, allocator in zip(axes, ("default", "reusing"), strict=True):
        for d, colour in zip(SIDES, ("C0", "C1", "C2"), strict=True):
            for threads, style in {1: "o-", most: "s--"}.items():
                chosen = [row for row in rows if (row["allocator"], row["d=n"], row["threads"]) == (allocator, d, threads)]
                label = f"d = n = {d}, {threads} thread{'s' * (threads > 1)}"
                axis.loglog([row["T"] for row in chosen], [row["speedup"] for row in chosen], style, color=colour, label=label)
        axis.axhline(TARGET_SPEED, color="grey", linestyle=":")
        axis.set(xlabel="steps T", title=f"{allocator} allocator")
    axes[0].set(ylabel="times faster than snnTorch, forward + backward")
    axes[0].legend(fontsize="small")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="Gen2 training against snnTorch.")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(work(json.loads(options.task))))
        return
    rows = [row for allocator, environment in SETTINGS for row in rows_of(allocator, environment)]
    memory_rows(rows[: len(SIDES) * len(STEPS)])
    summary = verdict(rows)
    with (RESULTS / "gen2_training.csv").open("w", newline="") as file:
        file.write("# python benchmarks/gen2_training.py; forward + backward, in_dim = d, medians, interleaved\n")
        file.write(f"# {machine()}\n" + "".join(f"# {line}\n" for line in [*summary, NOTE]))
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure(rows, RESULTS / "gen2_training.png")
    print("\n".join([*(str(row) for row in rows), *summary]))


if __name__ == "__main__":
    main()
