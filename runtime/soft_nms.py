"""Gaussian soft non-maximum suppression: overlapping boxes lose score instead of going.

Source: Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", with the conventions of the code that
CenterNet merges its scales by: sides counted in inclusive pixels (x2 - x1 + 1), a box dropped when a decay takes it
below `lowest`. Its `Nt` (0.5) is a parameter of the other methods; the gaussian one does not read it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError


class SoftNmsResult(NamedTuple):
    """`rows` (N,) int64: those that stay, best first. `score` (N,) float32: what their scores became."""

    rows: npt.NDArray[np.int64]
    score: npt.NDArray[np.float32]


def soft_nms(
    xyxy: npt.NDArray[np.float32],
    score: npt.NDArray[np.float32],
    label: npt.NDArray[np.int32],
    sigma: float = 0.5,
    lowest: float = 0.001,
) -> SoftNmsResult:
    """Decay the scores of boxes that a better box of their class overlaps: score *= exp(-iou**2 / sigma).

    The best box of a class is taken, the others decay by their overlap with it, then the best of the rest, and so on;
    of equal scores the lower row goes first. Computed in float64 and rounded once.

    Args:
        xyxy: (N, 4) boxes in pixels, in any order.
        score: (N,), 0..1.
        label: (N,) class of each.
        sigma: width of the decay.
        lowest: a box whose score decays below this goes. One that nothing overlaps stays, however low its score.

    Raises:
        InputError: sigma is not positive.
    """
    if not sigma > 0:
        raise InputError(f"sigma of the soft-NMS is {sigma}, a positive number was expected")
    decayed = score.astype(np.float64)
    alive = np.ones(len(score), dtype=np.bool_)
    for kind in np.unique(label):
        rows = np.flatnonzero(label == kind)
        decayed[rows], alive[rows] = _decay(xyxy[rows].astype(np.float64), decayed[rows], sigma, lowest)
    rows = np.flatnonzero(alive)
    final = decayed[rows].astype(np.float32)
    order = np.argsort(-final, kind="stable")
    return SoftNmsResult(rows[order], final[order])


def _decay(
    boxes: npt.NDArray[np.float64], score: npt.NDArray[np.float64], sigma: float, lowest: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores after the decay, and which boxes stay; the boxes are of one class."""
    score = score.copy()
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    alive = np.ones(len(score), dtype=np.bool_)
    waiting = np.arange(len(score))
    while len(waiting) > 1:
        best = waiting[np.argmax(score[waiting])]  # the first of equals
        waiting = waiting[waiting != best]
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        side = np.minimum(boxes[waiting, 2:], boxes[best, 2:]) - low + 1
        touching = (side > 0).all(axis=1)
        hit = waiting[touching]
        common = side[touching].prod(axis=1)
        iou = common / (area[best] + area[hit] - common)
        score[hit] *= np.exp(-(iou**2) / sigma)
        alive[hit] = score[hit] >= lowest
        waiting = waiting[alive[waiting]]
    return score, alive
