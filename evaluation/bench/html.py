"""`html_report`: a self-contained page of a BenchReport; and its plots, for the page or a PNG."""

import base64
import io
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.bench.report import BenchReport
from centernet_trt.evaluation.bench.statistics import flat
from centernet_trt.evaluation.bench.tables import report_tables
from centernet_trt.evaluation.bench.timing import WHOLE
from centernet_trt.evaluation.tables import Cell, Table

COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#9c6ade", "#d4a017", "#5c677d")


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure, sizes in inches, that belongs to no window and needs no closing.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            f"plots need matplotlib, which cannot be imported: {error}",
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
    """A figure as a `data:` URI for an HTML img, so that the page needs no other file."""
    import matplotlib as mpl

    stream = io.BytesIO()
    # With a random salt and a date the same figure would give other bytes every time.
    with mpl.rc_context({"svg.hashsalt": "centernet-trt"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


Axes = Any


def panels(report: BenchReport) -> dict[str, Callable[[Axes], None]]:
    """The plots of this report: title -> a function that draws into matplotlib axes."""
    found: dict[str, Callable[[Axes], None]] = {
        "Latency of one image: share of calls completed": lambda axes: _distribution(axes, report),
        "Where the time goes: median of each stage": lambda axes: _stages(axes, report),
        "Precisions side by side: median, and 95th percentile as a line": lambda axes: _precisions(
            axes, report
        ),
    }
    if any(entry.throughput for entry in report.entries):
        found["Throughput by batch size and threads"] = lambda axes: _batches(axes, report)
    return found


def whole_figure(report: BenchReport) -> Any:
    """All plots in one figure, for a PNG."""
    drawn = panels(report)
    figure = new_figure(13, 4.2 * -(-len(drawn) // 2))
    for axes, (title, draw) in zip(figure.subplots(-(-len(drawn) // 2), 2).flat, drawn.items(), strict=False):
        axes.set_title(title, fontsize=10)
        draw(axes)
    for axes in figure.axes[len(drawn) :]:
        axes.remove()
    if report.entries[0].staged is not None:  # a GPU or a stand-in: the plot must show which
        figure.suptitle(report.entries[0].executor, fontsize=9)
    return figure


def single_figure(title: str, draw: Callable[[Axes], None]) -> Any:
    """One plot as a figure of its own."""
    figure = new_figure(6.5, 3.8)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    draw(axes)
    return figure


def _distribution(axes: Axes, report: BenchReport) -> None:
    for row, entry in enumerate(report.entries):
        values = np.sort(flat(entry.pipeline.of_stage(WHOLE))) * 1e3
        share = np.arange(1, len(values) + 1) / len(values)
        axes.step(values, share, where="post", color=COLOURS[row % len(COLOURS)], label=entry.name)
    for level in (0.5, 0.95):
        axes.axhline(level, color="0.85", linewidth=0.8, zorder=0)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of calls")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, frameon=False)


def _stages(axes: Axes, report: BenchReport) -> None:
    names = [entry.name for entry in report.entries]
    series = {entry.name: entry.staged or entry.pipeline for entry in report.entries}
    stages = [stage for stage in series[names[0]].stages if stage != WHOLE]
    left = np.zeros(len(names))
    for row, stage in enumerate(stages):
        width = np.array([found.summary(stage).p50 * 1e3 for found in series.values()])
        axes.barh(names, width, left=left, color=COLOURS[row % len(COLOURS)], label=stage, height=0.6)
        left += width
    axes.invert_yaxis()
    axes.margins(y=0.15)
    axes.set_xlabel("milliseconds")
    # Below the bars: inside it would cover the longest one.
    axes.legend(fontsize=8, frameon=False, ncols=len(stages), loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _precisions(axes: Axes, report: BenchReport) -> None:
    summaries = [entry.pipeline.summary(WHOLE) for entry in report.entries]
    labels = [f"{entry.name}\n{entry.precision}" for entry in report.entries]
    places = np.arange(len(labels))
    medians = np.array([summary.p50 for summary in summaries]) * 1e3
    above = np.array([summary.p95 for summary in summaries]) * 1e3 - medians
    colours = [COLOURS[row % len(COLOURS)] for row in range(len(labels))]
    bars = axes.bar(places, medians, color=colours, width=0.6)
    axes.errorbar(places, medians, yerr=[np.zeros_like(above), above], fmt="none", ecolor="0.25", capsize=4)
    digits = "%.1f" if report.entries[0].staged is None else "%.3f"  # a GPU takes fractions of a millisecond
    axes.bar_label(bars, fmt=digits, label_type="center", color="white", fontsize=9)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylabel("milliseconds")


def _batches(axes: Axes, report: BenchReport) -> None:
    styles = ("-", "--", ":", "-.")
    for row, entry in enumerate(report.entries):
        calls = [load for load in entry.throughput if load.way == "call"]
        for style, threads in enumerate(sorted({load.threads for load in calls})):
            loads = sorted((load.batch, load.rate) for load in calls if load.threads == threads)
            axes.plot(
                [batch for batch, _ in loads],
                [rate for _, rate in loads],
                styles[style % len(styles)],
                color=COLOURS[row % len(COLOURS)],
                marker="o" if threads == 1 else "s",
                label=f"{entry.name}, {threads} thread{'s' * (threads > 1)}",
            )
        for load in entry.throughput:
            if load.way == "submit":
                axes.plot(
                    load.mean_batch or 1,
                    load.rate,
                    "*",
                    markersize=11,
                    color=COLOURS[row % len(COLOURS)],
                    label=f"{entry.name}, submit, {load.threads} in flight",
                )
    batches = sorted({load.batch for entry in report.entries for load in entry.throughput})
    axes.set_xticks(batches)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images a second")
    axes.set_ylim(0, 1.1 * max(load.rate for entry in report.entries for load in entry.throughput))
    # Below the plot: the points leave no free corner.
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f5f7; } td[data-key] { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.warnings { background: #fff4e0; border-left: 4px solid #d4a017; padding: .5rem 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
.plots img { width: 100%; } code { background: #f4f5f7; padding: .1rem .3rem; overflow-wrap: anywhere; }
"""


def html_report(report: BenchReport) -> str:
    """The page of a report.

    Every cell with a number has `data-key` (its origin) and `data-value` (unrounded, in seconds or images a second); the
    report itself is in the script element `report`.

    Returns:
        HTML that needs no other file.

    Raises:
        BackendError: matplotlib is not installed.
    """
    names = ", ".join(entry.name for entry in report.entries)
    plots = "\n".join(
        f'<img alt="{escape(title)}" src="{svg_uri(single_figure(title, draw))}">'
        for title, draw in panels(report).items()
    )
    # "</" would end the script element.
    data = json.dumps(report.to_json(), separators=(",", ":")).replace("</", "<\\/")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(names)}: benchmark</title><style>{_STYLE}</style></head><body>
<h1>Benchmark of {escape(names)}</h1>
<p>{escape(_where(report))}</p>
{_warnings(report)}
<div class="plots">{plots}</div>
{chr(10).join(_table(table) for table in report_tables(report))}
<h2>How it was measured</h2>
<p>{escape(_how(report))}</p>
<p><code>{escape(report.command)}</code></p>
{_lower_bounds(report)}
{_environment(report)}
<script type="application/json" id="report">{data}</script>
</body></html>
"""


def _where(report: BenchReport) -> str:
    machine = report.environment
    gpus = [gpu["name"] for gpu in (machine.get("driver") or {}).get("gpus", ())]
    return (
        f"{report.created}, {machine.get('cpu')}, {machine.get('cores')} cores, {', '.join(gpus) or 'no GPU'}"
    )


def _how(report: BenchReport) -> str:
    rules = report.rules
    return (
        f"{rules.warmup:g} s of warm-up, then at least {rules.duration:g} s and {rules.iterations} calls in "
        f"{rules.windows} windows; everything on this page was interleaved window by window (except throughput and "
        f"new interpreters), rotating over {len(report.images)} images with their pixels in memory. Percentiles are "
        "linear between samples; those beyond the number of calls say little. Cold start: from an interpreter's first line to "
        "the first image's boxes, files in the page cache."
    )


def _warnings(report: BenchReport) -> str:
    rows = "".join(f"<li>{escape(text)}</li>" for text in report.warnings())
    return f'<ul class="warnings">{rows}</ul>' if rows else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(cell: Cell) -> str:
    where = f' data-key="{escape(cell.key)}" data-value="{cell.value!r}"' if cell.key else ""
    return f"<td{where}>{escape(cell.text)}</td>"


def _lower_bounds(report: BenchReport) -> str:
    rates = report.rates
    text = (
        f"Lower bounds (roofline): {rates['bytes_per_second'] / 1e9:.1f} GB/s and {rates['operations_per_second'] / 1e9:.1f} "
        f"fp32 GFLOP/s, {rates['source']}."
    )
    rows = "".join(
        f"<li>{escape(stage)}: {escape(bound.counted)}</li>"
        for stage, bound in report.entries[0].floors.items()
    )
    return f"<p>{escape(text)}</p><ul>{rows}</ul>"


def _environment(report: BenchReport) -> str:
    packages = report.environment.get("packages") or {}
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(version)}</td></tr>"
        for name, version in packages.items()
        if version
    )
    return f'<h2>Environment</h2><div class="wide"><table>{rows}</table></div>'
