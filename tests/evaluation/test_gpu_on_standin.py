"""`bench` and the device tests on the stand-in driver, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import standin_driver, standin_process
from helpers.cpu_build import ROOT


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    code = (
        f"from pathlib import Path; from helpers.standin_pipeline import tiny; tiny(Path({str(tmp_path)!r}))"
    )
    run(tmp_path, "-c", code)
    return tmp_path / "bundle"


def run(folder: Path, *words: str, code: int = 0, **settings: object) -> str:
    """A Python command on the stand-in driver with the fake TensorRT; its output."""
    done = subprocess.run(
        [sys.executable, *words],
        env=standin_process.environment(folder, **settings),
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
        "helpers.fake_builder_plugin",
        "-m",
        "gpu",
    ]
    # The fake does not survive a plan that is cut short, as TensorRT does.
    told = run(tmp_path, *words, "tests/gpu/test_detector.py", "-k", "portable and not cut_short")
    assert "skipped" not in told
    assert " passed" in told


def test_options_of_a_gpu_need_one(tmp_path: Path, bundle: Path) -> None:
    base = ["-m", "centernet_trt.cli", "bench", str(bundle)]
    told = words_of(run(tmp_path, *base, "--l2", "cold", code=2, STANDIN_DEVICES=0))
    assert "need bundles whose plans run on a GPU here" in told
    told = words_of(run(tmp_path, *base, "--backend", "tensorrt", code=1, STANDIN_DEVICES=0))
    assert "TensorRT cannot run bundle here: there is no NVIDIA GPU" in told
    assert "--backend onnxruntime" in words_of(run(tmp_path, *base, "--read", code=2))
