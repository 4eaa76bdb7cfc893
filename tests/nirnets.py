"""Small programs for the NIR tests, built step by step, odd sizes; every layer both fires and stays silent on `signal`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Output, Program
from spikedeploy.steps import Array, Step


def signal(program: Program, steps: int = 31, batch: int = 3, seed: int = 5) -> Array:
    """Random input (T, B, *shape), strong enough to make things fire."""
    return np.random.default_rng(seed).normal(size=(steps, batch, *program.input_shape)).astype(np.float32) * 2


def layer(name: str, source: str, decay: object, theta: object = 1.0, amplitude: object = 1.0) -> list[Step]:
    """A neuron without reset: membrane and spike."""
    membrane = S.Integrator(f"{name}.mem", (source,), np.asarray(decay, np.float32))
    return [membrane, S.Threshold(name, (f"{name}.mem",), np.asarray(theta, np.float32), np.asarray(amplitude, np.float32))]


def affine(rng: np.random.Generator, name: str, source: str, out: int, wide: int, gain: float = 2.0) -> S.Affine:
    weight = rng.normal(size=(out, wide)) * gain / np.sqrt(wide)
    return S.Affine(name, (source,), weight.astype(np.float32), (rng.normal(size=out) * 0.1).astype(np.float32))


def dense(sizes: Sequence[int], decays: Sequence[object], thetas: Sequence[object] = (), amplitude: float = 1.0, seed: int = 0) -> Program:
    """Linear, neuron, Linear, neuron, ...; returns the last spikes."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    source = "input"
    for i, (wide, out) in enumerate(pairwise(sizes)):
        steps.append(affine(rng, f"fc{i}", source, out, wide))
        steps += layer(f"lif{i}", f"fc{i}", decays[i], thetas[i] if thetas else 1.0, amplitude)
        source = f"lif{i}"
    return Program((sizes[0],), tuple(steps), (Output("spk", source),))


def per_channel(sizes: Sequence[int], seed: int = 1, thresholds: bool = False) -> Program:
    """As `dense` with a decay (and a threshold) for each neuron."""
    rng = np.random.default_rng(seed)
    decays = [rng.uniform(0.3, 0.97, size=n) for n in sizes[1:]]
    thetas = [rng.uniform(0.5, 1.5, size=n) for n in sizes[1:]] if thresholds else ()
    return dense(sizes, decays, thetas, seed=seed)


def conv(theta: object = 1.0, mean: bool = True, kernel: tuple[int, int] = (3, 3), groups: int = 1, padded: bool = False) -> Program:
    """Conv2d, neuron on (C, H, W), pool, flatten, Linear, neuron."""
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(4, 2 // groups, *kernel)).astype(np.float32)
    padding = (kernel[0] // 2, kernel[1] // 2)
    steps: list[Step] = [S.Conv2d("conv", ("input",), weight, rng.normal(size=4).astype(np.float32), padding=padding, groups=groups)]
    steps += layer("lif1", "conv", np.linspace(0.5, 0.9, 4).reshape(4, 1, 1), theta)
    rows, columns = (4, 5) if padded else (3, 4)
    steps.append(S.SumPool2d("pool.sum", ("lif1",), (2, 2), (2, 2), (1, 1) if padded else (0, 0)))
    if mean:
        steps.append(S.Scale("pool", ("pool.sum",), np.array(0.25, np.float32)))
    steps.append(S.Reshape("flat", ("pool" if mean else "pool.sum",), (4 * rows * columns,)))
    steps.append(affine(rng, "fc", "flat", 5, 4 * rows * columns))
    steps += layer("lif2", "fc", rng.uniform(0.5, 0.95, 5))
    return Program((2, 7, 9), tuple(steps), (Output("spk", "lif2"),))


def residual(amplitude: float = 1.0) -> Program:
    """A skip around the second layer's neuron and one in front of it, and one over two layers."""
    rng = np.random.default_rng(3)
    steps: list[Step] = [affine(rng, "fc1", "input", 7, 5), *layer("lif1", "fc1", 0.9, amplitude=amplitude)]
    steps += [affine(rng, "fc2", "lif1", 7, 7), S.Add("skip2", ("fc2", "lif1")), *layer("lif2", "skip2", rng.uniform(0.4, 0.9, 7), 1.5)]
    steps += [S.Add("skip3", ("lif2", "lif1")), affine(rng, "fc3", "skip3", 6, 7), *layer("lif3", "fc3", 0.8)]
    steps += [
        affine(rng, "fc4", "lif3", 3, 6),
        affine(rng, "fc5", "lif1", 3, 7),
        S.Add("skip4", ("fc4", "fc5")),
        *layer("lif4", "skip4", 0.7),
    ]
    return Program((5,), tuple(steps), (Output("spk", "lif4"),))


def conv_residual() -> Program:
    """A skip around the second of two convolutions; relays need its maps as vectors."""
    rng = np.random.default_rng(7)
    first, second = (rng.normal(size=(3, wide, 3, 3)).astype(np.float32) for wide in (1, 3))
    steps: list[Step] = [S.Conv2d("conv1", ("input",), first, padding=(1, 1)), *layer("lif1", "conv1", 0.8)]
    steps.append(S.Conv2d("conv2", ("lif1",), second, padding=(1, 1)))
    steps += [S.Add("skip", ("conv2", "lif1")), *layer("lif2", "skip", 0.6), S.Reshape("flat", ("lif2",), (60,))]
    steps += [affine(rng, "fc", "flat", 4, 60), *layer("lif3", "fc", 0.9)]
    return Program((1, 4, 5), tuple(steps), (Output("spk", "lif3"),))


def dyadic() -> Program:
    """Decay 1/2 and weights of few bits: all arithmetic is exact, ties included."""
    rng = np.random.default_rng(4)
    steps: list[Step] = []
    for name, source, out, wide in (("1", "input", 7, 5), ("2", "lif1", 3, 7)):
        weight = (rng.integers(-4, 8, size=(out, wide)) / 4).astype(np.float32)
        steps += [S.Affine(f"fc{name}", (source,), weight, (rng.integers(-2, 3, size=out) / 4).astype(np.float32))]
        steps += layer(f"lif{name}", f"fc{name}", 0.5)
    return Program((5,), tuple(steps), (Output("spk", "lif2"), Output("mem", "lif2.mem", "mean")))


def reset(kind: Literal["subtract", "zero", "value"] = "zero", delay: bool = True) -> Program:
    """Two layers of LIF neurons with reset."""
    rng = np.random.default_rng(6)
    steps: list[Step] = []
    source = "input"
    for name, out, wide in (("lif1", 7, 5), ("lif2", 3, 7)):
        steps.append(affine(rng, f"{name}.fc", source, out, wide))
        decay = rng.uniform(0.5, 0.95, out).astype(np.float32)
        steps.append(S.LIF(name, (f"{name}.fc",), decay, np.array(1.0, np.float32), kind, reset_delay=delay))
        source = name
    return Program((5,), tuple(steps), (Output("spk", "lif2"),))


def renamed(program: Program, names: dict[str, str]) -> Program:
    """The same program under other layer names; `<name>.mem` goes with its layer."""
    full = names | {f"{old}.mem": f"{new}.mem" for old, new in names.items()}
    steps = tuple(replace(step, name=full[step.name], inputs=tuple(full.get(wire, wire) for wire in step.inputs)) for step in program.steps)
    return Program(program.input_shape, steps, tuple(replace(output, wire=full[output.wire]) for output in program.outputs))
