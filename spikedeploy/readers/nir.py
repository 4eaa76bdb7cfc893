"""Reading NIR files: any feed-forward graph becomes a Program, under guard."""

from __future__ import annotations

import os
from pathlib import Path

from spikedeploy.errors import BadInput, message
from spikedeploy.plain import load_program
from spikedeploy.program import Program
from spikedeploy.readers import sandbox
from spikedeploy.readers.nir_nodes import Discretisation

MAX_FILE = 1 << 30


def read(path: str | os.PathLike[str], dt: float | None = None, discretisation: Discretisation | None = None) -> Program:
    """The program in a NIR file, by NIR's own equations (`nir_nodes`), parsed in a child process under limits of memory and time.

    dt               length of a time step in the file's units; the file's metadata says it, else 1e-4 is assumed and noted
    discretisation   "euler" or "exact", how the differential equations are cut into steps; as the metadata says, else "euler";
                     "sinabs" and "rockpool" read a graph as those two do, who do not follow the equations; "nengo" cuts synapses
                     by Euler and membranes exactly

    What was assumed stands in `program.notes`. Raises `BadInput` when the file is missing, damaged, unsafe, or holds a node that is not
    read.
    """
    _check_options(dt, discretisation)
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE:
            raise BadInput(message(f"{path}", f"{size} bytes", f"at most {MAX_FILE} are read"))
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(message(f"{path}", f"it cannot be opened ({error.strerror})", "a NIR file is needed")) from None
    try:
        answer = sandbox.run("spikedeploy.readers.nir_child", data, repr(dt) if dt else "-", discretisation or "-", where="NIR file")
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    return load_program(answer)


def _check_options(dt: float | None, discretisation: str | None) -> None:
    if dt is not None and not 0 < dt < float("inf"):
        raise BadInput(message("option dt", f"it is {dt}", "a time step above zero is needed"))
    if discretisation not in (None, "euler", "exact", "sinabs", "rockpool", "nengo"):
        raise BadInput(message("option discretisation", f"it is '{discretisation}'", "euler, exact, sinabs, rockpool or nengo is needed"))


def from_bytes(data: bytes, dt: float | None = None, discretisation: Discretisation | None = None) -> Program:
    """As `read`, on bytes and in this process: for files we have just made, and inside the child."""
    from spikedeploy.readers.nir_file import parse
    from spikedeploy.readers.nir_graph import program_of

    _check_options(dt, discretisation)
    return program_of(parse(data), dt, discretisation)
