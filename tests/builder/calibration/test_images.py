"""Calibration images: where they come from, and which are refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.tiny_centernet import tiny_spec

from centernet_trt.builder.calibration.images import find_images, images_from
from centernet_trt.builder.calibration.statistics import batches
from centernet_trt.errors import CalibrationError


def write(folder: Path, count: int = 5, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for row in range(count):
        path = folder / f"{row}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (40 + row, 50, 3), dtype=np.uint8))
        paths.append(path)
    return paths


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "notes.txt").write_text("not an image")
    images = find_images(tmp_path)
    assert [image.name for image in images] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert len({image.sha256 for image in images}) == 5
    assert images.images[2].read().shape == (42, 50, 3)
    assert "100 to 500" in " ".join(images.notes)


def test_a_coco_file_gives_those_that_it_lists(tmp_path: Path) -> None:
    write(tmp_path / "images", 6)
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [{"file_name": f"{row}.png"} for row in range(1, 6)]}))
    images = find_images(file)
    assert [image.name for image in images] == [f"{row}.png" for row in range(1, 6)]
    assert images.annotations == file
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(CalibrationError, match=r"1 of the 5 images .* 3\.png"):
        find_images(file)


def test_a_coco_file_is_read_as_tools_write_it(tmp_path: Path) -> None:
    """Ids do not matter here; backslashes, repeated rows and a byte order mark do no harm."""
    write(tmp_path / "images" / "train", 5)
    rows = [{"id": "a", "file_name": f"train\\{row}.png"} for row in (0, 1, 2, 3, 4)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": [*rows, {"file_name": "train/3.png"}]}), encoding="utf-8-sig")
    images = find_images(file)
    assert [image.name for image in images] == [f"train/{row}.png" for row in range(5)]
    assert "repeated rows of images left out (1)" in images.notes[0]
    (tmp_path / "images" / "train" / "2.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"1 of the 5 images .* or are empty: 2\.png"):
        find_images(file)


def test_a_coco_file_may_name_files_by_absolute_paths(tmp_path: Path) -> None:
    paths = write(tmp_path / "elsewhere", 5)
    file = tmp_path / "labels" / "instances.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": [{"file_name": str(path)} for path in paths]}))
    assert [image.name for image in find_images(file)] == list(map(str, paths))


def test_an_iterator_is_gone_through_once_and_read_twice() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (33, 44, 3), dtype=np.uint8) for _ in range(5)]
    images = images_from(iter(arrays))
    for _ in range(2):
        for image, array in zip(images, arrays, strict=True):
            np.testing.assert_array_equal(image.read(), array)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "expected a folder of images or a COCO file"),
        (lambda folder: folder.mkdir(), "expected at least 4 images, got 0"),
        (lambda folder: write(folder, 3), "expected at least 4 images, got 3"),
    ],
)
def test_too_few_images_are_refused(tmp_path: Path, make: object, message: str) -> None:
    folder = tmp_path / "set"
    make(folder)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=message):
        find_images(folder)


def test_every_unreadable_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, 6)
    (tmp_path / "1.png").write_bytes(b"nothing")
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match=r"2 of the 6") as caught:
        find_images(tmp_path)
    assert "1.png" in caught.value.message
    assert "4.png" in caught.value.message


def test_equal_images_are_refused_and_repeats_noted(tmp_path: Path) -> None:
    first = write(tmp_path / "a", 1)[0]
    for row in range(1, 5):
        (tmp_path / "a" / f"{row}.png").write_bytes(first.read_bytes())
    with pytest.raises(CalibrationError, match=r"images of .* are all the same"):
        find_images(tmp_path / "a")
    paths = write(tmp_path / "b", 5)
    (tmp_path / "b" / "again.png").write_bytes(paths[0].read_bytes())
    assert "1 of the 6 calibration images are repeats" in find_images(tmp_path / "b").notes


def test_an_iterable_is_judged_as_a_folder_is() -> None:
    black = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(CalibrationError, match="all the same"):
        images_from([black] * 5)
    with pytest.raises(CalibrationError, match="at least 4 images, got 2"):
        images_from([black, black + 1])
    with pytest.raises(CalibrationError, match="image 1 of the iterable"):
        images_from([black, np.zeros((4, 4), np.float32)])


def test_a_broken_coco_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for text in ("{", "[]", '{"images": [{"id": 1}]}', '{"images": null}', '{"images": ["a.png"]}'):
        file.write_text(text)
        with pytest.raises(CalibrationError, match="not a COCO file"):
            find_images(file)


def test_batches_hold_images_of_one_network_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sides = [40, 40, 40, 80, 80, 40]
    images = images_from([rng.integers(0, 256, (side, 40, 3), dtype=np.uint8) for side in sides])
    found = list(batches(images.images, tiny_spec().input, 2))
    assert [batch.tensor.shape for batch in found] == [
        (2, 3, 64, 64),
        (1, 3, 64, 64),
        (2, 3, 96, 64),
        (1, 3, 64, 64),
    ]
    assert [name for batch in found for name in batch.names] == [image.name for image in images]
