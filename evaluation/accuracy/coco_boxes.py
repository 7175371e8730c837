"""Boxes of COCO files that are valid, but look wrong: `check_boxes`."""

from pathlib import Path
from typing import Any, TypeGuard

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.coco_ids import CocoId

__all__ = ["LARGEST", "check_boxes", "is_number"]

Row = dict[str, Any]

LARGEST = 1e9
"""Numbers of a box are below this; it also excludes NaN and infinities."""
_BEYOND = 2.0
"""Pixels by which a box may exceed its image without a note: annotators round."""


def check_boxes(path: Path, annotations: list[Row], sizes: dict[CocoId, tuple[float, float]]) -> list[str]:
    """Notes on boxes that look wrong; InputError if they are certainly not x, y, width, height in pixels."""
    if annotations and all(_inside_unit_square(row["bbox"]) for row in annotations):
        raise InputError(
            f"{path}: expected boxes in pixels, got fractions of the image: all of the {len(annotations)} lie in 0..1, "
            f"such as {annotations[0]['bbox']}",
            "multiply x and width by the image's width, y and height by its height",
        )
    empty = sum(not (row["bbox"][2] and row["bbox"][3]) for row in annotations)
    sized = [(row["bbox"], sizes[row["image_id"]]) for row in annotations if row["image_id"] in sizes]
    beyond = [box for box, size in sized if _beyond(box, size)]
    if 2 * len(beyond) > len(sized) and sum(_fits_as_corners(*one) for one in sized) > 0.95 * len(sized):
        raise InputError(
            f"{path}: expected boxes [x, y, width, height], got what looks like two corners: {len(beyond)} of "
            f"{len(sized)} boxes exceed their image, such as {beyond[0]}, and hardly any does as [x1, y1, x2, y2]",
            "write bbox as [x1, y1, x2 - x1, y2 - y1]",
        )
    notes = []
    if beyond:
        notes.append(
            f"{len(beyond)} of {len(sized)} boxes exceed their image by more than {_BEYOND:g} pixels, the first {beyond[0]}"
        )
    if empty:
        notes.append(
            f"{empty} boxes have no width or no height: nothing matches them, yet they count as objects"
        )
    if flat := sum(not row["area"] and row["bbox"][2] * row["bbox"][3] > 0 for row in annotations):
        notes.append(f"{flat} objects have an area of 0 but no empty box: they count as small")
    if unsized := len({row["image_id"] for row in annotations} - sizes.keys()):
        notes.append(
            f"{unsized} annotated images have no width and height in the file: boxes not checked against them"
        )
    return notes


def _inside_unit_square(box: list[float]) -> bool:
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= 1.01 and y + height <= 1.01 and width > 0


def _beyond(box: list[float], size: tuple[float, float]) -> bool:
    x, y, width, height = box
    return bool(min(x, y) < -_BEYOND or x + width > size[0] + _BEYOND or y + height > size[1] + _BEYOND)


def _fits_as_corners(box: list[float], size: tuple[float, float]) -> bool:
    left, top, right, bottom = box
    return left < right <= size[0] + _BEYOND and top < bottom <= size[1] + _BEYOND


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number of a size that a box may have."""
    return (type(value) is float or type(value) is int) and -LARGEST < value < LARGEST
