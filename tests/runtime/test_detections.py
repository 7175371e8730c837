"""The value type: rows, classes, adapters, drawing."""

import sys
import types
from typing import Any

import numpy as np
import pytest

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime.detections import Detections


def some() -> Detections:
    return Detections(
        np.array([[1, 2, 11, 22], [30.5, 30, 60, 90], [0, 0, 5, 5]], dtype=np.float32),
        np.array([0.9, 0.75, 0.5], dtype=np.float32),
        np.array([0, 1, 0], dtype=np.int32),
        {"landmarks": np.arange(30, dtype=np.float32).reshape(3, 10)},
        ("cat", "dog"),
        (17, 18),
    )


def test_rows_keep_together() -> None:
    found = some()[some().score > 0.6]
    assert len(found) == 2
    assert found.extra["landmarks"].shape == (2, 10)
    assert [found.name_of(n) for n in range(2)] == ["cat", "dog"]
    assert some()[1].label.tolist() == [1]


def test_classes_by_name_and_number() -> None:
    assert some().of_classes(["cat"]).score.tolist() == pytest.approx([0.9, 0.5])
    assert some().of_classes([1]).label.tolist() == [1]
    assert len(some().of_classes([])) == 0
    with pytest.raises(InputError, match="no class 'horse'") as error:
        some().of_classes(["horse"])
    assert "cat, dog" in error.value.hint
    with pytest.raises(InputError, match="no class 2"):
        some().of_classes([2])


def test_to_coco_uses_category_ids_and_width_height() -> None:
    rows = some().to_coco(42)
    assert rows[1] == {"image_id": 42, "category_id": 18, "bbox": [30.5, 30.0, 29.5, 60.0], "score": 0.75}
    plain = Detections(some().xyxy, some().score, some().label)
    assert [row["category_id"] for row in plain.to_coco(1)] == [1, 2, 1]
    assert plain.name_of(1) == "1"


def test_to_json_is_plain() -> None:
    import json

    rows = json.loads(json.dumps(some().to_json()))
    assert rows[0]["box"] == [1, 2, 11, 22]
    assert rows[0]["name"] == "cat"
    assert len(rows[2]["landmarks"]) == 10


def test_to_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendError, match="not installed"):
        some().to_supervision()
    fake: Any = types.ModuleType("supervision")
    fake.Detections = lambda **arguments: arguments
    monkeypatch.setitem(sys.modules, "supervision", fake)
    made = some().to_supervision()
    assert set(made) == {"xyxy", "confidence", "class_id", "data"}
    assert made["data"]["class_name"].tolist() == ["cat", "dog", "cat"]


def test_draw_marks_boxes_and_leaves_the_picture_alone() -> None:
    image = np.full((100, 100, 3), 40, dtype=np.uint8)
    before = image.copy()
    drawn = some().draw(image)
    np.testing.assert_array_equal(image, before)
    assert (drawn[22, 3:9] != 40).any()  # the lower edge of the first box
    assert (drawn[60, 28:33] != 40).any()  # the left edge of the second


def test_draw_survives_boxes_that_no_picture_holds() -> None:
    wild = np.array(
        [[np.nan] * 4, [-1e30, -5, 1e30, 5], [0, 0, np.inf, 1], [50, 50, 40, 40]], dtype=np.float32
    )
    found = Detections(wild, np.ones(4, dtype=np.float32), np.zeros(4, dtype=np.int32))
    assert found.draw(np.zeros((20, 30, 3), dtype=np.uint8)).shape == (20, 30, 3)
    assert (
        Detections(wild[:0], found.score[:0], found.label[:0]).draw(np.zeros((2, 2, 3), dtype=np.uint8)).sum()
        == 0
    )
