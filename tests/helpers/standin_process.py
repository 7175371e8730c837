"""New Python processes on the stand-in driver, with or without the fake of TensorRT in place of the real package.

They find both by their environment alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import standin_driver
from helpers.cpu_build import ROOT

# A package that puts the fake in its own place when it is imported.
_SHIM = """
import sys
from helpers import fake_tensorrt
from helpers.fake_bundle import VERSIONS
made = fake_tensorrt.make_module("rtx", VERSIONS["rtx"])
made.__spec__ = __spec__
sys.modules[__name__] = made
"""


def run_script(code: str, *arguments: str | Path, **settings: object) -> "subprocess.CompletedProcess[str]":
    """Run a script on the stand-in driver, strictly; where it cannot be built, the test is skipped."""
    reason = standin_driver.why_not()
    if reason is not None:
        pytest.skip(reason)
    environment = standin_driver.environment(**{"STANDIN_STRICT": 1} | settings)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


def environment(folder: Path, **settings: object) -> dict[str, str]:
    """The environment of a process with the fake of TensorRT.

    Args:
        folder: for the package and for the cache of compiled kernels.
        settings: of the stand-in driver.
    """
    package = folder / "fake_packages" / "tensorrt_rtx"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(_SHIM)
    found = standin_driver.environment(**settings)
    paths = [str(package.parent), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    found["OMP_NUM_THREADS"] = "1"
    return found
