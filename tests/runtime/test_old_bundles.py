"""Bundles built before the modules were moved (commit e6d34ee) still load, and find what they found then."""

import json
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from centernet_trt import Detector
from centernet_trt.runtime.bundle import EngineBundle

FOLDER = Path(__file__).parents[1] / "fixtures" / "bundles_schema1"
EXPECTED: dict[str, dict[str, list[dict[str, Any]]]] = json.loads((FOLDER / "detections.json").read_text())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_manifest_is_still_read(precision: str) -> None:
    bundle = EngineBundle.load(FOLDER / precision)
    manifest = bundle.manifest
    assert manifest.precision == precision
    assert bool(manifest.plans) == (precision == "fp32")
    assert (manifest.calibration is not None) == (precision == "int8")
    # What is written again says the same; the old key `accuracy`, always empty, may be missing.
    old = json.loads((FOLDER / precision / "manifest.json").read_text())
    new = json.loads(manifest.to_json())
    assert old.pop("accuracy") == []
    assert new.pop("accuracy", []) == []
    if precision == "int8":  # a key that is newer than the bundle, whose network has no further heads
        assert new["calibration"].pop("agreement_heads") == {}
    assert new == old


@pytest.mark.parametrize("mode", ["fast", "faithful"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_detections_are_those_recorded(precision: str, mode: Literal["fast", "faithful"]) -> None:
    image = cv2.imread(str(FOLDER / "image.png"))
    assert image is not None
    with Detector.load(FOLDER / precision, backend="onnxruntime", mode=mode) as detector:
        found = detector.detect(image, top_k=20)
    expected = EXPECTED[precision][mode]
    assert len(found) == len(expected) == 20
    assert found.label.tolist() == [row["label"] for row in expected]
    assert [found.name_of(row) for row in range(len(found))] == [row["name"] for row in expected]
    # Equal to the last digit where they were recorded, with any number of threads. ONNX Runtime picks its kernels by the
    # processor's instructions, which may move the last bits of float32 elsewhere.
    np.testing.assert_allclose(found.xyxy, [row["box"] for row in expected], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.score, [row["score"] for row in expected], rtol=0, atol=1e-5)
