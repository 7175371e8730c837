"""The tables of a BenchReport, and of a Comparison."""

from collections.abc import Sequence
from dataclasses import replace

from centernet_trt.evaluation.bench.compare import Comparison, compare_entries
from centernet_trt.evaluation.bench.report import BenchReport, Entry, Series, ThroughputRecord
from centernet_trt.evaluation.bench.statistics import summarise
from centernet_trt.evaluation.bench.timing import WHOLE
from centernet_trt.evaluation.tables import Cell, Table

EVENTS = "events"
"""Marks the stages timed by CUDA events, in a series of their own."""
PERCENTILES = ("p50", "p90", "p95", "p99", "maximum")


def report_tables(report: BenchReport) -> list[Table]:
    """All tables of a report."""
    tables = [overview(report)]
    if (found := compare_entries(report)).rows:
        first = report.entries[0].name
        tables.append(
            replace(comparison_table(found), title=f"Interleaved with {first} (A): {_intervals(found)}")
        )
    for entry in report.entries:
        tables.append(latency_table(entry))
        if entry.throughput:
            tables.append(throughput_table(entry))
    return tables


def overview(report: BenchReport) -> Table:
    """The bundles side by side: medians in milliseconds, loading in seconds, images a second."""
    rows = []
    for entry in report.entries:
        best = max(entry.throughput, key=lambda row: row.rate, default=None)
        rate = (
            Cell("-") if best is None else Cell(f"{best.rate:.1f}", f"{entry.name}/best-rate/rate", best.rate)
        )
        cold = [
            Cell("-")
            if not entry.cold
            else _seconds(f"{entry.name}/cold/{part}", summarise([row[part] for row in entry.cold]).p50)
            for part in ("load", "total")
        ]
        rows.append(
            (
                Cell(entry.name),
                Cell(entry.precision),
                Cell(entry.inputs[0] if len(entry.inputs) == 1 else f"{len(entry.inputs)} sizes"),
                *(
                    _milliseconds(f"{entry.name}/overview/{s}", entry.pipeline, s, _digits(entry))
                    for s in entry.pipeline.stages
                ),
                *cold,
                rate,
            )
        )
    stages = report.entries[0].pipeline.stages
    columns = (
        "bundle",
        "precision",
        "input",
        *(f"{stage}, ms" for stage in stages),
        "load, s",
        "cold start, s",
        "images/s",
    )
    return Table("Bundles side by side: medians", columns, tuple(rows))


def latency_table(entry: Entry) -> Table:
    """One image in flight: percentiles of every stage in milliseconds, and the median beside the lower bound."""
    rows = []
    digits = _digits(entry)
    measured = {"pipeline": entry.pipeline} | ({EVENTS: entry.staged} if entry.staged else {})
    for name, stages in measured.items():
        for stage in stages.stages:
            seconds, bound = _lower_bound(entry, stage)
            rows.append(_latency_row(entry.name, name, stage, stages, seconds, bound, digits))
    for name, series in entry.alone.items():
        rows.append(_latency_row(entry.name, name, WHOLE, series, None, "", digits))
    how = f"{entry.executor}; {entry.mode}" if entry.staged else entry.executor
    title = f"{entry.name}: one image in flight, milliseconds ({how})"
    columns = ("stage", "calls", "p50", "p90", "p95", "p99", "max", "lower bound", "p50 / bound")
    return Table(title, columns, tuple(rows))


def _lower_bound(entry: Entry, stage: str) -> tuple[float | None, str]:
    """Seconds, None where it is unknown, and what bounds the stage; of the whole it is the sum."""
    if stage in entry.floors:
        return entry.floors[stage].seconds, f" ({entry.floors[stage].bound})"
    if stage == WHOLE and entry.floors:
        return sum(found.seconds for found in entry.floors.values()), ""
    return None, ""


def throughput_table(entry: Entry) -> Table:
    """Many requests at once."""
    rows = []
    for row in entry.throughput:
        kind = "throughput" if row.way == "call" else "submit"
        key = f"{entry.name}/{kind}-{row.threads}-{row.batch}"
        wait = row.wait
        rows.append(
            (
                Cell(load_name(row)),
                Cell(str(len(row.requests)), f"{key}/requests", len(row.requests)),
                Cell(f"{row.rate:.1f}", f"{key}/rate", row.rate),
                Cell(f"{wait.p50 * 1e3:.2f}", f"{key}/p50", wait.p50),
                Cell(f"{wait.p99 * 1e3:.2f}", f"{key}/p99", wait.p99),
                Cell("yes" if row.stable else "no"),
            )
        )
    columns = ("load", "requests", "images/s", "wait p50, ms", "wait p99, ms", "stable")
    return Table(f"{entry.name}: many requests at once", columns, tuple(rows))


def load_name(row: ThroughputRecord) -> str:
    """Name of a load."""
    if row.way == "submit":
        return f"submit, {row.threads} in flight: {row.mean_batch or 1:.1f} a batch"
    return f"{row.threads} thread{'s' * (row.threads > 1)}, batch {row.batch}"


def comparison_table(found: Comparison) -> Table:
    """Ratios b / a with intervals."""
    rows = [
        (
            Cell(row.entry),
            Cell(row.what),
            Cell(f"{row.a * 1e3:.2f}"),
            Cell(f"{row.b * 1e3:.2f}"),
            Cell(f"{row.ratio.ratio:.3f}"),
            Cell(f"{row.ratio.low:.3f} to {row.ratio.high:.3f}"),
            Cell(row.ratio.verdict),
        )
        for row in found.rows
    ]
    title = f"B / A: {_intervals(found)}"
    return Table(title, ("bundle", "what", "A, ms", "B, ms", "ratio", "interval", "B is"), tuple(rows))


def _intervals(found: Comparison) -> str:
    each = found.rows[0].ratio.confidence
    return f"all intervals hold at once in {found.confidence:.0%} of cases, each of the {len(found.rows)} in {each:.2%}"


def _latency_row(
    entry: str, name: str, stage: str, series: Series, lowest: float | None, bound: str, digits: int
) -> tuple[Cell, ...]:
    summary = series.summary(stage)
    key = f"{entry}/{name}/{stage}"
    label = {"pipeline": stage, EVENTS: f"{stage} ({EVENTS})"}.get(name, name)
    bounds: Sequence[Cell] = (Cell(""), Cell(""))
    if lowest is not None:
        ratio = summary.p50 / lowest
        bounds = (
            Cell(f"{lowest * 1e3:.{digits + 1}f}{bound}", f"{key}/floor", lowest),
            Cell(f"{ratio:.1f}", f"{key}/floor-ratio", ratio),
        )
    values = {p: getattr(summary, p) for p in PERCENTILES}
    return (
        Cell(label),
        Cell(str(summary.count), f"{key}/count", summary.count),
        *(Cell(f"{value * 1e3:.{digits}f}", f"{key}/{p}", value) for p, value in values.items()),
        *bounds,
    )


def _milliseconds(key: str, series: Series, stage: str, digits: int) -> Cell:
    value = series.summary(stage).p50
    return Cell(f"{value * 1e3:.{digits}f}", f"{key}/p50", value)


def _digits(entry: Entry) -> int:
    """Decimals of milliseconds: a GPU's stages take microseconds."""
    return 2 if entry.staged is None else 4


def _seconds(key: str, value: float) -> Cell:
    return Cell(f"{value:.3f}", f"{key}/p50", value)
