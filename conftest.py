"""Hooks of pytest for the tests of the product and of the benchmarks."""

import os
from pathlib import Path

import pytest
from helpers.standin_driver import why_not
from helpers.standin_session import IN_STANDIN, run_session

import centernet_trt


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--standin`."""
    parser.addoption(
        "--standin",
        action="store_true",
        help="run these tests with the stand-in driver (tests/harness) in place of NVIDIA's",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the session once more in the stand-in's environment; where it cannot be built, its tests are skipped."""
    if not config.getoption("standin") or IN_STANDIN or why_not() is not None:
        return None
    config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
    return run_session(config.invocation_params.args)


def pytest_configure() -> None:
    """Let child processes import the package under test, and not one that is installed."""
    root, package = Path(__file__).parent, Path(centernet_trt.__file__).parents[1]
    folders = [str(package), str(root / "tests"), str(root / "benchmarks")]
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *(o for o in others if o and o not in folders)])
