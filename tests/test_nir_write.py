"""NIR files on the disk: whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nirnets as nets
import pytest

from spikedeploy.errors import BadInput
from spikedeploy.exporters import atomic
from spikedeploy.exporters.nir import export, write
from spikedeploy.readers.nir import from_bytes, read


def test_write_and_read(tmp_path: Path) -> None:
    program = nets.per_channel((5, 7, 3))
    path = write(program, tmp_path / "a.nir", profile="norse")
    assert path.read_bytes() == export(program, profile="norse")
    assert read(path).digest == from_bytes(path.read_bytes()).digest
    assert (path.stat().st_mode & 0o777) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("call", ["fsync", "fchmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failing_write_leaves_the_old_file(
    call: str, error: OSError, old: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.nir"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(atomic.os, call, failing(error))
    with pytest.raises(BadInput, match=f"{error.strerror}.*nothing was changed"):
        atomic.write_bytes(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([] if old is None else [("a.nir", old)])


def test_an_interrupted_write_leaves_nothing_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.nir"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.nir", b"old")]


def test_a_really_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the bytes half way, as a full disk does."""
    path = tmp_path / "a.nir"
    path.write_bytes(b"old")
    script = (
        "import resource, signal, sys\nfrom spikedeploy.exporters.atomic import write_bytes\nfrom spikedeploy.errors import BadInput\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n    write_bytes(sys.argv[1], b'x' * 1000000)\nexcept BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.nir", b"old")]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "no" / "a.nir", "does not exist"), (tmp_path, "it is a directory")):
        with pytest.raises(BadInput, match=text):
            atomic.write_bytes(path, b"new")


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.nir", tmp_path / "link.nir"
    real.write_bytes(b"old")
    link.symlink_to(real)
    atomic.write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_pipe_or_a_device_is_written_to_not_replaced(tmp_path: Path) -> None:
    from threading import Thread

    pipe, found = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    atomic.write_bytes(pipe, b"new")
    reader.join(10)
    assert found == [b"new"] and pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]
