"""Files of data: `.npy` and `.npz`, dense or address events. Nothing is unpickled; whatever is wrong is said in words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.inputs.dense import Dense
from spikedeploy.inputs.events_file import recording
from spikedeploy.inputs.recording import Recording

Real = npt.NDArray[Any]


def load(path: str | os.PathLike[str], event_dt: float | None = None) -> Dense | Recording:
    """Data from a `.npy` or `.npz`.

    Dense       the array in a `.npy`, or the one called `input` or `x` (or the only one) in a `.npz`
    Recording   a structured array with the fields `t`, `x`, ... (`.npy`; `.npz`: called `events`, or the only one), or a `.npz` with the
                arrays `t` and `index` or `x`, ...
    event_dt    length of a step in the unit of `t`, over what the file says

    Raises `BadInput`.
    """
    where = Path(path)
    if where.is_dir() or not where.exists():
        found = "it is a directory" if where.is_dir() else "there is no such file"
        raise BadInput(message(f"{path}", found, "a .npy or .npz file is needed"))
    with _opened(where) as stored:
        arrays = _chosen(where, stored)
    if not isinstance(arrays, np.ndarray):
        return recording(path, arrays, event_dt)
    if event_dt is not None:
        raise BadInput(message("option --event-dt", f"it has no meaning for {path}", "address events are needed", "Leave it out."))
    return Dense(arrays, path, lambda: _labels(where))


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Real]]:
    """The arrays of the file by name, each read when it is asked for; the one of a `.npy` is called `input`."""
    try:
        loaded = np.load(path, allow_pickle=False)
        with nullcontext({"input": loaded}) if isinstance(loaded, np.ndarray) else loaded as arrays:
            yield arrays
    except BadInput:
        raise
    except Exception as error:  # numpy, zipfile and struct fail in many ways on random bytes
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise BadInput(message(f"{path}", f"unreadable ({first})", "a .npy or .npz file of numbers is needed")) from None


def _chosen(path: Path, arrays: Mapping[str, Real]) -> Real | dict[str, Real]:
    """The dense array, or the arrays of a recording by name."""
    names = list(arrays)
    if "input" not in names and "t" in names and not ("x" in names and arrays["x"].ndim > 1):
        return {name: np.asarray(arrays[name]) for name in names}
    name = next((n for n in ("input", "events", "x") if n in names), names[0] if len(names) == 1 else None)
    if name is None:
        raise BadInput(message(f"{path}", f"arrays {', '.join(names) or 'none'}", "one of them must be called 'input'"))
    array = np.asarray(arrays[name])
    if array.dtype.names is None:
        return array
    others = {other: np.asarray(arrays[other]) for other in names if other != name}
    if both := sorted(set(others) & set(array.dtype.names)):
        raise BadInput(message(f"{path}", f"'{both[0]}' is an array and a field of '{name}'", "it must be given once"))
    return others | {field: array[field] for field in array.dtype.names}


def _labels(path: Path) -> Real | None:
    """The array `labels` or `y` beside a dense input."""
    with _opened(path) as arrays:
        name = next((name for name in ("labels", "y") if name in arrays), None)
        return None if name is None else np.asarray(arrays[name])
