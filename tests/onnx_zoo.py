"""Programs of every kind, built from steps directly: what the ONNX tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from spikedeploy import steps as S
from spikedeploy.program import Output, Program

Semantics = Literal["recurrence", "snntorch-1.0.0"]


class Builder:
    """Random or dyadic parameters: dyadic ones have few bits, so that float32 arithmetic on them is exact."""

    def __init__(self, seed: int, *, dyadic: bool = False) -> None:
        self.rng, self.dyadic = np.random.default_rng(seed), dyadic

    def array(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        if self.dyadic:
            return (self.rng.integers(-4, 5, shape) / 4).astype(np.float32)
        return (self.rng.normal(size=shape) * scale).astype(np.float32)

    def decay(self, *shape: int) -> np.ndarray:
        return np.full(shape, 0.5, np.float32) if self.dyadic else self.rng.uniform(0.6, 0.99, shape).astype(np.float32)

    def affine(self, name: str, source: str, wide: int, out: int) -> S.Affine:
        return S.Affine(name, (source,), self.array(out, wide, scale=1.2 / wide**0.5), self.array(out, scale=0.2))

    def leaky(self, name: str, source: str, *, width: int = 1) -> list[S.Step]:
        theta = np.array(0.5, np.float32)
        return [
            S.Integrator(f"{name}.mem", (source,), self.decay(width) if width > 1 else self.decay()),
            S.Threshold(name, (f"{name}.mem",), theta),
        ]

    def memory(
        self, name: str, source: str, m: int, d: int, n: int, *, semantics: Semantics = "recurrence", query: bool = True
    ) -> list[S.Step]:
        """Gen2: writes the wire `name`, `(d*d,)` with a query projection and `(d*n,)` without."""
        alpha = (
            S.Affine(f"{name}.a", (source,), np.zeros((n, m), np.float32), np.zeros(n, np.float32))
            if self.dyadic
            else self.affine(f"{name}.a", source, m, n)
        )
        steps: list[S.Step] = [
            self.affine(f"{name}.v", source, m, d),
            self.affine(f"{name}.k", source, m, n),
            alpha,
            S.Activation(f"{name}.alpha", (f"{name}.a",), "sigmoid"),
            S.MatrixMemory(f"{name}.S", (f"{name}.v", f"{name}.k", f"{name}.alpha"), semantics),
            S.Threshold(f"{name}.spk", (f"{name}.S",), np.array(1, np.float32)),
        ]
        if not query:
            return [*steps, S.Reshape(name, (f"{name}.spk",), (d * n,))]
        return [
            *steps,
            self.affine(f"{name}.q", source, m, n * d),
            S.Reshape(f"{name}.Q", (f"{name}.q",), (n, d)),
            S.MatMul(f"{name}.PQ", (f"{name}.spk", f"{name}.Q")),
            S.Reshape(name, (f"{name}.PQ",), (d * d,)),
        ]


def program(shape: tuple[int, ...], steps: list[S.Step], *outputs: Output, kind: Literal["float", "index"] = "float") -> Program:
    return Program(shape, tuple(steps), outputs or (Output("out", steps[-1].name),), input_kind=kind)


def gen1(b: Builder) -> Program:
    steps = [b.affine("fc1", "input", 5, 9), *b.leaky("lif1", "fc1", width=9), b.affine("fc2", "lif1", 9, 3), *b.leaky("lif2", "fc2")]
    return program((5,), steps, Output("spk", "lif2"), Output("mem", "lif2.mem"))


def truncated(b: Builder) -> Program:
    steps = [
        b.affine("fc", "input", 4, 6),
        S.Delay("lif.old", ("fc",), 3),
        S.Scale("lif.gone", ("lif.old",), -(b.decay() ** 3)),
        S.Add("lif.in", ("fc", "lif.gone")),
        S.Integrator("lif.raw", ("lif.in",), b.decay()),
        S.Nearest("lif.mem", ("lif.raw",), (np.arange(-8, 9) / 4 + 0.125).astype(np.float32)),
        S.Threshold("lif", ("lif.mem",), np.array(0.5, np.float32), np.array(4, np.float32)),
        S.Delay("one", ("lif",), 1),
    ]
    return program((4,), steps, Output("now", "lif"), Output("before", "one"))


def resets(b: Builder) -> Program:
    theta, steps = np.array(0.75, np.float32), [b.affine("fc", "input", 4, 7)]
    for index, (reset, late, strict) in enumerate(
        [("subtract", True, True), ("subtract", False, False), ("zero", True, False), ("zero", False, True), ("value", True, True)]
    ):
        value = np.array(0.25, np.float32)
        steps.append(S.LIF(f"lif{index}", ("fc",), b.decay(7), theta, reset, late, strict, reset_value=value))
    return program((4,), [*steps, S.Add("all", tuple(f"lif{i}" for i in range(5)))], Output("all", "all", "sum"), Output("mem", "lif3.mem"))


def gen2(b: Builder, *, semantics: str = "recurrence", query: bool = True) -> Program:
    return program((5,), b.memory("mem1", "input", 5, 4, 3, semantics=semantics, query=query))


def gen2_three(b: Builder) -> Program:
    steps = [
        *b.memory("mem1", "input", 5, 4, 3),
        *b.memory("mem2", "mem1", 16, 3, 5),
        *b.memory("mem3", "mem2", 9, 2, 4, query=False),
        b.affine("head", "mem3", 8, 3),
    ]
    return program((5,), steps, Output("out", "head", "mean"))


def gen3(b: Builder) -> Program:
    steps = b.memory("d1", "input", 5, 4, 3)
    beta = [b.affine("d1.b", "input", 5, 1), S.Activation("d1.beta", ("d1.b",), "sigmoid")]
    unit = S.L2Normalize("d1.unit", ("d1.k",))
    memory = S.DeltaMemory("d1.S", ("d1.v", "d1.unit", "d1.alpha", "d1.beta"))
    return program((5,), [*steps[:4], *beta, unit, memory, *steps[5:]])


def mixture(b: Builder) -> Program:
    """Tokens, an embedding, norms, every activation, a residual, products, top-k."""
    names: tuple[S.Function, ...] = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "exp")
    steps: list[S.Step] = [
        S.Embedding("emb", ("input",), b.array(11, 6)),
        S.LayerNorm("norm", ("emb",), b.array(6), b.array(6)),
        *(S.Activation(name, ("norm",), name) for name in names),
        S.Add("acts", names),
        S.LayerNorm("norm2", ("acts",), None, None),
        *b.leaky("lif", "norm2", width=6),
        S.Add("skip", ("lif", "emb")),
        S.TopK("top", ("skip",), 2),
        *b.memory("mem", "top", 6, 3, 4),
        b.affine("gate", "mem", 9, 6),
        S.Slice("low", ("gate",), 1, 4),
        S.Mul("glu", ("low", "mem.v")),
        S.Add("late", ("input", "glu")),
    ]
    return program((), steps, Output("out", "glu", "mean"), Output("late", "late", "last"), kind="index")


def convolution(b: Builder) -> Program:
    steps: list[S.Step] = [
        S.Conv2d("conv", ("input",), b.array(4, 2, 3, 3, scale=0.4), b.array(4), (2, 1), (1, 0), (1, 1)),
        *b.leaky("lif", "conv"),
        S.SumPool2d("pool", ("lif",), (2, 3), (2, 1), (1, 0)),
        S.Scale("avg", ("pool",), np.array(0.5, np.float32), np.array([[[0.25]], [[0]], [[1]], [[0]]], np.float32)),
        S.Conv2d("depth", ("avg",), b.array(4, 1, 2, 2), None, (1, 1), (0, 0), (1, 1), 4),
        S.Affine("rows", ("depth",), b.array(3, 1), b.array(3)),
        S.Reshape("flat", ("rows",), (4 * 2 * 3,)),
        *b.leaky("lif2", "flat"),
    ]
    return program((2, 7, 6), steps, Output("out", "lif2", "max"))


def ssm(b: Builder) -> Program:
    """A SpikingSSM block: S4D, a neuron with hard reset and `>=`, GLU, residual, norm."""
    h, m = 4, 3
    size, angle = (
        np.full((h, m), 0.5) if b.dyadic else b.rng.uniform(0.8, 0.999, (h, m)),
        np.zeros((h, m)) if b.dyadic else b.rng.uniform(0, 3, (h, m)),
    )
    a = (size * np.exp(1j * angle)).astype(np.complex64)
    steps: list[S.Step] = [
        S.DiagonalSSM("s4d", ("input",), a.real, a.imag, b.array(h, m), b.array(h, m), b.array(h)),
        S.LIF("lif", ("s4d",), np.array(0.125, np.float32), np.array(1, np.float32), "zero", strict=False),
        b.affine("mix", "lif", h, 2 * h),
        S.Slice("value", ("mix",), 0, h),
        S.Slice("gate.in", ("mix",), h, 2 * h),
        S.Activation("gate", ("gate.in",), "sigmoid"),
        S.Mul("glu", ("value", "gate")),
        S.Add("sum", ("glu", "input")),
        S.LayerNorm("norm", ("sum",), b.array(h), b.array(h)),
    ]
    return program((h,), steps, Output("out", "norm"))


ZOO: dict[str, Callable[[Builder], Program]] = {
    "gen1": gen1,
    "truncated": truncated,
    "resets": resets,
    "gen2": gen2,
    "gen2-library": lambda b: gen2(b, semantics="snntorch-1.0.0"),
    "gen2-no-query": lambda b: gen2(b, query=False),
    "gen2-three": gen2_three,
    "gen3": gen3,
    "mixture": mixture,
    "convolution": convolution,
    "ssm": ssm,
}
DYADIC = ("gen1", "truncated", "resets", "gen2", "gen2-no-query", "gen2-three", "convolution")
"""Those whose arithmetic is exact in float32 when every parameter has few bits."""


def samples(model: Program, steps: int, batch: int, seed: int = 0, *, dyadic: bool = False) -> np.ndarray:
    rng, shape = np.random.default_rng(seed), (steps, batch, *model.input_shape)
    if model.input_kind == "index":
        return rng.integers(0, 11, shape)
    return (rng.integers(-3, 4, shape) / 2 if dyadic else rng.normal(size=shape) * 1.5).astype(np.float32)
