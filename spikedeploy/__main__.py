"""`python -m spikedeploy`: the command line."""

from __future__ import annotations

from spikedeploy.cli import main

main()
