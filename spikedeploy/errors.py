"""The one family of errors that users see.

Every message says, in this order: where, what was found, what is needed, what to do.
The command line turns each class into its exit code; anything else is a bug of ours (101).
"""

from __future__ import annotations


class SpikedeployError(Exception):
    """Base of every error that spikedeploy raises on purpose."""

    exit_code = 1


class ModelRefused(SpikedeployError):
    """The model cannot be deployed as it is: an unknown layer, a parameter out of range, mixed time steps."""

    exit_code = 1


class NotEquivalent(SpikedeployError):
    """Two forms of one model disagree outside the rounding margin."""

    exit_code = 1


class BadInput(SpikedeployError):
    """A file, an array or an option that cannot be used: missing, unreadable, of another shape or dtype."""

    exit_code = 2


def message(where: str, found: str, needed: str = "", do: str = "") -> str:
    """Compose an error text: `where: found; needed. do`.

    >>> message("layer 3 'lif2' (StateLeaky)", "beta[17] is NaN", "every beta must lie in (0, 1)")
    "layer 3 'lif2' (StateLeaky): beta[17] is NaN; every beta must lie in (0, 1)."
    """
    text = f"{where}: {found}"
    if needed:
        text += f"; {needed}"
    text += "."
    return f"{text} {do}" if do else text
