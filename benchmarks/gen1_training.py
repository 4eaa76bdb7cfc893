"""Training a leaky neuron over whole sequences: this package, snnTorch and `torch.add(out=)` in one process, in turns.

    python benchmarks/gen1_training.py [--seconds 4] [--out benchmarks/results/gen1_training.csv]

Every figure is a median over rounds in which all sides of a comparison have their turn: one call, or, against snnTorch, calls for a tenth
of a second, so that a side which takes a hundredth of its peer's time is not only measured on the caches that the peer has left. Each
round has an order of its own, drawn from a fixed seed: nobody always comes after the side that leaves the machine in the worst state.
Forward and backward: membranes, spikes, atan surrogate, learned decay and threshold per channel, given the gradients of spikes and
membranes, or ("spikes") of the spikes alone, which is what a network trains on. "fresh": torch's allocator as it is; "reused":
`reuse_memory()`, and in the forward rows against `torch.add` the same output buffers. Both sides use the same number of threads.
snnTorch's `Leaky` runs over `x.unbind(0)`: indexing `x[t]` would make its backward quadratic in T. The allocator's tidying up after a
million small tensors is not charged to whoever comes next: a large block is asked for between any two sides, untimed.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
import snntorch as snn
import torch
from torch import Tensor, nn

from spikedeploy.nn import Leaky, StateLeaky, leaky_scan, reuse_memory

mpl.use("Agg")
import matplotlib.pyplot as plt

Side = Callable[[], object]
Row = dict[str, object]
ALLOCATORS = ("fresh", "reused")
COST = "<=-"
TURN = 0.3
"""Seconds: after a loop of small operations this machine's memory takes some 50 ms to come up to its speed."""
RESETS = ("none", "subtract", "zero")


def medians(sides: dict[str, Side], seconds: float, least: int = 3, span: float = 0) -> dict[str, float]:
    """Seconds per call of each side: turns of `span` seconds or one call, in another random order every round, until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, rounds, end = Random(0), 0, time.perf_counter() + seconds
    for side in sides.values():
        side()
    while time.perf_counter() < end or rounds < least:
        for name in order.sample(list(sides), len(sides)):
            times[name] += turn(sides[name], span)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def turn(side: Side, span: float) -> list[float]:
    torch.empty(1 << 26, dtype=torch.uint8)
    found: list[float] = []
    while not found or sum(found) < span:
        start = time.perf_counter()
        side()
        found.append(time.perf_counter() - start)
    return found


def loop(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    mem, spikes, membranes = torch.zeros_like(x[0]), [], []
    for x_t in x.unbind(0):
        spk, mem = layer(x_t, mem)
        spikes.append(spk)
        membranes.append(mem)
    return torch.stack(spikes), torch.stack(membranes)


def training(layer: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]] | None = None, given: int = 2) -> Side:
    """One forward and backward pass, given the gradients of the first `given` results."""
    leaf, grads = x.clone().requires_grad_(), [torch.randn_like(x) for _ in range(given)]
    inputs = [leaf, *(p for name, p in layer.named_parameters() if not (name == "beta" and hasattr(layer, "tau")))]

    def side() -> None:
        results = run(layer, leaf) if run else layer(leaf)
        torch.autograd.grad(results[:given], inputs, grads)

    return side


def learned(channels: int) -> dict[str, object]:
    return {"beta": torch.full((channels,), 0.9), "threshold": torch.ones(channels), "learn_beta": True, "learn_threshold": True}


def row(topic: str, shape: tuple[int, ...], memory: str, ours: str, peer: str, times: dict[str, float], target: str = "") -> Row:
    """`target`: ">=n" for a speed-up, "<=n" for a cost, COST for a cost without a target."""
    cost = target.startswith("<=")
    ratio = times[ours] / times[peer] if cost else times[peer] / times[ours]
    wanted = target not in ("", COST)
    met = wanted and (ratio <= float(target[2:]) if cost else ratio >= float(target[2:]))
    return {
        "topic": topic, "T": shape[0], "B": shape[1], "C": shape[2], "threads": torch.get_num_threads(), "memory": memory, "side": ours,
        "ms": f"{times[ours] * 1e3:.4g}", "peer": peer, "peer ms": f"{times[peer] * 1e3:.4g}", "ratio": f"{ratio:.4g}",
        "target": target if wanted else "", "verdict": "met" if met else "MISSED" if wanted else "",
    }  # fmt: skip


def against_state_leaky(seconds: float) -> Iterator[Row]:
    """snnTorch convolves: its time grows with T squared."""
    for steps, target in ((8, ">=1"), (64, ">=1"), (256, ">=1"), (1024, ">=200"), (4096, ">=1000")):
        x = torch.randn(steps, 8, 128)
        ours, peer = StateLeaky(channels=128, **learned(128)), snn.StateLeaky(channels=128, **learned(128))
        for memory in ALLOCATORS:
            reuse_memory(memory == "reused")
            times = medians({"StateLeaky": training(ours, x), "snntorch.StateLeaky": training(peer, x)}, seconds, 2, TURN)
            yield row("forward+backward", x.shape, memory, "StateLeaky", "snntorch.StateLeaky", times, target)


LEAKY = (
    ("forward+backward", (1024, 8, 128), 2, ""),
    ("forward+backward", (8192, 8, 128), 2, ">=150"),
    ("forward+backward, spikes", (8192, 8, 128), 1, ">=150"),
    ("forward+backward", (1024, 32, 512), 2, ">=8"),
    ("forward+backward, spikes", (1024, 32, 512), 1, ">=8"),
)
"""Topic, shape, gradients given, target."""


def against_leaky(seconds: float) -> Iterator[Row]:
    """snnTorch's loops, each beside ours; and our resets beside each other, without a loop of seconds between their turns."""
    for topic, shape, given, target in LEAKY:
        x = torch.randn(shape)
        for memory in ALLOCATORS:
            reuse_memory(memory == "reused")
            ours = {f"Leaky {r}": training(Leaky(reset_mechanism=r, **learned(shape[2])), x, given=given) for r in RESETS}
            for reset, (name, side) in zip(RESETS, ours.items(), strict=True):
                layer = snn.Leaky(reset_mechanism=reset, **learned(shape[2]))
                peer = f"snntorch.{name}"
                times = medians({name: side, peer: training(layer, x, loop, given)}, seconds, 5, TURN)
                yield row(topic, shape, memory, name, peer, times, target)
            times = medians(ours, seconds)
            for name in list(ours)[1:]:
                yield row(topic.replace("forward+backward", "reset against none"), shape, memory, name, "Leaky none", times, "<=1.2")


def fused(shape: tuple[int, ...], reuse: bool) -> dict[str, Side]:
    """The fused forward and the whole training step of two neurons, and what they are held against."""
    x, other, result = torch.randn(shape), torch.randn(shape), torch.empty(shape)
    layers = {"StateLeaky": StateLeaky(channels=shape[2], **learned(shape[2])), "Leaky subtract": Leaky(**learned(shape[2]))}
    out = (torch.empty(shape), torch.empty(shape)) if reuse else None
    tau, decay = torch.full((shape[2],), 10.0), torch.full((shape[2],), 0.9)
    return {
        "torch.add(out=)": lambda: torch.add(x, other, out=result),
        "StateLeaky forward": lambda: leaky_scan(x, tau, 1.0, tau=True, wide_state=True, out=out),
        "Leaky subtract forward": lambda: leaky_scan(x, decay, 1.0, reset="subtract", out=out),
        **{f"{name} forward+backward": training(layer, x) for name, layer in layers.items()},
    }


def against_add(seconds: float) -> Iterator[Row]:
    """Three tensors are touched by `torch.add(a, b, out=c)` and by x -> membranes and spikes alike."""
    for shape in ((1024, 8, 128), (4096, 8, 128), (16384, 8, 128), (1024, 32, 512)):
        for memory in ALLOCATORS:
            reuse_memory(memory == "reused")
            sides = fused(shape, memory == "reused")
            times = medians(sides, seconds)
            for side in list(sides)[1:]:
                bound = "<=4" if side.endswith("backward") else "<=1.5"
                yield row("against torch.add", shape, memory, side, "torch.add(out=)", times, bound if memory == "reused" else COST)


def scans(shape: tuple[int, ...]) -> dict[str, Side]:
    x, other, result, tau = torch.randn(shape), torch.randn(shape), torch.empty(shape), torch.full((shape[2],), 10.0)
    sides: dict[str, Side] = {"torch.add(out=)": lambda: torch.add(x, other, out=result)}
    for method in ("native", "prefix", "iterative", "associative", "convolution"):
        sides[method] = partial(leaky_scan, x, tau, None, tau=True, wide_state=True, method=method)
    return sides


def routes(seconds: float) -> Iterator[Row]:
    """The scan alone, forward, membranes only, float64 state."""
    for shape in ((8, 8, 128), (64, 8, 128), (1024, 8, 128), (16384, 8, 128), (1024, 32, 512), (65536, 1, 16)):
        reuse_memory(True)
        sides = scans(shape)
        times = medians(sides, seconds, 9)
        for method in list(sides)[1:]:
            target = "<=5" if method == "prefix" and shape[0] >= 1024 else COST
            yield row("routes, scan forward", shape, "reused", method, "torch.add(out=)", times, target)


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}, snnTorch {snn.__version__}"


def save(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        file.write(f"# python benchmarks/gen1_training.py\n# {machine()}\n")
        file.write(
            "# ratio: against snnTorch how many times faster, peer / ours; against torch.add and between resets the cost, ours / peer\n"
        )
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def figure(rows: list[Row], path: Path) -> None:
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = [r for r in rows if r["threads"] == 1]
    speed = [r for r in rows if r["peer"] == "snntorch.StateLeaky" and r["memory"] == "reused"]
    left.loglog([r["T"] for r in speed], [float(str(r["peer ms"])) for r in speed], "o-", label="snntorch.StateLeaky")
    left.loglog([r["T"] for r in speed], [float(str(r["ms"])) for r in speed], "s-", label="spikedeploy StateLeaky")
    left.set(xlabel="time steps", ylabel="ms, forward+backward, 8 x 128, one thread", title="reset-free neuron")
    left.legend()
    table = [r for r in rows if r["topic"] == "routes, scan forward"]
    shapes = list(dict.fromkeys(f"{r['T']}x{r['B']}x{r['C']}" for r in table))
    for method in dict.fromkeys(str(r["side"]) for r in table):
        right.semilogy(shapes, [float(str(r["ratio"])) for r in table if r["side"] == method], "o-", label=method)
    right.set(ylabel="time in units of torch.add(out=)", title="routes: the scan alone, forward")
    right.tick_params(axis="x", rotation=30)
    right.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="per comparison")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gen1_training.csv"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    cores = os.cpu_count() or 1
    for part, threads in ((routes, 1), (against_add, 1), (against_state_leaky, 1), (against_leaky, 1), (against_leaky, cores)):
        torch.set_num_threads(threads)
        for one in part(arguments.seconds):
            rows.append(one)
            print("  ".join(str(value) for value in one.values()), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save(rows, arguments.out)
    figure(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
