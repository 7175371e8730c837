"""matplotlib without a display, and how its pictures look here. The extra `plot` brings it."""

import base64
import io
from pathlib import Path
from typing import Any

from centernet_trt.errors import BackendError, InputError

COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#9c6ade", "#d4a017", "#5c677d")


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of so many inches that belongs to no window and needs no closing.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"pictures need matplotlib, which cannot be imported: {error}",
            "pip install 'centernet-trt[plot]'",
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Any, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG; InputError when the file cannot be written."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def svg_uri(figure: Any) -> str:
    """A figure as a `data:` address for an HTML img, so that the page needs no other file."""
    import matplotlib as mpl

    stream = io.BytesIO()
    # Without a salt and a date the same figure would be other bytes every time.
    with mpl.rc_context({"svg.hashsalt": "centernet-trt"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
