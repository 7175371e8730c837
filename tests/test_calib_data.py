"""The pictures that ship: all named with source and licence, none changed, none forgotten."""

import hashlib

import cv2

from centernet_trt.calib_data import FOLDER, sample_images


def test_every_picture_is_in_the_manifest_unchanged() -> None:
    images = sample_images()
    assert {image.file for image in images} == {path.name for path in FOLDER.glob("*.jpg")}
    for image in images:
        assert hashlib.sha256(image.path.read_bytes()).hexdigest() == image.sha256
        assert cv2.imread(str(image.path)) is not None
        assert image.licence.startswith(("Public domain", "CC0", "CC BY 2.0"))
        assert image.source.startswith("https://")
