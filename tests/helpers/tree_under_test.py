"""Hook of pytest that makes child processes import the package that this process imports."""

import os
from pathlib import Path

import centernet_trt
from helpers.cpu_build import ROOT


def pytest_configure() -> None:
    """Put the tree under test, and what tests import, at the front of PYTHONPATH."""
    package = Path(centernet_trt.__file__).parents[1]
    folders = [str(package), str(ROOT / "tests"), str(ROOT / "benchmarks")]
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *(o for o in others if o and o not in folders)])
