"""The steps of `make gpu-test`: the device tests, file by file, and compute-sanitizer on some of them."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from centernet_trt.errors import InputError
from centernet_trt.evaluation.gpu.step import Step

TESTS = Path("tests/gpu")
SANITIZER = "compute-sanitizer"
_FILES = {"kernels": 300.0, "driver": 120.0, "gpu_ops": 120.0, "torch": 180.0, "detector": 300.0}
_TOOLS = {"memcheck": 300.0, "racecheck": 400.0, "initcheck": 300.0}
_SELECTED = "(order_and_ties and 100 and noise) or (test_preprocess and official) or captured_graph"
"""Under a sanitizer a kernel takes tens of times as long: both types, one map, and a replayed graph."""
_SANITIZER_FAILED = "86"
_MOST_REASONS = 20


def steps_of_tests(output: Path, small: bool = False) -> list[Step]:
    """The steps.

    Args:
        output: for the JUnit files.
        small: a dry run, where one test of each file serves.

    Raises:
        InputError: the tests are not below the working folder.
    """
    if not TESTS.is_dir():
        raise InputError(f"there is no folder {TESTS}", "run it in the repository")
    steps = []
    for name, limit in _FILES.items():
        junit = output / f"{name}.xml"
        chosen = ["-k", _SMALL[name]] if small and name in _SMALL else []
        command = [*_pytest(TESTS / f"test_{name}.py", junit), *chosen]
        steps.append(Step(name, partial(list, command), limit, junit))
    found = shutil.which(SANITIZER)
    why_not = "" if found else f"{SANITIZER} is not installed"
    for tool, limit in _TOOLS.items():
        junit = output / f"{tool}.xml"
        command = [found or SANITIZER, "--tool", tool, "--error-exitcode", _SANITIZER_FAILED]
        command += ["--target-processes", "all", *_pytest(TESTS / "test_kernels.py", junit), "-k", _SELECTED]
        steps.append(Step(tool, partial(list, command), limit, junit, why_not))
    return steps


_SMALL = {"kernels": "captured_graph", "driver": "events", "gpu_ops": "refused"}


def _pytest(file: Path, junit: Path) -> list[str]:
    # Warnings of other versions of other packages are no failures here.
    options = ["-q", "-rs", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    return [sys.executable, "-m", "pytest", *options, str(file)]


def read_junit(path: Path) -> dict[str, Any]:
    """Counts, the names of failed tests, and why tests were skipped (each reason once, with its number).

    Raises:
        InputError: the file is no JUnit report.
    """
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"{path} cannot be read as a JUnit report: {error}") from None
    failed, reasons = list[str](), dict[str, int]()
    passed = 0
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif (skipped := case.find("skipped")) is not None:
            reason = str(skipped.get("message"))
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": len(failed),
        "skipped": sum(reasons.values()),
        "failures": failed,
        "skips": dict(list(reasons.items())[:_MOST_REASONS]),
    }
