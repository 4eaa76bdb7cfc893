"""A sweep as a table and as a figure; JSON carries the same numbers."""

from __future__ import annotations

import io
from typing import Any

from spikedeploy.report.text import number
from spikedeploy.sweep.grid import Sweep
from spikedeploy.sweep.point import Point

COLUMNS = ("topk-k", "topk-v", "accuracy", "sparsity", "ACs", "MACs", "of full", "lazy saves", "differ", "first step", "output difference")


def text(result: Sweep) -> str:
    """The table, the full model first, and what the numbers are."""
    lines = [list(COLUMNS), *(cells(point, result.full) for point in (result.full, *result.points))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    against = "the labels" if result.labelled else "the full model's answers"
    return "\n".join(
        [*table, f"{result.steps} steps, batch {result.batch}; accuracy against {against}; program {result.program_digest[:16]}"]
    )


def cells(point: Point, full: Point) -> list[str]:
    """One row."""
    return [
        "full" if point.topk_k is None else str(point.topk_k),
        "" if point.topk_v is None else str(point.topk_v),
        share(point.accuracy, 2),
        share(point.sparsity, 2),
        number(point.acs),
        number(point.macs),
        share(point.operations / full.operations if full.operations else None, 1),
        share(point.lazy_saved, 1),
        share(point.divergence, 4),
        "-" if point.first_step is None else str(point.first_step),
        "-" if point.output_difference is None else f"{point.output_difference:.3g}",
    ]


def share(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def png(result: Sweep, title: str) -> bytes:
    """Accuracy and divergence against operations: one line for each setting of the keys."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for k in dict.fromkeys((type(p.topk_k), p.topk_k) for p in result.points):
        line = [p for p in result.points if (type(p.topk_k), p.topk_k) == k]
        _draw(left, line, result.full, k[1], [p.accuracy for p in line])
        _draw(right, line, result.full, k[1], [p.divergence for p in line])
    if result.full.accuracy is not None:
        left.axhline(100 * result.full.accuracy, color="0.6", linestyle=":", label="full model")
    left.set_ylabel("accuracy (%)" if result.labelled else "same answer as the full model (%)")
    right.set_ylabel("spike decisions that differ (%)")
    for axes in (left, right):
        axes.set_xlabel("operations, ACs + MACs (% of the full model)")
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, line: list[Point], full: Point, k: Any, values: list[float | None]) -> None:
    shown = [
        (100 * p.operations / max(1, full.operations), 100 * value) for p, value in zip(line, values, strict=True) if value is not None
    ]
    axes.plot([x for x, _ in shown], [y for _, y in shown], marker="o", markersize=4, label=f"topk-k {k}")
