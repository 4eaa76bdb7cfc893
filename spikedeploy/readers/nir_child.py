"""The child process of the NIR reader: file bytes on stdin, program bytes on stdout. Run by `sandbox.run`, not by people."""

from __future__ import annotations

import os
import sys
from typing import cast


def main() -> int:
    """`SECONDS MEMORY DT DISCRETISATION` ("-" where not stated)."""
    from spikedeploy.readers.sandbox import GOOD, REFUSED, limit

    seconds, memory, dt, discretisation = sys.argv[1:5]
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
    from spikedeploy.errors import SpikedeployError
    from spikedeploy.plain import dump_program
    from spikedeploy.readers.nir import from_bytes
    from spikedeploy.readers.nir_nodes import Discretisation

    limit(int(seconds), int(memory))
    data = sys.stdin.buffer.read()
    try:
        how = None if discretisation == "-" else cast(Discretisation, discretisation)  # `from_bytes` checks it
        program = from_bytes(data, None if dt == "-" else float(dt), how)
        answer = GOOD + dump_program(program)
    except SpikedeployError as error:
        answer = REFUSED + str(error).encode()
    except (MemoryError, RecursionError):
        answer = REFUSED + b"NIR file: reading it needs too much memory; a graph needs less. Do not trust this file."
    sys.stdout.buffer.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
