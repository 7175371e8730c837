"""Fixtures of the pipeline's tests on the stand-in driver."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import tiny, world

from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    """The fake TensorRT in place, and what it is to do wrong."""
    with world(tmp_path) as found:
        yield found


@pytest.fixture
def bundle(tmp_path: Path) -> EngineBundle:
    return tiny(tmp_path)


@pytest.fixture
def device() -> Iterator[Device]:
    with Device.open(0, "cuda-bindings") as opened:
        yield opened
