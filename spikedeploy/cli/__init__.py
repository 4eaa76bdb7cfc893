"""The command line: `spikedeploy COMMAND`. One module per command, imported when it is called, so that `--help` starts at once."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from spikedeploy import __version__

COMMANDS: dict[str, str] = {
    "export": "Write a trained model as a NIR graph or an ONNX step cell, verified.",
    "verify": "Hold a model against its artifact, spike by spike.",
    "inspect": "Show what is in a .pt, .nir or .onnx file.",
    "run": "Run a file on input, step by step.",
    "report": "Sparsity, operations, energy and equivalence of a model.",
    "sweep": "Accuracy, sparsity, operations and divergence by top-k.",
    "doctor": "Show versions and what this machine can do.",
}
"""Command name -> what it does; the module of that name holds the function `command`."""


class _Lazy(click.Group):
    """Commands by name, imported on use; the list of commands needs no import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"spikedeploy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Lazy,
    epilog="Example: spikedeploy export model.pt --target nir -o model.nir",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="spikedeploy")
def group() -> None:
    """Train parallel, run iterative: trained spiking models become verified step-by-step artifacts.

    Exit codes: 0 done; 1 the model is refused or not equivalent; 2 usage, input or output; 101 a bug of ours, with a traceback; 130
    interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """The entry point; leaves through `sys.exit` with the code of the outcome."""
    sys.exit(outcome(sys.argv[1:] if arguments is None else arguments))


def outcome(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    from spikedeploy.cli.endings import run

    return run(group, arguments)
