"""What a model is verified on where there is no real data: random data that makes neurons fire at every strength."""

from __future__ import annotations

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, message
from spikedeploy.inputs.recording import MAX_VALUES
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.verify.rounding import Real

GAINS = (1.0, 1.0, 4.0, 4.0, 0.25, 2.0, 16.0, 8.0)


def random_input(program: Program, steps: int, batch: int, seed: int, rate: float = 0.25) -> Real:
    """`(T, B, *shape)` float32: even samples are spikes of probability `rate`, odd ones standard normal, at several gains."""
    check_options(program, steps, batch, seed, rate)
    rng = np.random.default_rng(seed)
    shape = (steps, batch, *program.input_shape)
    if program.input_kind == "index":
        rows = min(step.table.shape[0] for step in program.steps if isinstance(step, S.Embedding))
        return rng.integers(0, rows, shape).astype(np.float32)
    gains = np.array([GAINS[i % len(GAINS)] for i in range(batch)]).reshape(1, batch, *(1,) * len(program.input_shape))
    even = (np.arange(batch) % 2 == 0).reshape(gains.shape)
    return np.asarray(np.where(even, rng.random(shape) < rate, rng.standard_normal(shape)) * gains, np.float32)


def lively_input(program: Program, steps: int, batch: int, seed: int, rate: float = 0.25) -> Real:
    """`random_input`, louder where that is needed to make every layer fire: a threshold that is never reached is not tested."""
    x = random_input(program, steps, batch, seed, rate)
    if program.input_kind == "index":
        return x
    silent = {gain: _silent(program, x[:PROBE] * gain) for gain in LOUDER}
    return np.asarray(x * min(LOUDER, key=lambda gain: (silent[gain], gain)), np.float32)


LOUDER, PROBE = (1.0, 8.0, 64.0), 24


def _silent(program: Program, x: Real) -> int:
    return sum(count == 0 for count in reference.run(program, x, dtype=np.float32).spikes.values())


def check_options(program: Program, steps: int, batch: int, seed: int, rate: float) -> None:
    """Raises `BadInput` on no steps, no batch, more values than a machine holds, a negative seed, or a rate that is no probability."""
    for name, value in (("steps", steps), ("batch", batch)):
        if value < 1:
            raise BadInput(message(f"--{name}", f"it is {value}", "at least 1 is needed"))
    if seed < 0:
        raise BadInput(message("--seed", f"it is {seed}", "a whole number from 0 on is needed"))
    if not 0 <= rate <= 1:
        raise BadInput(message("--rate", f"it is {rate}", "a probability from 0 to 1 is needed"))
    if steps * batch * max(1, int(np.prod(program.input_shape))) > MAX_VALUES:
        raise BadInput(message("input", f"{steps} steps of a batch of {batch}", f"at most {MAX_VALUES} values are used", "Ask for fewer."))
