"""A GPU's stages in the tables and the page of a benchmark report: every figure is the JSON's."""

from typing import Any

import numpy as np
import pytest
from bench_reports import made_up_entry, made_up_report

from centernet_trt.evaluation.bench_compare import compare_entries, compare_reports
from centernet_trt.evaluation.bench_html import html_report
from centernet_trt.evaluation.bench_report import BenchReport
from centernet_trt.evaluation.bench_tables import latency_table, overview, tables_of
from centernet_trt.evaluation.gpu.targets import Judged


def entry_of_a_gpu(seed: int, factor: float) -> dict[str, Any]:
    plain = made_up_entry("m", seed, factor=factor)
    whole = [{"whole": window["whole"]} for window in plain["pipeline"]["windows"]]
    target = Judged("decode", "<= 10.00 us", "8.00 us", "met").to_json()
    return plain | {"pipeline": {"windows": whole}, "staged": plain["pipeline"], "targets": [target]}


@pytest.fixture
def report() -> BenchReport:
    return made_up_report([entry_of_a_gpu(1, 0.01)])


def test_stages_of_the_second_series(report: BenchReport) -> None:
    (entry,) = report.entries
    table = latency_table(entry)
    assert [row[0].text for row in table.rows] == [
        "whole",
        "preprocess (events)",
        "network (events)",
        "decode (events)",
        "whole (events)",
        "network alone",
    ]
    assert entry.staged is not None
    for row in table.rows[1:5]:
        for cell, share in zip(row[2:7], (50, 90, 95, 99, 100), strict=True):
            stage = row[0].text.removesuffix(" (events)")
            values = np.concatenate(entry.staged.of_stage(stage))
            assert cell.value == pytest.approx(np.percentile(values, share))
            assert cell.key.startswith(f"m/events/{stage}/")
            # Microseconds: four digits of a millisecond.
            assert cell.text == f"{cell.value * 1e3:.4f}"
    assert "; fast)" in table.title


def test_the_pipeline_has_the_wall_clock_s_whole_alone(report: BenchReport) -> None:
    assert "whole, ms" in overview(report).columns
    assert "network, ms" not in overview(report).columns


def test_targets_and_figures_are_on_the_page(report: BenchReport) -> None:
    assert tables_of(report)[-1].title == "Targets"
    page = html_report(report)
    assert "8.00 us" in page
    assert 'data-key="m/events/network/p50"' in page
    assert BenchReport.model_validate(report.to_json()).entries[0].targets == report.entries[0].targets


def test_stages_by_events_are_compared(report: BenchReport) -> None:
    slower = made_up_report([entry_of_a_gpu(2, 0.012)])
    rows = {row.what: row.ratio for row in compare_reports(report, slower).rows}
    for stage in ("whole", "preprocess (events)", "network (events)", "decode (events)"):
        assert rows[stage].verdict == "slower"
        assert rows[stage].ratio == pytest.approx(1.2, rel=0.05)
    both = made_up_report([entry_of_a_gpu(1, 0.01), entry_of_a_gpu(2, 0.012) | {"name": "other"}])
    assert {row.what for row in compare_entries(both).rows} >= {"network (events)", "whole", "network alone"}
