"""New Python processes on the stand-in driver, with the fake of TensorRT in the place of the real package.

For what starts processes of its own: they find both by their environment alone.
"""

import os
from pathlib import Path

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


def environment(folder: Path, **settings: object) -> dict[str, str]:
    """The environment of such a process.

    Args:
        folder: for the package and for the cache of compiled kernels.
        settings: of the stand-in driver.
    """
    package = folder / "fake_packages" / "tensorrt_rtx"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(_SHIM)
    helpers = [str(ROOT / "tests")]
    found = standin_driver.environment(**settings)
    paths = [str(package.parent), *helpers, found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    found["OMP_NUM_THREADS"] = "1"
    return found
