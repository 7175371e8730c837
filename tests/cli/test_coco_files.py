"""`eval` and `verify` with COCO files as tools write them: right figures, a note, or an error before any image is run."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle

from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, coco_rows, detect_all
from centernet_trt.runtime import Detector

Data = dict[str, Any]


@pytest.fixture
def data(tmp_path: Path, pictures: Path) -> Data:
    """A sound file; half of what the tiny bundle finds in its two images is annotated."""
    write_tiny_bundle(tmp_path / "b")
    images, rows = [], []
    with Detector.load(tmp_path / "b", mode="faithful", threads=1) as detector:
        for number, name in enumerate(("a.png", "b.jpg"), 1):
            height, width = cv2.imread(str(pictures / name)).shape[:2]
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for one in detector.detect(pictures / name, 0.0, top_k=8)[::2].to_coco(number):
                del one["score"]
                box = np.clip(one["bbox"], 0, None).tolist()
                rows.append({**one, "bbox": box, "id": len(rows) + 1, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
    return {"images": images, "annotations": rows, "categories": categories}


def words(command: str, tmp_path: Path, pictures: Path, data: Data) -> list[Any]:
    (tmp_path / "i.json").write_text(json.dumps(data))
    made = [command, tmp_path / "b", "--images", pictures, "--annotations", tmp_path / "i.json"]
    return [*made, "--json", tmp_path / "out.json", *(["--no-time"] if command == "eval" else [])]


def spoil(data: Data) -> Data:
    """The same file with ids from 0 and of two types, and without areas and crowds."""
    rows = [
        {
            "id": row["id"] - 1,
            "image_id": str(row["image_id"]),
            "category_id": row["category_id"],
            "bbox": row["bbox"],
        }
        for row in data["annotations"]
    ]
    return {
        **data,
        "annotations": rows,
        "categories": [row | {"id": str(row["id"])} for row in data["categories"]],
    }


def test_eval_of_a_repaired_file_is_that_of_the_sound_one(
    run: Any, tmp_path: Path, pictures: Path, data: Data
) -> None:
    assert run(*words("eval", tmp_path, pictures, data)).code == 0
    expected = json.loads((tmp_path / "out.json").read_text())
    assert 0 < expected["ap"] <= 1
    done = run(*words("eval", tmp_path, pictures, spoil(data)))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out.json").read_text()) == expected
    assert done.err.count("repaired while reading") == 1
    for kind in ("zero annotation ids", "image ids", "category ids", "iscrowd taken as 0", "width x height"):
        assert kind in done.err


def test_verify_of_a_repaired_file_is_that_of_the_sound_one(
    run: Any, tmp_path: Path, pictures: Path, data: Data
) -> None:
    assert run(*words("verify", tmp_path, pictures, data)).code == 0
    expected = json.loads((tmp_path / "out.json").read_text())["ap"]
    assert 0 < expected["reference_ap"] <= 1
    done = run(*words("verify", tmp_path, pictures, spoil(data)))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out.json").read_text())["ap"] == expected
    assert done.err.count("repaired while reading") == 1
    # Ids that are no numbers: found by the names of the classes.
    named = {1: "blue-id", 2: "green-id"}
    for key, field in (("categories", "id"), ("annotations", "category_id")):
        data[key] = [row | {field: named[row[field]]} for row in data[key]]
    assert run(*words("verify", tmp_path, pictures, data)).code == 0
    assert json.loads((tmp_path / "out.json").read_text())["ap"] == expected


def test_ap_without_objects_is_said_to_be_undefined(
    run: Any, tmp_path: Path, pictures: Path, data: Data
) -> None:
    data["annotations"] = []
    again = words("eval", tmp_path, pictures, data)
    done = run(*again, "--markdown", tmp_path / "t.md")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "out.json").read_text())
    assert {result[key] for key in ("ap", "ap50", "ap_large", "ar100")} == {None}
    assert "undefined" in done.out
    assert "-1" not in done.out
    assert "AP and AR are undefined" in done.err
    assert "| undefined | undefined |" in (tmp_path / "t.md").read_text()
    write_tiny_bundle(tmp_path / "c")
    several = run(again[0], tmp_path / "c", *again[1:])
    assert several.code == 0, several.err
    assert json.loads((tmp_path / "out.json").read_text())[1]["ap_drop"] is None
    done = run(*words("verify", tmp_path, pictures, data))
    assert done.code == 1
    assert "no object is annotated" in done.err


@pytest.mark.parametrize("command", ["eval", "verify"])
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("annotations", {"bbox": [1, 2, float("nan"), 4]}, "four finite numbers"),
        ("annotations", {"image_id": 5}, "among those of images (1, 2), got 5"),
        ("annotations", {"category_id": 9}, "got 9 in annotations[0]"),
        ("images", {"file_name": "absent.png"}, "1 of the 2 images"),
        ("categories", {"id": 3}, "category ids"),
        ("categories", {"name": "red"}, ""),  # another spelling of one class is accepted
        ("categories", {"name": "green"}, "number 1 is 'blue' in the spec and 'green'"),
    ],
)
def test_errors_come_before_the_first_image(
    run: Any,
    tmp_path: Path,
    pictures: Path,
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    key: str,
    change: Data,
    message: str,
) -> None:
    data[key][0].update(change)
    ran: list[str] = []
    if message:
        module = "cli.eval._detect" if command == "eval" else "evaluation.accuracy.compare.verify"
        monkeypatch.setattr(f"centernet_trt.{module}", lambda *_, **__: ran.append("images"))
    if change == {"name": "green"}:
        data["categories"][1]["name"] = "blue"
    done = run(*words(command, tmp_path, pictures, data))
    assert done.code == (1 if message else 0), done.err
    assert message in done.err
    assert not ran


def test_results_have_the_ids_of_the_file(tmp_path: Path, pictures: Path, data: Data) -> None:
    for number, image in enumerate(data["images"]):
        image["id"] = f"image/{number}"
    for row in data["annotations"]:
        row["image_id"] = f"image/{row['image_id'] - 1}"
    words("eval", tmp_path, pictures, spoil(data))
    truth = CocoGroundTruth(tmp_path / "i.json", pictures)
    with Detector.load(tmp_path / "b", threads=1) as detector:
        rows = coco_rows(detect_all(detector, truth))
    assert {row["image_id"] for row in rows} == {"image/0", "image/1"}
    assert {row["category_id"] for row in rows} == {"1", "2"}
    assert truth.score(json.loads(json.dumps(rows))).ap == truth.score(rows).ap


def test_images_of_another_size_and_unknown_categories_are_noted(
    run: Any, tmp_path: Path, pictures: Path, data: Data
) -> None:
    data["images"][1]["width"] *= 2
    data["categories"].append({"id": 3, "name": "red"})
    data["annotations"].append(data["annotations"][0] | {"id": 99, "category_id": 3})
    done = run(*words("eval", tmp_path, pictures, data))
    assert done.code == 0, done.err
    assert done.err.count("1 of 2 images have another size than the annotations say") == 1
    assert "1 annotated categories are not in the spec and count with an AP of 0: 3 red" in done.err
