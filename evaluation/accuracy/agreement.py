"""Agreement of two sets of detections of the same images, without labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections

__all__ = ["Agreement", "Matches", "agreement", "match", "overlaps"]

RESAMPLES, CONFIDENCE = 1000, 0.90
"""Resamplings of the images, and one-sided confidence, of `Agreement.f1_low`."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """Pairs of detections of one image, best overlap first.

    Attributes:
        reference: (n,) rows of the reference.
        candidate: (n,) rows of the candidate.
        iou: (n,) intersection over union of each pair.
    """

    reference: npt.NDArray[np.intp]
    candidate: npt.NDArray[np.intp]
    iou: Array


@dataclass(frozen=True)
class Agreement:
    """Agreement of a candidate's detections with a reference's, over all images.

    Attributes:
        images: number of images compared.
        threshold: detections below this score were ignored on both sides.
        iou_threshold: lowest overlap of a match.
        reference: number of detections of the reference.
        candidate: number of detections of the candidate.
        matched: number of pairs; each detection is in at most one.
        f1: 2 * matched / (reference + candidate); 1 if there are no detections.
        f1_low: lower bound of F1 on other images of this kind at 90 % confidence: the bootstrap's 10th percentile over
            the images. It accounts for the choice of images, not for anything fitted to them.
        score_mean: mean absolute difference of the scores of a pair; 0 without pairs.
        score_max: largest absolute difference of the scores of a pair.
        iou_mean: mean overlap of a pair; 1 without pairs.
        iou_min: smallest overlap of a pair.
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
    """Intersection over union of every pair of boxes.

    Args:
        a: (n, 4) as x1, y1, x2, y2.
        b: (m, 4), likewise.

    Returns:
        (n, m) float64; 0 where both boxes are empty.
    """
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
    """Pair the detections of one image greedily by class and overlap, largest overlap first.

    Of equal overlaps the earlier row of the reference goes first, then that of the candidate.

    Args:
        reference: detections of the image.
        candidate: other detections of it.
        iou: lowest overlap of a pair.

    Returns:
        The pairs; each detection is in at most one.
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
        reference: detections that are assumed to be right, one entry per image.
        candidate: detections to compare with them, in the same order.
        threshold: lowest score that counts, on both sides.
        iou: lowest overlap of a match.

    Returns:
        The agreement over all images.

    Raises:
        InputError: the numbers of images differ, or are 0.
    """
    if len(reference) != len(candidate) or not reference:
        raise InputError(
            "expected equal numbers of reference and candidate images, at least one, "
            f"got {len(reference)} and {len(candidate)}"
        )
    scores, ious, rows = [np.zeros(0)], [np.zeros(0)], []
    for expected, found in zip(reference, candidate, strict=True):
        expected, found = expected[expected.score >= threshold], found[found.score >= threshold]
        pairs = match(expected, found, iou)
        rows.append((len(expected), len(found), len(pairs.iou)))
        difference = expected.score[pairs.reference].astype(np.float64) - found.score[pairs.candidate]
        scores.append(np.abs(difference))
        ious.append(pairs.iou)
    differences, overlap = np.concatenate(scores), np.concatenate(ious)
    counts = np.array(rows)
    references, candidates, matched = counts.sum(axis=0).tolist()
    return Agreement(
        images=len(reference),
        threshold=threshold,
        iou_threshold=iou,
        reference=references,
        candidate=candidates,
        matched=matched,
        f1=float(_f1(counts[None])[0]),
        f1_low=_f1_low(counts),
        score_mean=float(differences.mean()) if len(differences) else 0.0,
        score_max=float(differences.max(initial=0.0)),
        iou_mean=float(overlap.mean()) if len(overlap) else 1.0,
        iou_min=float(overlap.min(initial=1.0)),
    )


def _f1(counts: npt.NDArray[np.int64]) -> Array:
    """F1 (...) of counts (..., images, 3): detections of the reference, of the candidate, pairs."""
    reference, candidate, matched = np.moveaxis(counts.sum(axis=-2, dtype=np.float64), -1, 0)
    boxes = reference + candidate
    found: Array = np.divide(2 * matched, boxes, out=np.ones_like(boxes), where=boxes > 0)
    return found


def _f1_low(counts: npt.NDArray[np.int64]) -> float:
    """Lower end of a one-sided percentile interval (B. Efron, 1979) over images drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(counts), (RESAMPLES, len(counts)))
    return float(np.quantile(_f1(counts[drawn]), 1 - CONFIDENCE))
