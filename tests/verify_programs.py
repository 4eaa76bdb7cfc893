"""Small programs with drawn weights, for the tests of verification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spikedeploy import steps as S
from spikedeploy.program import Output, Program

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers, alone or in any company."""
    global RNG
    RNG = np.random.default_rng(5)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def dyadic(*shape: int) -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(np.float32) / 4


def leaky(weight: np.ndarray, decay: np.ndarray | float, threshold: float = 1.0, strict: bool = True) -> Program:
    """One layer of neurons; spikes are the output."""
    return Program(
        (weight.shape[1],),
        (
            S.Affine("fc", ("input",), weight),
            S.Integrator("lif.mem", ("fc",), np.asarray(decay, np.float32)),
            S.Threshold("lif", ("lif.mem",), np.array(threshold, np.float32), strict=strict),
        ),
        (Output("spikes", "lif"),),
    )


def single(step: S.Step, shape: tuple[int, ...]) -> Program:
    """One step whose wire is the output."""
    return Program(shape, (step,), (Output("y", step.name),))


X = ("input",)


def changed(program: Program, name: str, **fields: object) -> Program:
    return replace(program, steps=tuple(replace(s, **fields) if s.name == name else s for s in program.steps))  # type: ignore[arg-type]
