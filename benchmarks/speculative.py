"""`Leaky` without the native core: the loop over time against verified chunks, forward and backward, in one process, in turns, one thread.

    python benchmarks/speculative.py [--seconds 3] [--out benchmarks/results/speculative.csv]

Learned decay and threshold per channel, given the gradients of spikes and membranes, memory that the process keeps (`reuse_memory`).
Both routes give the same bits; medians as in gen1_training.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from gen1_training import RESETS, Row, Side, machine, medians, training

from spikedeploy.nn import Leaky, leaky_scan, reuse_memory

SHAPES = ((1024, 8, 128), (8192, 8, 128), (1024, 32, 512), (8192, 1, 16))
METHODS = ("iterative", "speculative")


def rows(seconds: float) -> Iterator[Row]:
    for shape, beta, reset in product(SHAPES, (0.9, 0.99), RESETS):
        x, decay = torch.randn(shape), torch.full((shape[2],), beta)
        sides: dict[str, Side] = {}
        for method in METHODS:
            learned = {"beta": decay, "threshold": torch.ones(shape[2]), "learn_beta": True, "learn_threshold": True}
            sides[method] = training(Leaky(reset_mechanism=reset, method=method, **learned), x)
            sides[f"{method} forward"] = partial(leaky_scan, x, decay, 1.0, reset=reset, method=method)
        times = medians(sides, seconds, 2)
        both = {f"{name} ms": f"{1e3 * times[name]:.4g}" for name in sides}
        ratio = times["iterative"] / times["speculative"]
        yield {"T": shape[0], "B": shape[1], "C": shape[2], "beta": beta, "reset": reset, **both, "times faster": f"{ratio:.3g}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3, help="per comparison")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speculative.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    reuse_memory()
    found: list[Row] = []
    for one in rows(arguments.seconds):
        found.append(one)
        print("  ".join(str(value) for value in one.values()), flush=True)
    lines = [",".join(map(str, row.values())) for row in found]
    heading = [f"# python benchmarks/speculative.py, one thread; {machine()}", ",".join(found[0])]
    arguments.out.write_text("\n".join([*heading, *lines]) + "\n")


if __name__ == "__main__":
    main()
