"""The performance page is what its command generates from the committed measurements."""

import json
import re
import sys
from pathlib import Path

import pytest
from bench_reports import made_up_entry, made_up_report

from centernet_trt.errors import InputError
from centernet_trt.evaluation import performance_page
from centernet_trt.evaluation.bench_compare import compare_reports
from centernet_trt.evaluation.performance_page import page, readme_table, write_picture

ROOT = Path(__file__).parents[2]


def test_the_page_equals_what_the_command_generates() -> None:
    results = ROOT / performance_page.RESULTS
    assert (ROOT / performance_page.PAGE).read_text(encoding="utf-8") == page(results), (
        "run: python -m centernet_trt.evaluation.performance_page"
    )
    assert (ROOT / performance_page.PAGE.parent / performance_page.PICTURE).is_file()


def test_committed_results_name_no_folder_of_a_machine() -> None:
    for path in (ROOT / performance_page.RESULTS).glob("*.json"):
        assert not re.search(r"(/home/|/root/|/tmp/|/work/)", path.read_text(encoding="utf-8")), path.name


RESULT = {
    "bundle": "m-fp16",
    "precision": "fp16",
    "annotations": "i.json",
    "executor": "ONNX Runtime",
    "official_rounding": True,
    "input": "512x512",
    "multiply_adds": 1_295_000_000,
    "parameters": None,
    "time": None,
    "ap_drop": None,
    "ap": 0.3051,
    "ap50": 0.48,
    "images": 3,
    "objects": 9,
}


def test_every_kind_of_result_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    first, second = (made_up_report([made_up_entry("one", 1, factor)]) for factor in (1.0, 1.2))
    (results / "bench-made-up.json").write_text(first.to_text())
    (results / "compare-slow.json").write_text(json.dumps(compare_reports(first, second).to_json()))
    timed = {"p50": 0.0123, "spread": 0.25, "executor": "ONNX Runtime", "cpu": "cpu", "cores": 2}
    drop = {"drop": 0.002, "low": -0.001, "high": 0.005}
    other = RESULT | {"bundle": "m-int8", "time": timed, "ap_drop": drop, "parameters": 2_015_000}
    (results / "eval-two.json").write_text(json.dumps([RESULT, other]))
    (results / "eval-one.json").write_text(json.dumps(RESULT))
    search = {"tensors": 81, "ours_seconds": 0.33, "numpy_loop_seconds": 8.6, "numpy_loop_ratio": 26.2}
    search |= {"onnxruntime_seconds": 61.3, "onnxruntime_ratio": 186.8}
    memory = {"images": [8, 128], "peak_gib": [0.609, 0.75], "ratio": 1.232}
    calibrated = {"command": "python -m x", "entropy_search": search, "memory": memory}
    (results / "calibration.json").write_text(
        json.dumps(calibrated | {"environment": {"cpu": "cpu", "cores": 2}})
    )
    text = page(results)
    for words in (
        "| m-int8 | fp16 | 0.3051 | 0.4800 | -0.0020 (-0.0050 to +0.0010) | 1.295 | 2.015 | 512x512 | 12.3 |",
        "| m-fp16 | fp16 | 0.3051 | 0.4800 | - | 1.295 | - | 512x512 | - |",
        "rounded to two decimals",
        "The time of m-int8 is unstable: the medians of three successive windows lie 25% apart",
        "### made-up",
        "```sh\ncenternet-trt bench b\n```",
        "| slower |",
        "one: many requests at once",
        "| NumPy, candidate by candidate | 8.60 | 26.2 |",
        "images: 0.75 GiB, of 8 images 0.61 GiB, 1.23 times",
    ):
        assert words in text
    assert "difference (95 %)" not in readme_table(results, "one")
    assert "m-int8" in readme_table(results, "two")
    output = tmp_path / "docs" / "p.md"
    monkeypatch.setattr(sys, "argv", ["page", "--results", str(results), "--output", str(output)])
    performance_page.main()
    assert output.read_text() == text
    assert (tmp_path / "docs" / performance_page.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_missing_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        page(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no bench-\*\.json"):
        write_picture(tmp_path, tmp_path / "p.png")
    (tmp_path / "eval-x.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        page(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        readme_table(tmp_path, "absent")
