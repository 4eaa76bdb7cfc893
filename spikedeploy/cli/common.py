"""What the commands share: options, results for people and for machines, progress that is silent when piped."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout, for machines.")


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_option = click.option(
    "--model", metavar="PACKAGE.MODULE:FACTORY", help="What makes the module, for a file that is a bare state_dict."
)
conversion = options(
    model_option,
    click.option("--semantics", type=click.Choice(["recurrence", "snntorch-1.0.0"]), help="Meaning of Gen2 layers; as trained by default."),
    click.option(
        "--truncation",
        type=click.Choice(["exact", "drop"]),
        help="Of kernel_truncation_steps: exactly by a delay line (default), or dropped.",
    ),
)


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> int | float | None:
    if value is None:
        return None
    from spikedeploy.topk import parse_one

    return parse_one(value, parameter.opts[0])


topk = options(
    click.option("--topk-k", metavar="NUMBER", callback=_keep, help="Gen2, Gen3: keys kept, as a fraction (0.5) or a count (8)."),
    click.option("--topk-v", metavar="NUMBER", callback=_keep, help="Gen2, Gen3: values kept, likewise."),
)
"""Makes matrix memories sparse: `--topk-k`, `--topk-v`."""
reading = options(
    click.option("--dt", type=float, help="Time step to read a .nir file with, if it is not its own."),
    click.option(
        "--discretisation",
        type=click.Choice(["euler", "exact"]),
        help="How a .nir file's time constants are cut into steps, if it does not say.",
    ),
)
"""How to take a .nir file that says nothing of its time steps."""
randomness = options(
    click.option("--steps", type=int, help="Time steps of the random input.  [default: 64]"),
    click.option("--batch", type=int, help="Batch size of the random input.  [default: 8, or the cell's own]"),
    click.option("--seed", type=int, help="Seed of the random input.  [default: 0]"),
    click.option("--rate", type=float, help="Spike probability in the random input's binary samples.  [default: 0.25]"),
)
"""No defaults of their own: what was not asked for must not be refused beside real data."""


event_dt = click.option("--event-dt", type=float, help="Length of a step in the unit of the times, where the input is address events.")


def read_data(path: str | None, event_dt: float | None) -> Any:
    """What `--input` names, dense or address events; None where it is not given. Raises `BadInput`."""
    from spikedeploy.errors import BadInput, message
    from spikedeploy.inputs import load

    if path is not None:
        return load(path, event_dt)
    if event_dt is not None:
        raise BadInput(message("option --event-dt", "there is no --input", "address events are needed", "Leave it out."))
    return None


def chosen(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in values.items() if value is not None}


def check_target(path: Path) -> None:
    """What would make the writing fail is better said before the work than after it. Raises `BadInput`."""
    from spikedeploy.errors import BadInput, message

    if path.is_dir():
        raise BadInput(message(f"output {path}", "it is a directory", "a file name is needed"))
    if path.exists() and not path.is_file():
        return
    if not path.parent.is_dir():
        raise BadInput(message(f"output {path}", f"there is no directory {path.parent}", "it must exist", "Create it first."))
    if not os.access(path.parent, os.W_OK):
        raise BadInput(message(f"output {path}", f"the directory {path.parent} may not be written", "write permission is needed"))


def show(result: Mapping[str, Any], text: str, machine: bool) -> None:
    """A result on stdout: JSON, or text for people. JSON has no infinity and no NaN: null stands for both."""
    print(json.dumps(_finite(result), indent=2, default=_plain, allow_nan=False) if machine else text)


def _finite(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr with a text that can change; nothing at all when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield status.update


def show_rich(thing: Any) -> None:
    """Something rich on stdout: in colour on a terminal, plain text otherwise."""
    if not sys.stdout.isatty():
        print(thing)
        return
    from rich.console import Console

    Console().print(thing)


def single_thread() -> None:
    """Verification compares roundings: one thread gives the same ones on every run."""
    import torch

    torch.set_num_threads(1)
