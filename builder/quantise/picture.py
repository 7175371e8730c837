"""The histograms of the worst tensors with their thresholds, as an SVG: text, so that no plotting package is needed."""

import math
from collections.abc import Sequence
from html import escape

from centernet_trt.builder.calibration.record import TensorRecord
from centernet_trt.builder.calibration.thresholds import Method

__all__ = ["histogram_picture"]

_WIDTH, _HEIGHT, _LEFT, _TOP = 560, 120, 16, 34
_COLOURS: dict[Method, str] = {
    "entropy": "#1f77b4",
    "mse": "#9467bd",
    "percentile": "#2ca02c",
    "max": "#7f7f7f",
    "entropy-as-published": "#d62728",
}


def histogram_picture(tensors: Sequence[tuple[str, TensorRecord]], title: str) -> str:
    """An SVG with one panel a tensor: counts of |x| on a logarithmic scale, a line for each threshold.

    Args:
        tensors: name and record, in the order of the panels.
        title: stands above them.
    """
    step = _TOP + _HEIGHT + 22
    height = 44 + step * len(tensors)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2 * _LEFT}" height="{height}" '
            'font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="100%" height="100%" fill="white"/><text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>',
        _legend(),
    ]
    for row, (name, tensor) in enumerate(tensors):
        parts.append(f'<g transform="translate({_LEFT},{44 + row * step})">{_panel(name, tensor)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> str:
    cells = [
        f'<tspan fill="{colour}" dx="{0 if not place else 14}">{method}</tspan>'
        for place, (method, colour) in enumerate(_COLOURS.items())
    ]
    return f'<text x="{_LEFT}" y="36">{"".join(cells)}</text>'


def _panel(name: str, tensor: TensorRecord) -> str:
    counts = tensor.histogram
    tallest = math.log1p(max(counts, default=0)) or 1.0
    width = _WIDTH / max(len(counts), 1)
    parts = [f'<text y="{_TOP - 16}">{escape(name)}</text>']
    for place, count in enumerate(counts):
        tall = math.log1p(count) / tallest * _HEIGHT
        parts.append(
            f'<rect x="{place * width:.1f}" y="{_TOP + _HEIGHT - tall:.1f}" width="{width:.1f}" '
            f'height="{tall:.1f}" fill="#cfd8dc"/>'
        )
    for method, colour in _COLOURS.items():
        threshold = tensor.thresholds.get(method)
        if threshold is None or not tensor.amax:
            continue
        x = min(threshold / tensor.amax, 1.0) * _WIDTH
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_TOP + _HEIGHT}" stroke="{colour}" stroke-width="1.5">'
            f"<title>{method} {threshold:.4g}</title></line>"
        )
    bottom = _TOP + _HEIGHT
    parts.append(f'<line x1="0" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}" stroke="black"/>')
    parts.append(f'<text y="{bottom + 14}">0</text>')
    parts.append(f'<text x="{_WIDTH}" y="{bottom + 14}" text-anchor="end">{tensor.amax:.4g}</text>')
    return "".join(parts)
