"""Greedy IoU non-maximum suppression, for models that ask for it (a plain CenterNet does not)."""

import numpy as np
import numpy.typing as npt


def greedy_nms(
    xyxy: npt.NDArray[np.float32], label: npt.NDArray[np.int32], iou: float
) -> npt.NDArray[np.int64]:
    """Rows that stay, ascending: a box goes when an earlier box of its class that stays overlaps it by more than `iou`.

    Args:
        xyxy: (N, 4) boxes, best first.
        label: (N,) class of each.
        iou: intersection over union above which the later box goes.
    """
    side = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    area = side[:, 0] * side[:, 1]
    alive = np.ones(len(xyxy), dtype=np.bool_)
    for row in range(len(xyxy)):
        if not alive[row]:
            continue
        low = np.maximum(xyxy[row + 1 :, :2], xyxy[row, :2])
        high = np.minimum(xyxy[row + 1 :, 2:], xyxy[row, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)
        union = area[row + 1 :] + area[row] - common
        # Two empty boxes have no union; a NaN box suppresses nothing and stays.
        alive[row + 1 :] &= ~((common > iou * union) & (label[row + 1 :] == label[row]))
    return np.flatnonzero(alive)
