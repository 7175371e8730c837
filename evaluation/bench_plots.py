"""Pictures of a benchmark report: how latencies lie, where the time goes, batches, precisions side by side."""

from collections.abc import Callable
from typing import Any

import numpy as np

from centernet_trt.evaluation.bench_report import BenchReport
from centernet_trt.evaluation.clock import WHOLE
from centernet_trt.evaluation.plotting import COLOURS, new_figure
from centernet_trt.evaluation.timing_statistics import flat

Axes = Any


def panels(report: BenchReport) -> dict[str, Callable[[Axes], None]]:
    """What can be drawn of this report: title -> a function that draws it into matplotlib axes."""
    found: dict[str, Callable[[Axes], None]] = {
        "Latency of one image: share of calls that are done": lambda axes: _distribution(axes, report),
        "Where the time goes: median of each stage": lambda axes: _stages(axes, report),
        "Precisions side by side: median, and 95th percentile as a line": lambda axes: _precisions(
            axes, report
        ),
    }
    if any(entry.throughput for entry in report.entries):
        found["Throughput by batch size and threads"] = lambda axes: _batches(axes, report)
    return found


def whole_figure(report: BenchReport) -> Any:
    """All panels in one figure, for a PNG."""
    drawn = panels(report)
    figure = new_figure(13, 4.2 * -(-len(drawn) // 2))
    for axes, (title, draw) in zip(figure.subplots(-(-len(drawn) // 2), 2).flat, drawn.items(), strict=False):
        axes.set_title(title, fontsize=10)
        draw(axes)
    for axes in figure.axes[len(drawn) :]:
        axes.remove()
    if report.entries[0].staged is not None:  # times of a GPU, or of what plays one: which, must be seen
        figure.suptitle(report.entries[0].executor, fontsize=9)
    return figure


def single_figure(title: str, draw: Callable[[Axes], None]) -> Any:
    """One panel as a figure of its own."""
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
                    label=f"{entry.name}, submit, {load.threads} under way",
                )
    batches = sorted({load.batch for entry in report.entries for load in entry.throughput})
    axes.set_xticks(batches)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images a second")
    axes.set_ylim(0, 1.1 * max(load.rate for entry in report.entries for load in entry.throughput))
    # Below, for the points leave no free corner.
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
