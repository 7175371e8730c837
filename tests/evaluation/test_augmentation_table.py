"""The table of augmentations: its rows are the scores of `detect` with each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_bundle import write_tiny_bundle

from centernet_trt.errors import SpecError
from centernet_trt.evaluation import augmentation_table
from centernet_trt.evaluation.augmentation_table import AUGMENTATIONS, markdown
from centernet_trt.evaluation.coco import CocoGroundTruth, coco_rows
from centernet_trt.runtime import Detector

CATEGORIES = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]


@pytest.fixture
def truth(tmp_path: Path) -> CocoGroundTruth:
    """Three pictures of noise; the boxes in them are the best that the plain network finds, in one of them moved away."""
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
                told: dict[str, Any] = {"id": len(annotations) + 1, "area": w * h, "iscrowd": 0, "bbox": box}
                annotations.append(row | told)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return CocoGroundTruth(tmp_path / "truth.json", tmp_path)


def test_the_rows_are_the_scores_of_detect(truth: CocoGroundTruth, tmp_path: Path) -> None:
    with Detector.load(tmp_path / "b", threads=1) as detector:
        rows = augmentation_table.augmentation_table(detector, truth)
        assert [row["tta"] for row in rows] == list(AUGMENTATIONS)
        for row in rows:
            found = {one.id: detector.detect(one.path, 0.0, tta=row["tta"]) for one in truth.images}
            score = truth.score(coco_rows(found))
            assert (row["ap"], row["ap50"], row["ap75"]) == (score.ap, score.ap50, score.ap75)
    assert 0 < rows[0]["ap"] < 1
    assert len({row["ap"] for row in rows}) > 1, "every augmentation gives one score"
    lines = markdown(rows).splitlines()
    assert lines[0] == "| `tta` | AP | AP50 | AP75 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| none",
        '| `"flip"`',
        '| `"multiscale"`',
        '| `"flip+multiscale"`',
    ]


def test_the_command(truth: CocoGroundTruth, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        augmentation_table.__name__,
        str(tmp_path / "b"),
        str(truth.path),
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "rows.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 images of truth.json" in done.stdout
    assert "network ran in ONNX Runtime" in done.stdout
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 4
    command[3] = str(tmp_path / "nothing")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_other_classes_are_refused(truth: CocoGroundTruth, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "other", category_ids=(7, 8))
    with Detector.load(tmp_path / "other", threads=1) as detector, pytest.raises(SpecError):
        augmentation_table.augmentation_table(detector, truth)


def test_the_page_shows_the_committed_figures() -> None:
    root = Path(__file__).parents[2]
    rows = json.loads((root / "evaluation" / "results" / "augmentation.json").read_text())["rows"]
    assert markdown(rows) in (root / "docs" / "embedding.md").read_text(encoding="utf-8")
