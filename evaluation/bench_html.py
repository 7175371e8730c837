"""A benchmark report as one HTML page that needs no other file and no network: figures, pictures, every sample."""

import json
from html import escape

from centernet_trt.evaluation.bench_plots import panels, single_figure
from centernet_trt.evaluation.bench_report import BenchReport
from centernet_trt.evaluation.bench_tables import tables_of
from centernet_trt.evaluation.plotting import svg_uri
from centernet_trt.evaluation.tables import Cell, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f5f7; } td[data-key] { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.warnings { background: #fff4e0; border-left: 4px solid #d4a017; padding: .5rem 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
.pictures img { width: 100%; } code { background: #f4f5f7; padding: .1rem .3rem; overflow-wrap: anywhere; }
"""


def html_report(report: BenchReport) -> str:
    """The page.

    Every figure's cell carries `data-key` (where it comes from) and `data-value` (unrounded, in seconds or images a
    second); the report itself is in the script element `report`.

    Raises:
        BackendError: matplotlib is not installed.
    """
    names = ", ".join(entry.name for entry in report.entries)
    pictures = "\n".join(
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
<div class="pictures">{pictures}</div>
{chr(10).join(_table(table) for table in tables_of(report))}
<h2>How it was measured</h2>
<p>{escape(_how(report))}</p>
<p><code>{escape(report.command)}</code></p>
{_floors(report)}
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
        f"{rules.windows} windows; everything on this page took turns, window by window (except throughput and new "
        f"interpreters). {len(report.images)} images were rotated over, their pixels in memory. Percentiles are linear "
        "between samples; those beyond the number of calls say little. Cold start: from an interpreter's first line to "
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


def _floors(report: BenchReport) -> str:
    rates = report.rates
    text = (
        f"Floors: {rates['bytes_per_second'] / 1e9:.1f} GB/s and {rates['operations_per_second'] / 1e9:.1f} "
        f"fp32 GFLOP/s, {rates['source']}."
    )
    rows = "".join(
        f"<li>{escape(stage)}: {escape(floor.counted)}</li>"
        for stage, floor in report.entries[0].floors.items()
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
