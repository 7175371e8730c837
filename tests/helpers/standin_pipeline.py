"""Shared by the tests on the stand-in driver: the fake TensorRT in place, call counters, checks at the end."""

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from centernet_trt.runtime import Detections, Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.images import BgrImage
from helpers import fake_tensorrt
from helpers.fake_bundle import VERSIONS, write_bundle
from helpers.tiny_centernet import tiny_model, tiny_spec

BINDINGS = [
    "cuda-bindings",
    pytest.param(
        "pycuda",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed (make gpu)"
        ),
    ),
]
"""Both bindings of the driver, for `parametrize`."""


@dataclass(frozen=True)
class Counts:
    """Calls of the driver."""

    launches: int
    graph_launches: int
    copies: int
    waits: int
    allocations: int


def counts() -> Counts:
    """Calls so far."""
    values = (ctypes.c_uint64 * 5)()
    fake_tensorrt.driver().standin_counters(values)
    return Counts(*values)


@contextmanager
def counted() -> Iterator[list[Counts]]:
    """The calls made in a block, in the list once it is left."""
    found: list[Counts] = []
    before = counts()
    yield found
    after = counts()
    found.append(
        Counts(*(getattr(after, name) - getattr(before, name) for name in Counts.__dataclass_fields__))
    )


@contextmanager
def world(folder: Path, flavour: str = "rtx", version: str | None = None) -> Iterator[fake_tensorrt.Faults]:
    """Put the fake in place of TensorRT. At the end none of its objects may be alive, and none may have been misused."""
    with pytest.MonkeyPatch.context() as patch:
        faults = fake_tensorrt.Faults()
        patch.setattr(fake_tensorrt, "FAULTS", faults)
        module = fake_tensorrt.make_module(flavour, version or VERSIONS[flavour])
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr("centernet_trt.runtime.trt.engine.cache_dir", lambda: folder / "cache")
        yield faults
        assert not faults.broken, faults.broken
        assert not list(fake_tensorrt.LIVE), "objects of TensorRT are alive after close()"
        assert not fake_tensorrt.driver().standin_fault_count()


def half_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with fp16 heads: a Cast after each."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for value in half.graph.output:
        name = value.name
        for node in half.graph.node:
            node.output[:] = [f"{o}_fp32" if o == name else o for o in node.output]
        cast = onnx.helper.make_node("Cast", [f"{name}_fp32"], [name], to=onnx.TensorProto.FLOAT16)
        half.graph.node.append(cast)
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return half


def tiny(
    folder: Path,
    batch: tuple[int, int, int] = (1, 4, 8),
    sides: tuple[int, int, int] = (32, 64, 128),
    half: bool = False,
    flavour: str = "rtx",
    **spec: object,
) -> EngineBundle:
    """The tiny CenterNet's bundle with a plan."""
    size = (sides[0], sides[0]) if sides[0] == sides[2] else None
    model = tiny_model(size)
    return write_bundle(
        folder / "bundle", half_heads(model) if half else model, tiny_spec(**spec), batch, sides, flavour
    )


def pictures(count: int, height: int, width: int, seed: int = 0) -> list[BgrImage]:
    """Noise, which has peaks everywhere."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def same(found: Detections, expected: Detections, pixels: float = 1e-3) -> None:
    """Equal labels in equal order; boxes and scores up to the last bits of float32."""
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=pixels)
    assert found.extra.keys() == expected.extra.keys()
    for name, values in expected.extra.items():
        np.testing.assert_allclose(found.extra[name], values, atol=pixels)


def load(bundle: EngineBundle, **options: Any) -> Detector:
    """The bundle's detector on the stand-in driver; one stream and cuda-bindings unless the options say otherwise."""
    options = {"binding": "cuda-bindings", "max_pixels": 200 * 200, "streams": 1} | options
    return Detector.load(bundle, backend="tensorrt", **options)


def on_host(bundle: EngineBundle) -> Detector:
    """The same in ONNX Runtime: the oracle."""
    return Detector.load(bundle, backend="onnxruntime", threads=1)
