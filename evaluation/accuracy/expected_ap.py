"""Expected drop in AP from a reference to a candidate, without labels: `DrawnAnnotations`.

A detector's score estimates the probability of an object. So annotations are drawn from the reference's own
detections: each becomes an object with a probability that follows from its score, its edges moved a little, because a
detector's boxes are not the annotator's. The candidate's average precision against many such draws, subtracted from the
reference's, is the expected drop. Unlike a comparison with the reference's boxes themselves it hardly counts what costs
no AP, such as a lost detection of score 0.05.

The constants were measured on 128 images of COCO train2017 with the MobileNetV3 CenterNet: how often a detection of a
given score overlaps an object of its class by 0.4; the mean distance of such a box's edges from the object's; and how
much of the drop against drawn annotations shows against real ones. Real ones are not centred on the reference's boxes,
so part of a change is neutral: five int8 graphs with a drawn drop of 0.0016 0.0046 0.0062 0.0087 0.0115 had
drops of -0.002 -0.009 -0.008 -0.004 -0.004 against the labels, the upper ends of their 95 % intervals being 0.003
0.001 0.003 0.004 0.006. `LABELS_SHOW` is just above the ratios of the last three upper ends, so it over-estimates.

AP as COCO defines it (IoU 0.50 to 0.95 in steps of 0.05, 101 recalls, at most 100 detections an image), but pooled
over the classes: with few objects of a class its own AP would be mostly chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.evaluation.accuracy.agreement import overlaps
from centernet_trt.evaluation.accuracy.average_precision import IOU_LEVELS, average_precision
from centernet_trt.runtime.detections import Detections

__all__ = ["DRAWS", "JITTER", "LABELS_SHOW", "DrawnAnnotations", "Objects", "pooled_ap"]

DRAWS = 16
"""Number of annotation sets drawn; each covers all images."""
JITTER = 0.083
"""Mean distance of an annotated edge from the detected one, as a fraction of the box's side (Laplace)."""
SLOPE, INTERCEPT = 2.2, 1.1
"""logit(probability of an object) = SLOPE * logit(score) + INTERCEPT: focal-loss scores are too moderate at both ends."""
LABELS_SHOW = 0.6
"""Upper estimate of the fraction of a drop against drawn annotations that real labels show."""
_MOST = 100

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Objects:
    """Annotated objects of one image.

    Attributes:
        xyxy: (n, 4) boxes as x1, y1, x2, y2 in pixels.
        label: (n,) class indices.
    """

    xyxy: Array
    label: npt.NDArray[np.int32]


class DrawnAnnotations:
    """Annotations drawn from a reference's detections, the same for every candidate."""

    def __init__(
        self, reference: Sequence[Detections], *, draws: int = DRAWS, jitter: float = JITTER, seed: int = 0
    ) -> None:
        """Draw the annotations.

        Args:
            reference: detections of each image, with no threshold applied.
            draws: number of annotation sets.
            jitter: mean distance of an annotated edge from the detected one, as a fraction of the box's side.
            seed: of the random numbers.
        """
        rng = np.random.default_rng(seed)
        self._draws = [[_draw(image, jitter, rng) for image in reference] for _ in range(draws)]
        self.reference_ap = self.ap(reference)

    def ap(self, candidate: Sequence[Detections]) -> float:
        """Average precision, 0..1, of detections of the same images: the mean over the draws."""
        return float(np.mean([pooled_ap(objects, candidate) for objects in self._draws]))

    def drop(self, candidate: Sequence[Detections]) -> float:
        """Expected drop in AP from the reference to the candidate; negative for a rise."""
        return LABELS_SHOW * (self.reference_ap - self.ap(candidate))


def _draw(found: Detections, jitter: float, rng: np.random.Generator) -> Objects:
    score = np.clip(found.score.astype(np.float64), 1e-6, 1 - 1e-6)
    odds = np.exp(INTERCEPT) * (score / (1 - score)) ** SLOPE
    kept = found[rng.random(len(found)) < odds / (1 + odds)]
    boxes = kept.xyxy.astype(np.float64)
    sides = np.tile(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), 2)
    return Objects(boxes + rng.laplace(0, 1, boxes.shape) * jitter * sides, kept.label)


def pooled_ap(truth: Sequence[Objects], found: Sequence[Detections]) -> float:
    """COCO's AP with all classes in one ranking: a detection matches only objects of its own class.

    Args:
        truth: the objects of each image.
        found: the detections of each image, best first; the first 100 count.

    Returns:
        0..1; 0 if there are no objects.
    """
    total = sum(len(image.label) for image in truth)
    scores, hits = [np.zeros(0)], [np.zeros((len(IOU_LEVELS), 0), dtype=bool)]
    for objects, detections in zip(truth, found, strict=True):
        best = detections[:_MOST]
        scores.append(best.score.astype(np.float64))
        hits.append(_hits(objects, best))
    if not total:
        return 0.0
    score = np.concatenate(scores)
    return average_precision(np.concatenate(hits, axis=1), score, np.ones(len(score)), total)


def _hits(objects: Objects, found: Detections) -> npt.NDArray[np.bool_]:
    """Whether each detection matches an object that no better one has matched, (10, n) by overlap level."""
    hit = np.zeros((len(IOU_LEVELS), len(found)), dtype=bool)
    if not len(objects.label) or not len(found):
        return hit
    shared = overlaps(found.xyxy, objects.xyxy)
    shared[found.label[:, None] != objects.label[None, :]] = 0.0
    free = np.ones((len(IOU_LEVELS), len(objects.label)), dtype=bool)
    levels = np.arange(len(IOU_LEVELS))
    for row in np.nonzero(shared.max(axis=1) >= IOU_LEVELS[0])[0]:
        possible = np.where(free, shared[row], -1.0)
        choice = possible.argmax(axis=1)
        good = possible[levels, choice] >= IOU_LEVELS
        hit[good, row] = True
        free[levels[good], choice[good]] = False
    return hit
