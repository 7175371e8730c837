"""The tests on the stand-in driver are not lost: without it they say how to run them; with it, leaks fail the session."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import standin_driver
from helpers.cpu_build import ROOT
from helpers.standin_session import FAULTY, run_session

import centernet_trt

PREPARE = """
import atexit, ctypes, os
def test_planted():
    driver = ctypes.CDLL("libcuda.so.1")
    context, memory = ctypes.c_void_p(), ctypes.c_uint64()
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert driver.cuCtxPushCurrent_v2(context) == 0
    assert driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(64)) == 0
"""
END = """
    assert driver.cuCtxPopCurrent_v2(None) == 0
    assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0
"""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("code", "report"),
    [
        ("    assert driver.cuMemFree_v2(memory) == 0" + END, None),
        (END, "leaked at exit: 1 device allocations (64 bytes)"),
        (
            "    driver.cuMemFree_v2(memory); driver.cuMemFree_v2(memory)" + END,
            "freeing memory of 64 bytes twice",
        ),
        ("    atexit.register(os._exit, 0)", "ended without the check for leaks"),
    ],
    ids=["clean", "leak", "fault", "ends unseen"],
)
def test_what_the_standin_finds_at_exit_fails_the_session(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: str, report: str | None, workers: int
) -> None:
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_planted.py").write_text(PREPARE + code)
    ended = run_session([str(tmp_path), "-n", str(workers), "-p", "no:cacheprovider"])
    shown = capfd.readouterr()
    assert "1 passed" in shown.out
    if report is None:
        assert ended == 0, shown
        assert "STANDIN" not in shown.err
    else:
        assert ended == FAULTY, shown
        assert report in shown.err


def test_without_the_standin_they_are_skipped_with_the_command() -> None:
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "tests/standin/test_session.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    reason = standin_driver.why_not() or "python -m pytest --standin FILE"
    assert reason in " ".join(done.stdout.split())


def test_every_file_of_the_standin_carries_its_marks() -> None:
    """`make test` finds these by the mark: a file without it would be run without the driver, and fail or be skipped."""
    folders = (ROOT / "tests" / "standin", ROOT / "benchmarks" / "tests" / "standin")
    for path in (path for folder in folders for path in folder.glob("test_*.py")):
        assert "\npytestmark = ON_STANDIN" in path.read_text() or "*ON_STANDIN" in path.read_text(), path


def test_child_processes_import_the_tree_under_test() -> None:
    code = "import centernet_trt.runtime, helpers; print(centernet_trt.__path__[0], helpers.__path__[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [centernet_trt.__path__[0], str(ROOT / "tests" / "helpers")]
