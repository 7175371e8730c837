"""Fixtures of every folder of tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models and images; tests that need it carry the mark `shared`."""
    named = os.environ.get("CENTERNET_TRT_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "assets").is_dir():
        pytest.skip(f"the reference data is not at {folder}; set CENTERNET_TRT_SHARED to where it is")
    return folder
