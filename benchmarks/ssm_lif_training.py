"""Training time of one layer of LIF neurons with hard reset, forward and backward: `python benchmarks/ssm_lif_training.py`.

Batch 64, L = 1K, 2K, 4K, 8K steps, one neuron per sequence and a layer of 16. The targets are the ratios that are published for the
surrogate network against the iterated neuron on a GPU, where a loop costs its number of operations and not its memory.
Sides, interleaved in one process, one thread: the fused exact kernel; the exact pure torch form (verified chunks); the surrogate network;
the iterated neuron, a loop over time with autograd, as in the published code. The first two give the same spikes as the loop, to the bit,
and the same gradients: that is checked here. Measured twice: with memory that is fresh in every pass, and with memory that the process
keeps (`spikedeploy.nn.allocator.reuse_memory`).
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from spikedeploy.nn.allocator import reuse_memory
from spikedeploy.nn.hard_reset import hard_reset
from spikedeploy.nn.sdn import SurrogateDynamicNetwork
from spikedeploy.nn.spiking_ssm import TriangleSpike

TAU, BATCH = 0.125, 64
TARGETS = {1024: 7.5, 2048: 15.0, 4096: 40.0, 8192: 100.0}


def iterated(x: Tensor) -> Tensor:
    """The published baseline: backpropagation through time, the reset detached."""
    u, spikes = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        u = u * TAU + current
        s = TriangleSpike.apply(u - 1.0)
        spikes.append(s)
        u = (1 - s.detach()) * u
    return torch.stack(spikes)


def sides() -> dict[str, Callable[[Tensor], Tensor]]:
    network = SurrogateDynamicNetwork.shipped(TAU)
    return {
        "exact kernel": lambda x: hard_reset(x, TAU, kernel=True)[0],
        "exact torch": lambda x: hard_reset(x, TAU, kernel=False)[0],
        "surrogate network": lambda x: TriangleSpike.apply(network(x.detach()) + x - 1),
        "iterated": iterated,
    }


def once(side: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds of one forward and backward pass, the spikes and the gradient."""
    x = x.clone().requires_grad_()
    begin = time.perf_counter()
    spikes = side(x)
    spikes.backward(g)
    return time.perf_counter() - begin, spikes.detach(), x.grad


def measure(steps: int, lanes: int, rounds: int) -> dict[str, float]:
    """Median seconds per side; the exact sides are held to the loop, to the bit in the spikes."""
    torch.manual_seed(steps + lanes)
    x, g = torch.randn(steps, BATCH * lanes), torch.randn(steps, BATCH * lanes)
    times: dict[str, list[float]] = {name: [] for name in sides()}
    results = {}
    for _ in range(rounds):
        for name, side in sides().items():
            seconds, spikes, grad = once(side, x, g)
            times[name].append(seconds)
            results[name] = spikes, grad
    for name in ("exact kernel", "exact torch"):
        if not torch.equal(results[name][0], results["iterated"][0]):
            sys.exit(f"{name}: other spikes than the iterated neuron")
        torch.testing.assert_close(results[name][1], results["iterated"][1], rtol=1e-6, atol=1e-7)
    return {name: median(values[1:] or values) for name, values in times.items()}


def machine() -> str:
    """Processor and versions, no names."""
    lines = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{lines[0] if lines else platform.machine()}, 1 thread, torch {torch.__version__}, Python {platform.python_version()}"


def figure(rows: list[dict[str, float]], path: Path) -> None:
    plt.figure(figsize=(6, 4))
    small = [row for row in rows if row["neurons"] == 1 and not row["reused memory"]]
    for name in sides():
        plt.plot([row["L"] for row in small], [1e3 * row[name] for row in small], "o-", label=name)
    plt.xscale("log", base=2)
    plt.yscale("log")
    plt.xlabel("steps L")
    plt.ylabel("milliseconds, forward and backward")
    plt.title("One LIF layer with hard reset, batch 64, one CPU thread")
    plt.legend()
    plt.tight_layout()
    plt.savefig(path, dpi=120)


def write(rows: list[dict[str, float]], path: Path) -> None:
    """The table; every target that was missed is named in its head."""
    with path.open("w", newline="") as file:
        file.write("# python benchmarks/ssm_lif_training.py; batch 64, float32, seconds forward and backward, medians\n")
        file.write(f"# {machine()}\n")
        for row in rows:
            if row["iterated / exact kernel"] < row["target"]:
                where = f"L {row['L']}, {row['neurons']} neurons, reused memory {row['reused memory']}"
                file.write(f"# short of the target: {where}: {row['iterated / exact kernel']:.0f} instead of {row['target']:g} times; ")
                file.write("with so many lanes both sides are bound by memory, not by the number of operations\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="the first is warm-up")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ssm_lif_training.csv")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for reused in (False, True):
        if reused:
            reuse_memory()
        for lanes in (1, 16):
            for steps, target in TARGETS.items():
                seconds = measure(steps, lanes, args.rounds)
                ratio = seconds["iterated"] / seconds["exact kernel"]
                sizes = {"L": steps, "neurons": lanes, "reused memory": int(reused)}
                rows.append({**sizes, **seconds, "iterated / exact kernel": ratio, "target": target})
                times = ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in seconds.items())
                print(f"L {steps} x {lanes}, reused memory {int(reused)}: {times}; {ratio:.0f}x (target {target:g}x)", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    write(rows, args.out)
    figure(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
