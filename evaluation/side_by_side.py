"""Two sets of detections of one picture, side by side, so that one sees what a number means."""

import cv2
import numpy as np

from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.images import BgrImage

_BAR, _GAP = 34, 8
_WIDEST = 1400
"""Pixels of both halves together, so that the picture fits a screen."""


def side_by_side(
    image: BgrImage, left: tuple[str, Detections], right: tuple[str, Detections], threshold: float
) -> BgrImage:
    """The picture twice, (H, W, 3) uint8, blue first, with the detections at or above a score and a title each."""
    halves = []
    for title, found in (left, right):
        kept = found[found.score >= threshold]
        drawn = np.asarray(kept.draw(image), dtype=np.uint8)
        halves.append(_titled(drawn, f"{title}: {len(kept)}"))
    gap = np.full((halves[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([halves[0], gap, halves[1]], axis=1), dtype=np.uint8)


def _titled(image: BgrImage, title: str) -> BgrImage:
    """The picture below a bar with its title, scaled to half the width of a screen."""
    scale = min(1.0, _WIDEST / 2 / image.shape[1])
    if scale < 1:
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    width = image.shape[1]
    bar = np.full((_BAR, width, 3), 255, dtype=np.uint8)
    size = 0.55
    (wide, _), _ = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    size = min(size, size * (width - 12) / max(wide, 1))  # a long title becomes small, not cut
    cv2.putText(bar, title, (6, 23), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.concatenate([bar, image]), dtype=np.uint8)
