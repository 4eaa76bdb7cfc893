"""`spikedeploy report`: lives with the reports."""

from __future__ import annotations

from spikedeploy.report.command import command

__all__ = ["command"]
