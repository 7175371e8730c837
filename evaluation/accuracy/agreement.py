"""Agreement of two sets of detections of the same images: no labels needed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections

__all__ = ["Agreement", "Matches", "agreement", "match", "overlaps"]

RESAMPLES, CONFIDENCE = 1000, 0.90
"""Of the images, for `Agreement.f1_low`."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Pairs of detections of one image, best overlap first.

    `reference` and `candidate`: (n,) rows of the two; `iou`: (n,) their overlaps.
    """

    reference: npt.NDArray[np.intp]
    candidate: npt.NDArray[np.intp]
    iou: Array


@dataclass(frozen=True)
class Agreement:
    """How far a candidate's detections are those of a reference, over all images.

    Attributes:
        images: how many images were compared.
        threshold: detections below this score were left out, on both sides.
        iou_threshold: boxes of one class that overlap at least so much are a match.
        reference: detections of the reference.
        candidate: detections of the candidate.
        matched: pairs, each detection in at most one.
        f1: 2 * matched / (reference + candidate); 1 where neither found anything.
        f1_low: F1 that other images like these reach with a confidence of 90 %: the bootstrap's 10th percentile over
            the images. It sees which images were drawn, not that something was fitted to them.
        score_mean: mean absolute difference of the scores of a pair; 0 without pairs.
        score_max: the largest.
        iou_mean: mean overlap of a pair; 1 without pairs.
        iou_min: the smallest.
    """

    images: int
    threshold: float
    iou_threshold: float
    reference: int
    candidate: int
    matched: int
    f1: float
    f1_low: float
    score_mean: float
    score_max: float
    iou_mean: float
    iou_min: float

    def to_json(self) -> dict[str, float]:
        """The fields as a plain dict."""
        return asdict(self)


def overlaps(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Array:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4) as x1, y1, x2, y2; 0 where both are empty."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared: Array = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None] - shared
    result: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def _areas(boxes: Array) -> Array:
    area: Array = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    return area


def match(reference: Detections, candidate: Detections, iou: float = 0.5) -> Matches:
    """Pair the detections of one image: same class, largest overlap first, none below `iou`.

    Equal overlaps go to the earlier row of the reference, then of the candidate.
    """
    shared = overlaps(reference.xyxy, candidate.xyxy)
    shared[reference.label[:, None] != candidate.label[None, :]] = -1.0
    rows, columns = np.nonzero(shared >= iou)
    order = np.argsort(-shared[rows, columns], kind="stable")  # nonzero gives the earlier rows first
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    both = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return Matches(both[:, 0], both[:, 1], shared[both[:, 0], both[:, 1]])


def agreement(
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
    *,
    threshold: float,
    iou: float = 0.5,
) -> Agreement:
    """Compare the detections of the same images.

    Args:
        reference: what is taken for right, one entry an image.
        candidate: what is judged, in the same order.
        threshold: lowest score that counts, on both sides.
        iou: lowest overlap of a match.

    Raises:
        InputError: not equally many images, or none.
    """
    if len(reference) != len(candidate) or not reference:
        raise InputError(
            f"{len(reference)} reference images and {len(candidate)} candidate images were given; "
            "equally many, and at least one, were expected"
        )
    scores, ious, rows = [np.zeros(0)], [np.zeros(0)], []
    for right, judged in zip(reference, candidate, strict=True):
        right, judged = right[right.score >= threshold], judged[judged.score >= threshold]
        pairs = match(right, judged, iou)
        rows.append((len(right), len(judged), len(pairs.iou)))
        difference = right.score[pairs.reference].astype(np.float64) - judged.score[pairs.candidate]
        scores.append(np.abs(difference))
        ious.append(pairs.iou)
    apart, shared = np.concatenate(scores), np.concatenate(ious)
    counts = np.array(rows)
    found, candidates, matched = counts.sum(axis=0).tolist()
    return Agreement(
        images=len(reference),
        threshold=threshold,
        iou_threshold=iou,
        reference=found,
        candidate=candidates,
        matched=matched,
        f1=float(_f1(counts[None])[0]),
        f1_low=_f1_low(counts),
        score_mean=float(apart.mean()) if len(apart) else 0.0,
        score_max=float(apart.max(initial=0.0)),
        iou_mean=float(shared.mean()) if len(shared) else 1.0,
        iou_min=float(shared.min(initial=1.0)),
    )


def _f1(counts: npt.NDArray[np.int64]) -> Array:
    """(..., ) F1 of counts (..., images, 3): detections of the reference, of the candidate, pairs."""
    reference, candidate, matched = np.moveaxis(counts.sum(axis=-2, dtype=np.float64), -1, 0)
    boxes = reference + candidate
    found: Array = np.divide(2 * matched, boxes, out=np.ones_like(boxes), where=boxes > 0)
    return found


def _f1_low(counts: npt.NDArray[np.int64]) -> float:
    """The lower end of a one-sided percentile interval (B. Efron, 1979), images drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    return float(np.quantile(_f1(counts[drawn]), 1 - CONFIDENCE))
