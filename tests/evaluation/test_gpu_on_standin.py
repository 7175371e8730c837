"""The GPU benchmark on the stand-in driver, in processes of its own: its cases, and its commands as a dry run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import standin_driver
import standin_python
from cpu_build import ROOT
from standin_session import run_on_standin


def test_its_cases() -> None:
    run_on_standin("tests/fakes/gpu_cases.py", "-m", "not slow")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    code = f"from pathlib import Path; from standin_world import tiny; tiny(Path({str(tmp_path)!r}))"
    run(tmp_path, "-c", code)
    return tmp_path / "bundle"


def run(folder: Path, *words: str, code: int = 0, **settings: object) -> str:
    """A Python command on the stand-in driver with the fake TensorRT; its output."""
    done = subprocess.run(
        [sys.executable, *words],
        env=standin_python.environment(folder, **settings),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def words_of(told: str) -> str:
    """The text without the frame that the command line draws around an error."""
    return " ".join(told.replace("│", " ").split())


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_plans_are_tried_in_processes_of_their_own(tmp_path: Path, bundle: Path) -> None:
    """One that runs; and one whose process dies, as a crash inside TensorRT would make it."""
    target = tmp_path / "rtx.json"
    words = [
        "-m",
        "centernet_trt.evaluation.gpu.rtx",
        str(bundle),
        "--json",
        str(target),
        "--duration",
        "0.02",
    ]
    told = run(tmp_path, *words)
    data = read(target)
    assert [(row["outcome"], row["reached"], row["batch"]) for row in data["tries"]] == [
        ("done", "done", 1),
        ("done", "done", 8),
    ]
    assert data["mixed"]["outcome"] == "done"
    assert "STAND-IN DRIVER, no GPU" in told
    # The same with an abort where the trying process would import TensorRT.
    shim = tmp_path / "fake_packages" / "tensorrt_rtx" / "__init__.py"
    env = standin_python.environment(tmp_path)
    trying = "any('rtx_try' in word for word in __import__('sys').orig_argv)"
    shim.write_text(f"if {trying}:\n    import os; os.abort()\n{shim.read_text()}")
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3, done.stderr
    (row,) = read(target)["tries"]
    assert (row["outcome"], row["reached"]) == ("crashed: SIGABRT", "deserialise")
    assert "no plan ran here" in done.stdout


@pytest.mark.slow
def test_the_device_tests_of_the_detector_in_a_dry_run(tmp_path: Path, bundle: Path) -> None:
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "played_builder",
        "-m",
        "gpu",
    ]
    # The fake does not survive a plan that is cut short, as TensorRT does.
    told = run(tmp_path, *words, "tests/gpu/test_detector.py", "-k", "portable and not cut_short")
    assert "skipped" not in told
    assert " passed" in told


@pytest.mark.slow
def test_both_commands_as_a_dry_run(tmp_path: Path, bundle: Path) -> None:
    """`make gpu-test` and `make gpu-bench` in small: every step, the files, and the page made of them."""
    from centernet_trt.evaluation.performance_page import page

    output = tmp_path / "out"
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(
        cv2.imencode(".png", cv2.imread(str(ROOT / "calib_data/coffee.jpg"))[:60, :90])[1].tobytes()
    )  # type: ignore[index]
    words = [
        "--small",
        "--output",
        str(output),
        "--bundles",
        str(bundle),
        "--calls",
        "30",
        "--images",
        str(images),
    ]
    module = "centernet_trt.evaluation.gpu.steps"
    run(tmp_path, "-m", module, "test", *words)
    told = run(tmp_path, "-m", module, "bench", *words)
    assert "Nothing failed." in told
    kinds = {read(path)["kind"] for path in output.glob("gpu-*.json")}
    assert kinds == {"gpu-test-steps", "gpu-bench-steps", "gpu-kernels", "gpu-rtx", "gpu-soak", "bench"}
    shown = page(output)
    for title in (
        "Tests on the device",
        "The kernels by themselves",
        "TensorRT for RTX",
        "Bundles",
        "A long run",
    ):
        assert f"### {title}\n" in shown
    assert shown.count("STAND-IN DRIVER, no GPU") > 6


def test_no_step_writes_into_the_results(tmp_path: Path, bundle: Path) -> None:
    told = run(tmp_path, "-m", "centernet_trt.evaluation.gpu.steps", "bench", "--small", code=1)
    assert "is no GPU" in told
    command = [
        "-m",
        "centernet_trt.cli",
        "bench",
        str(bundle),
        "--json",
        "evaluation/results/gpu-bench-x.json",
    ]
    assert "is no GPU" in run(tmp_path, *command, code=1)
    assert not list((ROOT / "evaluation" / "results").glob("gpu-*"))


def test_options_of_a_gpu_need_one(tmp_path: Path, bundle: Path) -> None:
    base = ["-m", "centernet_trt.cli", "bench", str(bundle)]
    told = words_of(run(tmp_path, *base, "--l2", "cold", code=2, STANDIN_DEVICES=0))
    assert "need bundles whose plans run on a GPU here" in told
    told = words_of(run(tmp_path, *base, "--backend", "tensorrt", code=1, STANDIN_DEVICES=0))
    assert "TensorRT cannot run bundle here: there is no NVIDIA GPU" in told
    assert "--backend onnxruntime" in words_of(run(tmp_path, *base, "--read", code=2))
