"""`eval --tta`: the score of `Detector.detect(tta=...)` on each image."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle

from centernet_trt.cli import app
from centernet_trt.errors import SpecError
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, coco_rows, detect_all
from centernet_trt.runtime import Detector
from centernet_trt.runtime.tta.augment import Augmentation, TestTimeAugmentation

CATEGORIES = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
SCALES = TestTimeAugmentation(flip=False, scales=(0.5, 1.0))


@pytest.fixture
def truth(tmp_path: Path) -> CocoGroundTruth:
    """Three images of noise; the boxes in them are the best that the plain network finds, in one of them moved away."""
    write_tiny_bundle(tmp_path / "b", category_ids=(1, 2))
    images, annotations = [], []
    with Detector.load(tmp_path / "b", threads=1) as detector:
        for number, (height, width) in enumerate([(64, 64), (64, 96), (96, 96)], 1):
            noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / f"{number}.png"), noise)
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for row in detector.detect(tmp_path / f"{number}.png", 0.0, top_k=10).to_coco(number):
                x, y, w, h = row["bbox"]
                box = [x + (40 if number == 3 else 0), y, w, h]
                about: dict[str, Any] = {
                    "id": len(annotations) + 1, "area": w * h, "iscrowd": 0, "bbox": box
                }  # fmt: skip
                annotations.append(row | about)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return CocoGroundTruth(tmp_path / "truth.json", tmp_path)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    command = ["centernet-trt", "eval", str(tmp_path / "b"), "--images", str(tmp_path)]
    command += ["--annotations", str(tmp_path / "truth.json"), "--json", str(tmp_path / "e.json"), *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        app.main()
    return int(stop.value.code or 0)


def test_the_command_scores_what_detect_finds(
    truth: CocoGroundTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[list[str], Augmentation | None]] = [
        (["--no-time"], None),
        (["--tta", "flip"], "flip"),
        (["--tta", "multiscale"], "multiscale"),
        (["--tta", "flip+multiscale"], "flip+multiscale"),
        (["--tta", "multiscale", "--tta-scales", "0.5,1"], SCALES),
    ]
    scores: list[float] = []
    result: dict[str, Any] = {}
    with Detector.load(tmp_path / "b", mode="faithful") as detector:
        for words, tta in cases:
            assert run(tmp_path, monkeypatch, *words) == 0
            result = json.loads((tmp_path / "e.json").read_text())
            found = {one.id: detector.detect(one.path, 0.0, tta=tta) for one in truth.images}
            wanted = truth.score(coco_rows(found)).to_json()
            assert {key: result[key] for key in wanted} == wanted, words
            assert (result["tta"] is None) == (tta is None)
            assert result["time"] is None  # an augmented run is not what `bench` times
            scores.append(result["ap"])
    assert result["tta"] == {"flip": False, "scales": [0.5, 1.0]}
    assert 0 < scores[0] < 1
    assert len(set(scores)) > 1, "every augmentation gives one score"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tta-scales", "1,2"], "needs --tta"),
        (["--tta", "flip", "--tta-scales", "1,2"], "runs one scale"),
        (["--tta", "multiscale", "--tta-scales", "1,x"], "expected numbers such as"),
        (["--tta", "multiscale", "--tta-scales", "0"], "positive number"),
    ],
)
def test_scales_that_do_not_fit(
    truth: CocoGroundTruth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert run(tmp_path, monkeypatch, *words) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_other_classes_are_refused(truth: CocoGroundTruth, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "other", category_ids=(7, 8))
    with Detector.load(tmp_path / "other", threads=1) as detector, pytest.raises(SpecError):
        detect_all(detector, truth, tta="flip")
