"""Runs a file of tests in a process of its own that finds the stand-in driver in the place of NVIDIA's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import standin_driver
from helpers.cpu_build import ROOT

HANGS_AFTER = 900  # seconds that no single test takes on a busy machine
IN_STANDIN = "CENTERNET_TRT_STANDIN" in os.environ


def run_on_standin(file: str, *arguments: str, **settings: object) -> str:
    """Run a file of tests, by its path in the repository; a fault or leak that the stand-in sees fails it too."""
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs"]
    # Threads that wait for each other, one with the GIL, can stop the test's own watch over them: then pytest tells where.
    command += ["-o", f"faulthandler_timeout={HANGS_AFTER}"]
    done = subprocess.run(
        [*command, *arguments, str(ROOT / file)],
        env=standin_driver.environment(**{"STANDIN_STRICT": 1} | settings),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=4 * HANGS_AFTER,
    )
    told = f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, told
    return told


def run_script(code: str, *arguments: str | Path, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a script in such a process, with the folders of test helpers on its path."""
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    environment = standin_driver.environment(**{"STANDIN_STRICT": 1} | settings)
    folders = [str(ROOT / "tests")]
    environment["PYTHONPATH"] = os.pathsep.join([*folders, environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
