"""Pictures for the HTML report, made of text alone: inline SVG, and spike rasters as small PNG files written here."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spikedeploy.report.counts import Histogram
from spikedeploy.report.evidence import Band

WIDTH, HEIGHT = 760, 120


def png(image: npt.NDArray[np.bool_]) -> bytes:
    """A black-on-white PNG, one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.packbits(~image, axis=1)
    lines = np.concatenate([np.zeros((len(rows), 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b"")


def raster(image: npt.NDArray[np.bool_]) -> str:
    """The source of an `<img>`."""
    return "data:image/png;base64," + b64encode(png(image)).decode()


def line(values: Sequence[float], top: float | None = None) -> str:
    """A curve in a frame over the whole width, from zero to its largest value or `top`."""
    high = max([*values, 1e-12]) if top is None else top
    step = WIDTH / max(len(values) - 1, 1)
    points = " ".join(f"{i * step:.1f},{HEIGHT - 4 - (HEIGHT - 8) * min(v / high, 1):.1f}" for i, v in enumerate(values))
    if len(values) == 1:
        points += f" {WIDTH},{points.split(',')[1]}"
    frame = f'<rect x="0.5" y="3.5" width="{WIDTH - 1}" height="{HEIGHT - 7}" class="frame"/>'
    return _svg(f'{frame}<polyline points="{points}" class="curve"/>')


def histogram(found: Histogram, band: Band | None) -> str:
    """Logarithmic bars around the threshold; the undecided band is drawn at least one pixel wide."""
    counts = np.log10(found.counts + 1.0)
    high, wide = max(float(counts.max()), 1e-9), WIDTH / len(counts)
    tall = (HEIGHT - 8) * counts / high
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{HEIGHT - h:.1f}" width="{wide - 1:.1f}" height="{h:.1f}" class="bar"/>'
        for i, h in enumerate(tall)
        if h
    )
    half = max(0.5, 0.0 if band is None else band.width / found.scale * WIDTH / float(found.edges[-1] - found.edges[0]))
    middle = WIDTH * float(-found.edges[0] / (found.edges[-1] - found.edges[0]))
    marks = f'<rect x="{middle - half:.2f}" y="0" width="{2 * half:.2f}" height="{HEIGHT}" class="band"/>'
    return _svg(bars + marks)


def bars(items: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars `(label, share of the widest, text)`."""
    row = 24
    parts = []
    for i, (label, share, text) in enumerate(items):
        y = i * row
        parts.append(f'<text x="0" y="{y + 16}">{label}</text>')
        parts.append(f'<rect x="170" y="{y + 4}" width="{max(share, 0.0) * 330:.1f}" height="16" class="bar"/>')
        parts.append(f'<text x="{176 + max(share, 0.0) * 330:.1f}" y="{y + 16}">{text}</text>')
    return _svg("".join(parts), len(items) * row)


def _svg(inside: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img">{inside}</svg>'
