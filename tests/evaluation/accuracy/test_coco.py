"""COCO scores: known answers on made-up boxes, and the reference figures of a real model."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.errors import InputError, SpecError
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, coco_rows, detect_all, official_rounding
from centernet_trt.runtime import Detections, Detector, preset


def dataset(folder: Path, boxes: dict[int, list[list[float]]]) -> tuple[Path, Path]:
    """Write one black image per id and an instances file; (annotations, images)."""
    images = folder / "images"
    images.mkdir()
    rows = []
    for image_id in boxes:
        name = f"{image_id}.png"
        (images / name).write_bytes(cv2.imencode(".png", scene())[1].tobytes())
        rows.append({"id": image_id, "file_name": name, "width": 96, "height": 64})
    objects = [
        {"id": n + 1, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (i, box) in enumerate((i, box) for i, many in boxes.items() for box in many)
    ]
    data = {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path, images


def found_box(box: list[float], score: float) -> Detections:
    x, y, w, h = box
    return Detections(
        np.array([[x, y, x + w, y + h]], dtype=np.float32),
        np.array([score], dtype=np.float32),
        np.array([0], dtype=np.int32),
        category_ids=(1, 2),
    )


def test_perfect_half_and_nothing(tmp_path: Path) -> None:
    box = [10.0, 10.0, 40.0, 40.0]
    truth = CocoGroundTruth(*dataset(tmp_path, {1: [box], 2: [box]}))
    perfect = coco_rows({1: found_box(box, 0.9), 2: found_box(box, 0.8)})
    scores = truth.score(perfect)
    assert (scores.ap, scores.ap50) == pytest.approx((1.0, 1.0))
    assert (scores.images, scores.objects, scores.detections) == (2, 2, 2)
    # IoU 30 / 40 = 0.75: right at the thresholds 0.5 to 0.75, six of ten.
    shifted = coco_rows({i: found_box([10.0, 10.0, 40.0, 30.0], 0.9) for i in (1, 2)})
    assert truth.score(shifted).ap == pytest.approx(0.6)
    assert truth.score([]).ap == 0.0
    assert truth.score(perfect[:1], image_ids=[1]).ap == pytest.approx(1.0)


def test_official_rounding_cuts_to_two_decimals() -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [1.234, 5.678, 9.999, 0.005], "score": 0.98765}
    (rounded,) = official_rounding([row])
    assert rounded["bbox"] == [1.23, 5.68, 10.0, 0.01]
    assert rounded["score"] == 0.99
    assert row["score"] == 0.98765


def test_detect_all_runs_every_image(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    truth = CocoGroundTruth(*dataset(tmp_path, {7: [], 9: []}))
    seen: list[tuple[int, int]] = []
    with Detector.load(tmp_path / "b", threads=1) as detector:
        found = detect_all(detector, truth, lambda done, of: seen.append((done, of)))
    assert set(found) == {7, 9}
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert len(found[7]) == 100  # no threshold


def test_mistakes_are_named(tmp_path: Path) -> None:
    annotations, images = dataset(tmp_path, {1: []})
    for text, words in (("{", "not JSON"), ("{}", "not a COCO instances file")):
        broken = tmp_path / "broken.json"
        broken.write_text(text)
        with pytest.raises(InputError, match=words):
            CocoGroundTruth(broken, images)
    with pytest.raises(InputError, match="cannot read"):
        CocoGroundTruth(tmp_path / "absent.json", images)
    with pytest.raises(InputError, match="1 of the 1 images"):
        CocoGroundTruth(annotations, tmp_path)
    write_tiny_bundle(tmp_path / "b", category_ids=[1, 77])
    with Detector.load(tmp_path / "b", threads=1) as detector, pytest.raises(SpecError, match=r"\[77\]"):
        detect_all(detector, CocoGroundTruth(annotations, images))


def coco_scores(shared: Path, folder: Path, precision: Any, mode: Any) -> Any:
    model = shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx"
    options = BuildOptions(precision=precision, flavour="none")
    bundle = build(model, preset("ttf-ltrb"), folder / precision, options)
    dev = shared / "assets" / "coco_val2017_dev"
    truth = CocoGroundTruth(dev / "instances_val2017_dev.json", dev / "images")
    with Detector.load(bundle, mode=mode, threads=2) as detector:
        return truth.score(coco_rows(detect_all(detector, truth)))


@pytest.mark.shared
def test_the_coco_model_reaches_its_reference_ap(shared: Path, tmp_path: Path) -> None:
    scores = coco_scores(shared, tmp_path, "fp32", "fast")
    # Measured by an independent script: AP 0.305, AP50 0.484.
    assert scores.images == 103
    assert scores.ap == pytest.approx(0.305, abs=0.003)
    assert scores.ap50 == pytest.approx(0.484, abs=0.003)


@pytest.mark.shared
@pytest.mark.slow
def test_fp16_keeps_the_ap_in_faithful_mode(shared: Path, tmp_path: Path) -> None:
    # A paired drop has a standard error of 0.0065 on these images; fp16 is far inside it.
    assert coco_scores(shared, tmp_path, "fp16", "faithful").ap == pytest.approx(0.305, abs=0.005)
