"""The rule that only a real GPU fills the folder of results, and the form of a result."""

import json
from pathlib import Path

import pytest

from centernet_trt.errors import InputError
from centernet_trt.evaluation.gpu.machine import (
    check_target,
    device_label,
    is_real,
    result,
    without_folders,
    write_result,
)
from centernet_trt.evaluation.performance_page import RESULTS

ROOT = Path(__file__).parents[2]
REAL, STANDIN = {"name": "NVIDIA H100 80GB HBM3"}, {"name": "stand-in"}


def test_what_no_gpu_measured_stays_out_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (
        RESULTS / "x.json",
        ROOT / RESULTS / "x.json",
        tmp_path / RESULTS,
        tmp_path / "a" / ".." / RESULTS / "deep" / "x.json",
    ):
        check_target(target, REAL)
        with pytest.raises(InputError, match="'stand-in' is no GPU") as caught:
            check_target(target, STANDIN)
        assert "--output" in caught.value.hint
    check_target(tmp_path / "evaluation" / "x" / "results", STANDIN)
    monkeypatch.chdir(ROOT / "evaluation")
    with pytest.raises(InputError):
        write_result(Path("results/x.json"), {"device": STANDIN})
    assert not (ROOT / RESULTS / "x.json").exists()


def test_no_committed_result_is_the_stand_in_s() -> None:
    for path in (ROOT / RESULTS).glob("*.json"):
        assert '"stand-in"' not in path.read_text(encoding="utf-8"), path.name


def test_labels() -> None:
    assert device_label(REAL) == "NVIDIA H100 80GB HBM3"
    assert device_label(STANDIN).startswith("STAND-IN DRIVER, no GPU")
    assert is_real("Tesla T4")
    assert not is_real("stand-in")


def test_a_result_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = f"{tmp_path}/engines/a failed; see {Path.home()}/.cache and {tmp_path}"
    assert without_folders(told) == "engines/a failed; see ~/.cache and ."
    target = tmp_path / "new" / "x.json"
    write_result(target, result("gpu-kernels", STANDIN, f"python -m x --json {target}", rows=[1]))
    found = json.loads(target.read_text())
    assert found["command"] == "python -m x --json new/x.json"
    assert (found["schema"], found["kind"], found["rows"]) == (1, "gpu-kernels", [1])
    assert found["environment"]["packages"]
    assert [path.name for path in target.parent.iterdir()] == ["x.json"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_result(tmp_path / "file" / "x.json", {"device": REAL})
