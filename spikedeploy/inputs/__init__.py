"""What models are run on: dense arrays and address events, from files. docs/formats.md says what the files hold.

data = load("test.npz")                a `Data`: dense (`Dense`) or address events (`Recording`)
x = fitted(program, data)              the program's input (T, B, *input_shape)
source, batch = for_engine(program, data)
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput
from spikedeploy.inputs.dense import Dense
from spikedeploy.inputs.files import load
from spikedeploy.inputs.recording import Recording
from spikedeploy.program import Program
from spikedeploy.runtime import reference
from spikedeploy.runtime.events_input import Events
from spikedeploy.steps import Shape

Real = npt.NDArray[Any]
Data = Dense | Recording


class Model(Protocol):
    """Whatever takes data: a program, or what an ONNX cell says of itself."""

    @property
    def input_shape(self) -> Shape: ...
    @property
    def input_kind(self) -> str: ...


def as_data(x: Any) -> Data:
    """Data as it is; anything else as a dense array called `input`."""
    return x if isinstance(x, Dense | Recording) else Dense(np.asarray(x))


def fitted(program: Program, data: Data) -> Real:
    """The data as the program's input `(T, B, *input_shape)`; a single sample `(T, *input_shape)` gets its batch axis.

    Raises `BadInput` with the needed shape, for numbers that float32 cannot hold, and for address events whose dense form is too large.
    """
    try:
        return reference.check_input(program, data.dense(program), np.float32)
    except BadInput as error:
        raise BadInput(said_of(data, error)) from None


def for_engine(program: Program, data: Data) -> tuple[Real | Events, int]:
    """What the event-driven engine runs, without a dense copy of address events; and the batch. Raises `BadInput`."""
    if isinstance(data, Recording):
        return data.events(program), data.batch
    x = fitted(program, data)
    return x, x.shape[1]


def said_of(data: Data, error: BadInput) -> str:
    """The message about `input` or `events`, about the file that these came from."""
    text = str(error)
    if text.startswith("events"):
        return f"{data.where}: {text}"
    return f"{data.where}{text.removeprefix('input')}" if text.startswith("input") else text


__all__ = ["Data", "Dense", "Model", "Recording", "as_data", "fitted", "for_engine", "load", "said_of"]
