"""The child process of the NIR reader: file bytes on stdin, program bytes on stdout. Run by `sandbox.run`, not by people."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """`SECONDS MEMORY DT DISCRETISATION` ("-" where not stated)."""
    from spikedeploy.readers.sandbox import GOOD, REFUSED, limit

    seconds, memory, dt, discretisation = sys.argv[1:5]
    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
    from spikedeploy.errors import SpikedeployError
    from spikedeploy.plain import dump_program
    from spikedeploy.readers.nir import from_bytes

    limit(int(seconds), int(memory))
    data = sys.stdin.buffer.read()
    try:
        program = from_bytes(data, None if dt == "-" else float(dt), None if discretisation == "-" else discretisation)  # type: ignore[arg-type]
        answer = GOOD + dump_program(program)
    except SpikedeployError as error:
        answer = REFUSED + str(error).encode()
    except (MemoryError, RecursionError):
        answer = REFUSED + b"NIR file: reading it needs too much memory; a graph needs less. Do not trust this file."
    sys.stdout.buffer.write(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
