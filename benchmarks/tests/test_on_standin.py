"""The scripts on the stand-in driver, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import standin_driver, standin_process
from helpers.cpu_build import ROOT

SCRIPTS = ROOT / "benchmarks"


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


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_plans_are_tried_in_processes_of_their_own(tmp_path: Path, bundle: Path) -> None:
    """One that runs; and one whose process dies, as a crash inside TensorRT would make it."""
    target = tmp_path / "rtx.json"
    words = [str(SCRIPTS / "rtx_probe.py"), str(bundle), "--small", "--json", str(target)]
    printed = run(tmp_path, *words)
    data = read(target)
    assert [(row["outcome"], row["reached"], row["batch"]) for row in data["tries"]] == [
        ("done", "done", 1),
        ("done", "done", 8),
    ]
    assert "STAND-IN DRIVER, no GPU" in printed
    assert data["device"]["real"] is False
    # The same with an abort where the trying process would import TensorRT.
    shim = tmp_path / "fake_packages" / "tensorrt_rtx" / "__init__.py"
    env = standin_process.environment(tmp_path)
    trying = "any('rtx_try' in word for word in __import__('sys').orig_argv)"
    shim.write_text(f"if {trying}:\n    import os; os.abort()\n{shim.read_text()}")
    done = subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3, done.stderr
    (row,) = read(target)["tries"]
    assert (row["outcome"], row["reached"]) == ("crashed: SIGABRT", "deserialise")
    assert "no plan ran here" in done.stdout


def test_no_script_fills_the_results_from_the_standin(tmp_path: Path, bundle: Path) -> None:
    for name in ("kernels.py", "soak.py", "rtx_probe.py"):
        target = SCRIPTS / "results" / "gpu-x.json"
        words = [str(SCRIPTS / name), "--small", "--json", str(target)]
        words += [str(bundle)] if name == "rtx_probe.py" else []
        assert "is no GPU" in run(tmp_path, *words, code=1)
        assert not target.exists()
