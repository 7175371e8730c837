"""Fixtures and hooks of every folder of tests."""

import os
from pathlib import Path

import pytest
from helpers.standin_driver import why_not
from helpers.standin_session import IN_STANDIN, run_session
from helpers.tree_under_test import pytest_configure  # noqa: F401 - a hook


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--standin",
        action="store_true",
        help="run these tests with the stand-in driver (tests/harness) in place of NVIDIA's",
    )


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the session once more in the stand-in's environment; where it cannot be built, the tests are skipped."""
    if not config.getoption("standin") or IN_STANDIN or why_not() is not None:
        return None
    config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
    return run_session(config.invocation_params.args)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and images; tests that need it carry the mark `shared`."""
    named = os.environ.get("CENTERNET_TRT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "assets").is_dir():
        pytest.skip(f"the reference data is not at {folder}; set CENTERNET_TRT_SHARED to where it is")
    return folder
