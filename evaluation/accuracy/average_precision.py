"""COCO's average precision of one ranking of detections."""

import numpy as np
import numpy.typing as npt

__all__ = ["IOU_LEVELS", "average_precision"]

IOU_LEVELS = np.arange(0.5, 1.0, 0.05)
"""(10,) overlaps at which COCO matches detections to objects."""
_RECALLS = np.linspace(0, 1, 101)


def average_precision(
    hits: npt.NDArray[np.bool_],
    scores: npt.NDArray[np.floating],
    weights: npt.NDArray[np.number | np.bool_],
    objects: float,
) -> float:
    """Average precision at 101 recalls, the mean over the overlap levels.

    Source: `COCOeval.accumulate` of pycocotools, which is the special case of weights 0 (ignored) and 1.

    Args:
        hits: (levels, n), whether each detection matches an object at each overlap level.
        scores: (n,), in any order; equal scores keep their order.
        weights: how often each detection counts, (n,) or (levels, n); 0 leaves it out.
        objects: how many objects there are to find, above 0, counted with the weights of their images.

    Returns:
        0..1.
    """
    weights = np.broadcast_to(weights, hits.shape)
    if (scores[1:] > scores[:-1]).any():  # a bootstrap passes the same ranking a thousand times: sorted once
        order = np.argsort(-scores, kind="stable")
        hits, weights = hits[:, order], weights[:, order]
    right = np.cumsum(weights * hits, axis=1, dtype=np.float64)
    seen = right + np.cumsum(weights * ~hits, axis=1, dtype=np.float64)
    precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.zeros((len(hits), len(_RECALLS)))
    for row, (recall, level) in enumerate(zip(right / objects, precision, strict=True)):
        at = np.searchsorted(recall, _RECALLS, side="left")
        inside = at < len(level)
        values[row, inside] = level[at[inside]]
    return float(values.mean())
