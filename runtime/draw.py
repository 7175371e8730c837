"""Detections drawn on a picture."""

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.detections import Detections


def draw_detections(image: npt.NDArray[np.uint8], detections: Detections) -> npt.NDArray[np.uint8]:
    """A copy of the image (H, W, 3) uint8, blue first, with boxes, labels and points; the best are drawn on top.

    Line and text sizes follow the image's size. Extra heads named `landmarks` or `keypoints` are drawn as dots.
    """
    canvas = np.ascontiguousarray(image).copy()
    thick = max(1, round(min(canvas.shape[:2]) / 300))
    for row in reversed(range(len(detections))):
        if not np.isfinite(detections.xyxy[row]).all():
            continue
        colour = class_colour(int(detections.label[row]))
        # A box may reach far outside: cut it, so that its corners fit OpenCV's integers.
        limit = np.array([canvas.shape[1], canvas.shape[0]] * 2) + 10 * thick
        x1, y1, x2, y2 = (int(v) for v in np.clip(detections.xyxy[row], -10 * thick, limit).round())
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thick, cv2.LINE_AA)
        for name in ("landmarks", "keypoints"):
            for x, y in detections.extra.get(name, np.empty((len(detections), 0)))[row].reshape(-1, 2):
                if np.isfinite((x, y)).all() and abs(x) < 1e6 and abs(y) < 1e6:
                    cv2.circle(canvas, (round(float(x)), round(float(y))), thick + 1, colour, -1, cv2.LINE_AA)
        _label(canvas, f"{detections.name_of(row)} {detections.score[row]:.2f}", (x1, y1), colour, thick)
    return canvas


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour (blue, green, red) for a class: hues a golden ratio apart, so that near labels differ."""
    hue = int(180 * (label * 0.618034 % 1))
    pixel = cv2.cvtColor(np.array([[[hue, 200, 230]]], dtype=np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def _label(
    canvas: npt.NDArray[np.uint8],
    text: str,
    corner: tuple[int, int],
    colour: tuple[int, int, int],
    thick: int,
) -> None:
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.4 + 0.12 * thick
    weight = max(1, thick // 2)
    (width, height), base = cv2.getTextSize(text, font, scale, weight)
    # Kept inside the picture: a label above the upper border would not be seen.
    x = min(max(corner[0], 0), max(canvas.shape[1] - width, 0))
    y = min(max(corner[1], height + base), canvas.shape[0])
    cv2.rectangle(canvas, (x, y - height - base), (x + width, y), colour, -1)
    cv2.putText(canvas, text, (x, y - base // 2 - 1), font, scale, (0, 0, 0), weight, cv2.LINE_AA)
