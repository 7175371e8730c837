"""Reports: written and read again, compared, and told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.bench_reports import ENVIRONMENT, made_up_entry, made_up_report

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.compare import compare_entries, compare_reports
from centernet_trt.evaluation.bench.report import BenchReport, read_report
from centernet_trt.evaluation.bench.tables import comparison_table, report_tables


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = made_up_report([made_up_entry("one", 1), made_up_entry("two", 2, 2.0)])
    path = tmp_path / "r.json"
    path.write_text(report.to_text())
    assert read_report(path) == report
    assert json.loads(path.read_text()) == report.to_json()
    assert path.read_text().count("\n") < 400  # a list of samples is one line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a bench report"),
        ('{"kind": "bench", "schema": 3}', "not a bench report of schema 1 or 2"),
        ('{"kind": "bench", "schema": 1}', "not a valid bench report"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_report(path)
    with pytest.raises(InputError, match="cannot read"):
        read_report(tmp_path / "absent.json")


@pytest.mark.parametrize("targets", [[], [{"target": "t", "wanted": "w", "found": "f", "verdict": "met"}]])
def test_a_report_of_schema_1_is_compared_without_its_targets(tmp_path: Path, targets: list[Any]) -> None:
    report = made_up_report([made_up_entry("one", 1)])
    old: dict[str, Any] = report.to_json() | {"schema": 1}
    old["entries"][0]["targets"] = targets
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert read_report(path) == report
    assert all(row.ratio.ratio == 1 for row in compare_reports(read_report(path), report).rows)
    # A report of today has no such field.
    path.write_text(json.dumps(old | {"schema": 2}))
    with pytest.raises(InputError, match="targets"):
        read_report(path)


def cut(entry: dict[str, Any]) -> None:
    entry["pipeline"]["windows"][0]["network"].pop()


def negative(entry: dict[str, Any]) -> None:
    entry["pipeline"]["windows"][0]["network"][0] = -1.0


def no_whole(entry: dict[str, Any]) -> None:
    for window in entry["pipeline"]["windows"]:
        del window["whole"]


def other_stages(entry: dict[str, Any]) -> None:
    entry["pipeline"]["windows"][1]["upload"] = entry["pipeline"]["windows"][1]["network"]


@pytest.mark.parametrize("damage", [cut, negative, no_whole, other_stages])
def test_damaged_samples_are_refused(tmp_path: Path, damage: Any) -> None:
    data = made_up_report([made_up_entry("one", 1)]).to_json()
    damage(data["entries"][0])
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="not a valid bench report"):
        read_report(path)


def verdicts(a: BenchReport, b: BenchReport) -> dict[str, str]:
    return {row.what: row.ratio.verdict for row in compare_reports(a, b).rows}


def test_two_runs_of_the_same_thing_do_not_differ() -> None:
    for seed in range(5):
        first = made_up_report([made_up_entry("one", seed)])
        second = made_up_report([made_up_entry("one", 100 + seed)])
        found = verdicts(first, second)
        assert set(found.values()) == {"no difference"}, found
        assert len(found) == 7  # whole, three stages, the network alone, two loads


def test_a_planted_slowdown_of_ten_percent_is_found_with_its_size() -> None:
    first = made_up_report([made_up_entry("one", 1)])
    second = made_up_report([made_up_entry("one", 2, 1.1)])
    found = compare_reports(first, second)
    assert {row.ratio.verdict for row in found.rows} == {"slower"}
    for row in found.rows:
        assert row.ratio.low < 1.1 < row.ratio.high
    assert "slower" in comparison_table(found).markdown()
    assert compare_reports(second, first).rows[0].ratio.verdict == "faster"
    assert found.to_json()["rows"][0]["verdict"] == "slower"


def test_only_one_stage_is_slower() -> None:
    slow = made_up_entry("one", 2)
    for window in slow["pipeline"]["windows"]:
        window["decode"] = [2 * seconds for seconds in window["decode"]]
    found = verdicts(made_up_report([made_up_entry("one", 1)]), made_up_report([slow]))
    assert (found["decode"], found["network"]) == ("slower", "no difference")


def test_different_models_are_not_compared() -> None:
    first = made_up_report([made_up_entry("one", 1)])
    other = made_up_report([made_up_entry("one", 1, source_sha256="c" * 64)])
    with pytest.raises(
        InputError, match=r"different models: one was built from .* aaaaaaaaaaaa in A and cccc"
    ):
        compare_reports(first, other)
    two = made_up_report([made_up_entry("x", 1), made_up_entry("y", 1)])
    with pytest.raises(InputError, match="share no bundle"):
        compare_reports(first, two)


def test_bundles_of_another_name_but_one_model_are_compared() -> None:
    first = made_up_report([made_up_entry("m-fp32", 1, precision="fp32")])
    second = made_up_report([made_up_entry("m-fp16", 2, model_sha256="d" * 64)])
    found = compare_reports(first, second)
    assert found.rows[0].entry == "m-fp32 -> m-fp16"
    assert any("precision: fp32 in A, fp16 in B" in text for text in found.differences)


def test_what_else_differs_is_said() -> None:
    first = made_up_report([made_up_entry("one", 1)])
    second = made_up_report(
        [made_up_entry("one", 2, drift=0.06, model_sha256="d" * 64)],
        environment={**ENVIRONMENT, "cores": 4, "packages": {"numpy": "2.5.0", "torch": None}},
        images=[{"name": "b.png", "width": 96, "height": 64}],
        rules={"warmup": 0.2, "duration": 0.1, "iterations": 1, "windows": 6, "short": True},
    )
    said = " | ".join(compare_reports(first, second).differences)
    for words in (
        "cores: 2 in A, 4 in B",
        "numpy",
        "images",
        "timing rules",
        "graphs differ",
        "B: short run",
    ):
        assert words in said
    assert "unstable" in said  # 6 % a window is 27 % over six


def test_tables_carry_the_report_s_own_figures() -> None:
    report = made_up_report([made_up_entry("one", 1)])
    cells = {
        cell.key: cell for table in report_tables(report) for row in table.rows for cell in row if cell.key
    }
    whole = report.entries[0].pipeline.summary()
    assert cells["one/pipeline/whole/p50"].value == whole.p50
    assert cells["one/pipeline/whole/p50"].text == f"{whole.p50 * 1e3:.2f}"
    assert cells["one/pipeline/network/floor-ratio"].value == pytest.approx(4, rel=0.02)
    assert cells["one/throughput-1-4/rate"].value == pytest.approx(200, rel=0.02)  # 4 images in 20 ms
    assert cells["one/cold/total/p50"].value == 0.45


def test_bundles_of_one_report_are_compared_interleaved() -> None:
    report = made_up_report(
        [
            made_up_entry("one", 1),
            made_up_entry("again", 2),
            made_up_entry("slow", 3, 1.1),
            made_up_entry("another model", 4, source_sha256="c" * 64),
        ]
    )
    found = {(row.entry, row.what): row.ratio.verdict for row in compare_entries(report).rows}
    assert len(found) == 2 * 5
    assert {verdict for (name, _), verdict in found.items() if name == "again"} == {"no difference"}
    assert {verdict for (name, _), verdict in found.items() if name == "slow"} == {"slower"}
    assert report_tables(report)[1].title.startswith(
        "Interleaved with one (A): all intervals hold at once in 95%"
    )
    alone = made_up_report([made_up_entry("one", 1)])
    assert compare_entries(alone).rows == ()
    assert len(report_tables(alone)) == 3
