"""Parsing in a child process: whatever a hostile file does to a parser, it does it there, under limits of memory and time.

The file's bytes go in by stdin and plain bytes come out by stdout; nothing is unpickled. HDF5 is a C library that a crafted file can
crash or keep busy for ever; a crash, a hang or a flood of memory becomes a `BadInput` here.
"""

from __future__ import annotations

import os
import subprocess
import sys

from spikedeploy.errors import BadInput, message

MEMORY = 6 << 30
"""Address space of the child, bytes. It bounds a flood; the budget of the guard (1 GiB) refuses long before."""
SECONDS = 10
"""Processor time for a small file; large ones get a second more per 10 MB."""
GOOD, REFUSED = b"ok\n", b"no\n"


def run(module: str, data: bytes, *arguments: str, where: str, seconds: float = SECONDS, memory: int = MEMORY) -> bytes:
    """`python -P -m module SECONDS MEMORY arguments` on `data`; returns what it answers after `ok`. (-P: nothing is imported from
    the current directory, which may be where the hostile file came from.)

    Raises `BadInput` with the child's own words after `no`, and in ours when it crashes, hangs or answers anything else.
    """
    seconds += len(data) / 1e7
    command = [sys.executable, "-P", "-m", module, str(int(seconds)), str(memory), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PATH": "/nonexistent"}
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=seconds + 5, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise BadInput(
            message(where, f"reading it took over {seconds:.0f} s", "a graph reads in less", "Do not trust this file.")
        ) from None
    if done.returncode == 0 and done.stdout.startswith(GOOD):
        return done.stdout[len(GOOD) :]
    if done.returncode == 0 and done.stdout.startswith(REFUSED):
        raise BadInput(done.stdout[len(REFUSED) :].decode("utf8", "replace"))
    reason = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    raise BadInput(message(where, f"the parser died on it ({reason})", "a whole, undamaged file is needed", "Do not trust this file."))


def limit(seconds: int, memory: int) -> None:
    """In the child: no more than this much processor time and memory, no core dump, no written files."""
    import resource

    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
