"""A pytest plugin with which the device tests of TensorRT run on the stand-in: `build` writes a plan of the fake.

For a dry run of tests/gpu/test_detector.py; what is then tested is that file, more than the product.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.spec import ModelSpec
from helpers.fake_bundle import write_bundle


def pytest_configure(config: pytest.Config) -> None:
    builder = importlib.import_module("centernet_trt.builder.build")
    os.environ.pop("CENTERNET_TRT_STANDIN", None)  # by it those tests know the stand-in, and would be skipped
    builder.build = _build  # type: ignore[attr-defined]


def _build(model: Path, spec: ModelSpec, output: Path, options: Any) -> EngineBundle:
    def three(sides: ShapeRange) -> tuple[int, int, int]:
        return sides.min, sides.opt, sides.max

    return write_bundle(output, onnx.load(str(model)), spec, three(options.batch), three(options.height))
