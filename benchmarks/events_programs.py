"""The networks of `benchmarks/events.py`, with random weights and thresholds that set how often they spike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.runtime import EventEngine

DECAY = 0.9


def layers(sizes: tuple[int, ...], thresholds: list[float], bias: float = 0.0, decay: float = DECAY) -> Program:
    rng = np.random.default_rng(0)
    steps: list[S.Step] = []
    for index, (wide, out) in enumerate(pairwise(sizes)):
        weight = rng.normal(size=(out, wide)) / np.sqrt(wide)
        theta = np.array(thresholds[index] if index < len(thresholds) else 1.0)
        steps += [
            S.Affine(f"fc{index}", (f"lif{index - 1}" if index else "input",), weight=weight, bias=np.full(out, bias)),
            S.Integrator(f"lif{index}.mem", (f"fc{index}",), decay=np.array(decay)),
            S.Threshold(f"lif{index}", (f"lif{index}.mem",), threshold=theta),
        ]
    return Program((sizes[0],), tuple(steps), (Output("spikes", steps[-1].name, "sum"),))


def calibrated(sizes: tuple[int, ...], x: np.ndarray, sparsity: float) -> Program:
    """Thresholds at the quantile of the membranes, layer by layer."""
    thresholds: list[float] = []
    for index in range(len(sizes) - 1):
        mem = f"lif{index}.mem"
        run = EventEngine(layers(sizes, thresholds)).run(x, record=[mem])
        thresholds.append(float(np.quantile(run.wires[mem][50:], sparsity)))
    return layers(sizes, thresholds)


def associative(m: int, d: int) -> Program:
    """One Gen2 layer, random weights: v, k, alpha, Q projections, the memory, its spikes, P Q."""
    rng = np.random.default_rng(0)

    def affine(name: str, out: int) -> S.Affine:
        return S.Affine(name, ("input",), weight=rng.normal(size=(out, m)) / np.sqrt(m), bias=rng.normal(size=out) * 0.2)

    steps = (
        affine("v", d), affine("k", d), affine("a", d), S.Activation("alpha", ("a",), function="sigmoid"), S.MatrixMemory("S", ("v", "k",
        "alpha")),
        S.Threshold("spk", ("S",), threshold=np.array(0.2)), affine("q", d * d), S.Reshape("Q", ("q",), shape=(d, d)), S.MatMul("PQ",
        ("spk", "Q")),
    )  # fmt: skip
    return Program((m,), steps, (Output("out", "PQ", "sum"),))


def camera(thresholds: list[float]) -> Program:
    """2 x 34 x 34 -> 8 x 15 x 15 -> 16 x 7 x 7 -> 10, leaky neurons with reset."""
    rng = np.random.default_rng(0)
    steps: list[S.Step] = []
    shapes = ((8, 2, 5, 5), (16, 8, 3, 3))
    wire = "input"
    for index, shape in enumerate(shapes):
        weight = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        steps += [
            S.Conv2d(f"conv{index}", (wire,), weight=weight, stride=(2, 2)),
            S.LIF(f"lif{index}", (f"conv{index}",), decay=np.array(0.95), threshold=np.array(thresholds[index]), reset="subtract"),
        ]
        wire = f"lif{index}"
    weight = rng.normal(size=(10, 784)) / 28
    steps += [S.Reshape("flat", (wire,), shape=(784,)), S.Affine("fc", ("flat",), weight=weight, bias=np.zeros(10))]
    steps.append(S.LIF("out", ("fc",), decay=np.array(0.95), threshold=np.array(0.3), reset="subtract"))
    return Program((2, 34, 34), tuple(steps), (Output("counts", "out", "sum"),))
