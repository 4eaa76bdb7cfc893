"""Writing a file so that the target is either the old one or the whole new one, and nothing else is left behind.

The bytes are already complete and checked when they come here. They go to a temporary file beside the target (the same file system, so
that the rename is atomic), are flushed to the disk, and replace the target in one step. Whatever fails before that step - a full
disk, a directory that may not be written, an interruption - removes the temporary file and leaves the target as it was.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from spikedeploy.errors import BadInput, message


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Replace the file at `path` by `data` in one step; returns the path.

    Raises `BadInput` when the directory is missing, is not writable or is full; the old file, if there was one, is then untouched.
    A symbolic link is followed: what it points at is replaced, the link stays. A device or a pipe (`/dev/null`, `/dev/stdout`) is
    written to, never replaced.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise BadInput(message(f"output {path}", "it is a directory", "a file name is needed"))
    if not target.parent.is_dir():
        raise BadInput(message(f"output {path}", f"the directory {Path(path).parent} does not exist", "it must exist", "Create it first."))
    try:
        if Path(path).exists() and not Path(path).is_file():
            Path(path).write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise BadInput(
            message(
                f"output {path}",
                f"it cannot be written ({error.strerror or error})",
                "nothing was changed; free space and write permission are needed",
            )
        ) from None
    return Path(path)


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), _mode(target))
            os.fsync(stream.fileno())
        Path(name).replace(target)
    except BaseException:  # KeyboardInterrupt too: nothing may be left over
        Path(name).unlink()
        raise
    _sync_directory(target.parent)


def _mode(target: Path) -> int:
    """The permissions of the file that is replaced, else what the umask leaves of 0666 (mkstemp alone would give 0600)."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync_directory(directory: Path) -> None:
    """Makes the rename itself durable; a file system that cannot do this has still renamed."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
