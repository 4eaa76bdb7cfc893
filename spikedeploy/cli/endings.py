"""From whatever a command ends with to one message and one exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping

import click

from spikedeploy.errors import SpikedeployError

BUG, INTERRUPTED, USAGE = 101, 130, 2


def run(group: click.Group, arguments: list[str]) -> int:
    """Run the command line; every failure becomes a message on stderr and a code."""
    try:
        result = group.main(arguments, prog_name="spikedeploy", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:
        for kind, handle in ENDINGS.items():
            if isinstance(error, kind):
                return handle(error)
        raise


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _usage(error: BaseException) -> int:
    assert isinstance(error, click.ClickException)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        print(error.ctx.get_usage(), file=sys.stderr)
    _say(error.format_message())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        print(f"Try '{error.ctx.command_path} --help'.", file=sys.stderr)
    return USAGE


def _refused(error: BaseException) -> int:
    assert isinstance(error, SpikedeployError)
    _say(str(error))
    return error.exit_code


def _interrupted(error: BaseException) -> int:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED


def _pipe(error: BaseException) -> int:
    """Whoever read our output has left: quiet, as every tool is."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _system(error: BaseException) -> int:
    assert isinstance(error, OSError)
    name = f"{error.filename}: " if error.filename else ""
    _say(f"{name}{error.strerror or error}.")
    return USAGE


def _memory(error: BaseException) -> int:
    _say("memory: there is not enough for this. Use fewer steps, a smaller batch, or a larger machine.")
    return USAGE


def _bug(error: BaseException) -> int:
    traceback.print_exception(error)
    _say("this is a bug of spikedeploy; please report it with the lines above.")
    return BUG


ENDINGS: Mapping[type[BaseException], Callable[[BaseException], int]] = {
    click.exceptions.Exit: lambda error: getattr(error, "exit_code", 0),
    click.Abort: _interrupted,
    KeyboardInterrupt: _interrupted,
    click.ClickException: _usage,
    SpikedeployError: _refused,
    BrokenPipeError: _pipe,
    OSError: _system,
    MemoryError: _memory,
    Exception: _bug,
}
"""How each kind of ending is told; the first that fits counts."""
