"""The official CenterNet inference around a network, rewritten in NumPy: the oracle of end-to-end tests.

Described by the official code's `detectors/ctdet.py`, `models/decode.py` and `utils/post_process.py` in keep_res mode,
without flip and without soft-NMS.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MEAN = np.array([0.40789654, 0.44719302, 0.47026115], np.float32)
STD = np.array([0.28863828, 0.27408164, 0.27809835], np.float32)


def network_side(side: int, multiple: int) -> int:
    return (side | (multiple - 1)) + 1


def official_input(image: Array, multiple: int = 32) -> Array:
    """(1, 3, height, width) float32 of a BGR picture: warped around its centre, then normalised."""
    height, width = image.shape[:2]
    rows, columns = network_side(height, multiple), network_side(width, multiple)
    matrix = np.array(
        [[1, 0, columns / 2 - width // 2], [0, 1, rows / 2 - height // 2]],
        np.float64,
    )
    warped = cv2.warpAffine(image, matrix, (columns, rows), flags=cv2.INTER_LINEAR)
    values = (warped.astype(np.float32) / 255 - MEAN) / STD
    return values.transpose(2, 0, 1)[None]


def official_detections(heads: Mapping[str, Array], image: Array, count: int = 100) -> Array:
    """(count, 6) float64: x1, y1, x2, y2 in the picture, score, class; best first."""
    logits, wh, reg = (heads[name][0].astype(np.float64) for name in ("hm", "wh", "reg"))
    score = 1 / (1 + np.exp(-logits))
    _, rows, columns = score.shape
    padded = np.pad(score, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    kept = np.where(windows.max(axis=(-2, -1)) == score, score, 0).reshape(-1)
    best = np.argsort(-kept, kind="stable")[:count]
    label, place = np.divmod(best, rows * columns)
    y, x = np.divmod(place, columns)
    centre_x, centre_y = x + reg[0, y, x], y + reg[1, y, x]
    half_w, half_h = wh[0, y, x] / 2, wh[1, y, x] / 2
    grid = np.stack([centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h], 1)
    # Back through the affine of the 4 times finer input: its middle is the picture's.
    height, width = image.shape[:2]
    shift = np.array([width // 2 - 2 * columns, height // 2 - 2 * rows] * 2)
    return np.column_stack([4 * grid + shift, kept[best], label])
