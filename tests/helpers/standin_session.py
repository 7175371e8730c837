"""A pytest session in which the stand-in driver takes the place of NVIDIA's (`pytest --standin`).

LD_LIBRARY_PATH is read when a process starts, so the session is run in a new process. The stand-in finds leaks when a
process exits, which is after pytest's verdict: `run_session` adds them to it, for every xdist worker.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import standin_driver

HANGS_AFTER = 900  # seconds that no single test takes on a busy machine
FAULTY = 97  # exit code of the stand-in after a fault or leak
IN_STANDIN = "CENTERNET_TRT_STANDIN" in os.environ

ON_STANDIN = [
    pytest.mark.standin,
    pytest.mark.skipif(
        not IN_STANDIN,
        reason=standin_driver.why_not() or "runs on the stand-in driver: python -m pytest --standin FILE",
    ),
]
"""`pytestmark` of the files that need the stand-in driver."""


def run_session(arguments: Sequence[str | os.PathLike[str]]) -> int:
    """Run pytest on the stand-in driver -> its exit code, `FAULTY` if only the stand-in objects."""
    # Threads that wait for each other, one with the GIL, can stop a test's own timeout: then pytest prints the stacks.
    command = [sys.executable, "-m", "pytest", "-o", f"faulthandler_timeout={HANGS_AFTER}", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        environment = standin_driver.environment(STANDIN_STRICT=1, STANDIN_ENDINGS=folder)
        code = subprocess.run(command, env=environment, check=False).returncode
        problems = {path.name: path.read_text() for path in Path(folder).iterdir()}
    for process, faults in sorted(problems.items()):
        print(f"STANDIN: process {process}: {faults or 'ended without the check for leaks'}", file=sys.stderr)
    return code or (FAULTY if problems else 0)
