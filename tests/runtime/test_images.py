"""Everything that may be called an image, and everything that may not."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from centernet_trt.errors import InputError
from centernet_trt.runtime.images import as_bgr

RANDOM = np.random.default_rng(5)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
ALPHA = RANDOM.integers(0, 256, (6, 9, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    "image", [COLOUR, COLOUR[:, :, 0], DEEP, DEEP[:, :, 0], ALPHA], ids=lambda i: f"{i.dtype}{i.shape}"
)
def test_files_are_read_as_cv2_reads_them(tmp_path: Path, image: Any) -> None:
    path = tmp_path / "ünïcode name.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    found = as_bgr(path)
    plain = tmp_path / "plain.png"
    plain.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(found, cv2.imread(str(plain), cv2.IMREAD_COLOR))
    np.testing.assert_array_equal(as_bgr(str(path)), found)
    assert found.flags.c_contiguous


def test_arrays() -> None:
    grey = np.repeat(COLOUR[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(as_bgr(COLOUR), COLOUR)
    np.testing.assert_array_equal(as_bgr(COLOUR[:, :, 0]), grey)
    np.testing.assert_array_equal(as_bgr(COLOUR[:, :, :1]), grey)
    np.testing.assert_array_equal(as_bgr(ALPHA), ALPHA[:, :, :3])
    np.testing.assert_array_equal(as_bgr(DEEP), (DEEP >> 8).astype(np.uint8))
    np.testing.assert_array_equal(as_bgr(COLOUR[::-1, ::2]), COLOUR[::-1, ::2])
    assert as_bgr(COLOUR[::-1, ::2]).flags.c_contiguous


def test_pil_images() -> None:
    rgb = Image.fromarray(COLOUR[:, :, ::-1].copy())
    np.testing.assert_array_equal(as_bgr(rgb), COLOUR)
    np.testing.assert_array_equal(as_bgr(rgb.convert("RGBA")), COLOUR)
    grey = Image.fromarray(COLOUR[:, :, 0].copy())
    np.testing.assert_array_equal(as_bgr(grey)[:, :, 1], COLOUR[:, :, 0])
    deep = Image.fromarray(DEEP[:, :, 0].copy())
    np.testing.assert_array_equal(as_bgr(deep)[:, :, 2], DEEP[:, :, 0] >> 8)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(COLOUR).save(path, exif=exif)
    assert as_bgr(path).shape == (9, 6, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "dtype uint8.*, got float32"),
        (np.zeros((4, 4, 3), dtype=bool), "dtype.*, got bool"),
        (np.zeros((3, 40, 40), dtype=np.uint8), "transpose"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "empty"),
        (np.zeros((4, 4, 5), dtype=np.uint8), r"shape.*, got \(4, 4, 5\)"),
        (np.zeros(4, dtype=np.uint8), r"shape.*, got \(4,\)"),
        (None, "got NoneType"),
        ([1, 2], "got list"),
    ],
)
def test_unusable_images_are_refused(image: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        as_bgr(image)
    import re

    assert re.search(words, str(error.value), re.DOTALL)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    good = cv2.imencode(".png", COLOUR)[1].tobytes()
    (tmp_path / "cut.png").write_bytes(good[:40])
    for name, words in {
        "absent.jpg": "No such file",
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "cut.png": "not an image",
        ".": "Is a directory",
    }.items():
        with pytest.raises(InputError, match=words):
            as_bgr(tmp_path / name)
