"""Random small programs over the whole step vocabulary, and inputs for them: odd sizes, sparse and dense, positive and negative."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import INPUT, Output, Program

Random = np.random.Generator


class Builder:
    """Steps so far, and the wire that the next step reads."""

    def __init__(self, rng: Random, shape: tuple[int, ...]) -> None:
        self.rng, self.input_shape = rng, shape
        self.steps: list[S.Step] = []
        self.wire, self.shape, self.count = INPUT, shape, 0
        self.outputs: list[str] = []

    def name(self) -> str:
        self.count += 1
        return f"w{self.count}"

    def weight(self, *shape: int) -> np.ndarray:
        w = self.rng.normal(size=shape) * (2 / np.sqrt(shape[-1] if len(shape) < 4 else prod(shape[1:])))
        return np.where(self.rng.random(shape) < 0.1, 0, w).astype(np.float32)

    def maybe(self, array: np.ndarray) -> np.ndarray | None:
        return array if self.rng.random() < 0.6 else None

    def param(self, low: float, high: float) -> np.ndarray:
        shape = () if self.rng.random() < 0.5 else self.shape
        return self.rng.uniform(low, high, shape).astype(np.float32)

    def add(self, step: S.Step, shape: tuple[int, ...]) -> str:
        self.steps.append(step)
        self.wire, self.shape = step.name, shape
        return step.name

    def linear(self) -> None:
        if len(self.shape) == 3 and self.rng.random() < 0.7:
            self.conv()
            return
        self.flat()
        out = int(self.rng.choice([1, 3, 10, 17, 33, 70, 130]))
        bias = self.maybe((self.rng.normal(size=out) * 0.3).astype(np.float32))
        self.add(S.Affine(self.name(), (self.wire,), weight=self.weight(out, self.shape[-1]), bias=bias), (out,))

    def flat(self) -> None:
        if len(self.shape) != 1:
            size = (prod(self.shape),)
            self.add(S.Reshape(self.name(), (self.wire,), shape=size), size)

    def conv(self) -> None:
        c, h, w = self.shape
        k, stride, pad = int(self.rng.integers(1, 4)), int(self.rng.integers(1, 3)), int(self.rng.integers(0, 2))
        dilation = int(self.rng.integers(1, 3))
        groups = c if self.rng.random() < 0.3 else 1
        reach = dilation * (k - 1) + 1
        size = tuple((n + 2 * pad - reach) // stride + 1 for n in (h, w))
        if min(h + 2 * pad, w + 2 * pad) < reach:
            return
        out = groups * int(self.rng.integers(1, 4)) if groups > 1 else int(self.rng.choice([2, 5, 18]))
        bias = self.maybe((self.rng.normal(size=out) * 0.2).astype(np.float32))
        weight = self.weight(out, c // groups, k, k)
        options = {"stride": (stride, stride), "padding": (pad, pad), "dilation": (dilation, dilation), "groups": groups}
        self.add(S.Conv2d(self.name(), (self.wire,), weight=weight, bias=bias, **options), (out, *size))

    def pool(self) -> None:
        if len(self.shape) == 3 and min(self.shape[1:]) >= 2:
            size = (self.shape[0], (self.shape[1] - 2) // 2 + 1, (self.shape[2] - 2) // 2 + 1)
            self.add(S.SumPool2d(self.name(), (self.wire,), kernel=(2, 2), stride=(2, 2)), size)
            self.add(S.Scale(self.name(), (self.wire,), scale=np.float32(0.25), offset=self.maybe(np.float32(0.1))), size)

    def rows(self) -> None:
        """A map over the last of several axes."""
        if len(self.shape) == 1:
            count = next((n for n in (2, 5, 3, 7, 11) if self.shape[0] % n == 0 and self.shape[0] > n), 1)
            size = (count, self.shape[0] // count)
            self.add(S.Reshape(self.name(), (self.wire,), shape=size), size)
        out = int(self.rng.choice([1, 3, 16, 17, 70]))
        bias = self.maybe((self.rng.normal(size=out) * 0.3).astype(np.float32))
        self.add(S.Affine(self.name(), (self.wire,), weight=self.weight(out, self.shape[-1]), bias=bias), (*self.shape[:-1], out))

    def total(self) -> None:
        """A sum of many wires."""
        wires = [self.wire, *(step.name for step in self.steps[-3:] if step.name in self.same_shape())]
        picked = [str(wire) for wire in self.rng.choice(wires, int(self.rng.integers(9, 20)))]
        self.add(S.Add(self.name(), tuple(picked)), self.shape)

    def same_shape(self) -> set[str]:
        """Wires of the present shape."""
        wires = Program(self.input_shape, tuple(self.steps), (Output("y", self.wire),)).wires
        return {wire for wire, shape in wires.items() if shape == self.shape}

    def neuron(self) -> None:
        amplitude = np.float32(self.rng.choice([1.0, 1.0, 0.5, -1.5])) if self.rng.random() < 0.8 else self.param(0.5, 1.5)
        strict, decay, threshold = bool(self.rng.random() < 0.7), self.param(0, 1), self.param(0.2, 1.2)
        if self.rng.random() < 0.5:
            mem = self.name()
            self.steps.append(S.Integrator(mem, (self.wire,), decay=decay))
            if self.rng.random() < 0.2:
                self.outputs.append(mem)
            self.add(S.Threshold(self.name(), (mem,), threshold=threshold, amplitude=amplitude, strict=strict), self.shape)
            return
        reset = str(self.rng.choice(["subtract", "zero", "value"]))
        delay = bool(self.rng.random() < 0.5) and reset != "value"
        value = self.param(-0.5, 0.1)
        step = S.LIF(
            self.name(), (self.wire,), decay=decay, threshold=threshold, reset=reset, reset_delay=delay, strict=strict,
            amplitude=amplitude, reset_value=value
        )  # fmt: skip
        if self.rng.random() < 0.2:
            self.outputs.append(step.outputs[1])
        self.add(step, self.shape)

    def elementwise(self) -> None:
        before, kind = self.wire, int(self.rng.integers(0, 9))
        if kind == 0:
            self.add(S.Delay(self.name(), (before,), steps=int(self.rng.integers(1, 4))), self.shape)
            scaled = self.add(S.Scale(self.name(), (self.wire,), scale=self.param(-1, 1)), self.shape)
            self.add(S.Add(self.name(), (before, scaled)), self.shape)
        elif kind == 1:
            functions = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "exp")
            self.add(S.Activation(self.name(), (before,), function=functions[int(self.rng.integers(7))]), self.shape)
        elif kind == 2:
            weight, bias = (self.maybe(self.rng.normal(size=self.shape[-1]).astype(np.float32)) for _ in range(2))
            self.add(S.LayerNorm(self.name(), (before,), weight=weight, bias=bias), self.shape)
        elif kind == 3:
            self.add(S.L2Normalize(self.name(), (before,)), self.shape)
        elif kind == 4:
            self.add(S.TopK(self.name(), (before,), k=int(self.rng.integers(1, self.shape[-1] + 1))), self.shape)
        elif kind == 5:
            self.add(S.Nearest(self.name(), (before,), levels=np.linspace(-2, 2, 9, dtype=np.float32)), self.shape)
        elif kind == 6 and self.shape[-1] > 2:
            stop = int(self.rng.integers(2, self.shape[-1] + 1))
            self.add(S.Slice(self.name(), (before,), start=1, stop=stop), (*self.shape[:-1], stop - 1))
        elif kind == 7:
            gate = self.add(S.Activation(self.name(), (before,), function="sigmoid"), self.shape)
            self.add(S.Mul(self.name(), (before, gate)), self.shape)
        else:
            self.ssm()

    def ssm(self) -> None:
        self.flat()
        shape = (self.shape[0], int(self.rng.choice([1, 5, 16, 19])))
        parts = {key: self.rng.uniform(-0.6, 0.6, shape).astype(np.float32) for key in ("a_re", "a_im", "c_re", "c_im")}
        self.add(S.DiagonalSSM(self.name(), (self.wire,), d=self.rng.normal(size=shape[0]).astype(np.float32), **parts), self.shape)

    def memory(self) -> None:
        self.flat()
        source, wide = self.wire, self.shape[0]
        d, n = (int(self.rng.choice([1, 3, 16, 20])) for _ in range(2))
        v, k, gate = (S.Affine(self.name(), (source,), weight=self.weight(size, wide), bias=None) for size in (d, n, n))
        self.steps += [v, k, gate]
        alpha = S.Activation(self.name(), (gate.name,), function="sigmoid")
        self.steps.append(alpha)
        kind, inputs = int(self.rng.integers(0, 3)), (v.name, k.name, alpha.name)
        if kind == 2:
            raw = S.Affine(self.name(), (source,), weight=self.weight(1, wide), bias=np.zeros(1, np.float32))
            beta = S.Activation(self.name(), (raw.name,), function="sigmoid")
            unit = S.L2Normalize(self.name(), (k.name,))
            self.steps += [raw, beta, unit]
            memory: S.Step = S.DeltaMemory(self.name(), (v.name, unit.name, alpha.name, beta.name))
        else:
            memory = S.MatrixMemory(self.name(), inputs, semantics=("recurrence", "snntorch-1.0.0")[kind])
        self.add(memory, (d, n))
        self.add(S.Threshold(self.name(), (memory.name,), threshold=np.float32(0.3)), (d, n))
        if self.rng.random() < 0.7:
            spikes, m = self.wire, int(self.rng.choice([1, 5, 64, 70]))
            q = self.add(S.Affine(self.name(), (source,), weight=self.weight(n * m, wide), bias=None), (n * m,))
            q = self.add(S.Reshape(self.name(), (q,), shape=(n, m)), (n, m))
            self.add(S.MatMul(self.name(), (spikes, q)), (d, m))


def random_program(seed: int) -> Program:
    """The program of that seed."""
    rng = np.random.default_rng(seed)
    shapes = ((7,), (40,), (130,), (2, 6, 7), (3, 9, 8))
    built = Builder(rng, shapes[int(rng.integers(len(shapes)))])
    parts: list[Callable[[], None]] = [built.linear, built.neuron, built.elementwise, built.memory, built.pool, built.rows, built.total]
    if rng.random() < 0.8:
        built.linear()
    for part in rng.choice(len(parts), size=int(rng.integers(1, 6)), p=(0.28, 0.33, 0.17, 0.08, 0.05, 0.06, 0.03)):
        parts[part]()
    if not built.steps:
        built.neuron()
    names = dict.fromkeys([*built.outputs, built.wire])
    reduces = ("none", "none", "sum", "mean", "last", "max")
    outputs = tuple(Output(name, name, reduces[int(rng.integers(6))]) for name in names)
    return Program(built.input_shape, tuple(built.steps), outputs)


def random_input(program: Program, seed: int, steps: int, batch: int) -> np.ndarray:
    """Mostly zero: spikes, small counts or real numbers, with whole steps of silence."""
    rng = np.random.default_rng(seed + 1)
    shape, kind = (steps, batch, *program.input_shape), int(rng.integers(3))
    values = (np.ones(shape), rng.integers(-2, 3, shape), rng.normal(size=shape))[kind]
    active = (rng.random(shape) < rng.choice([0.02, 0.2, 0.6])) & (rng.random((steps, *(1,) * (len(shape) - 1))) < 0.7)
    return np.where(active, values, 0).astype(np.float32)
