"""Paired bootstrap of the difference in COCO AP between two detectors on the same images.

Both detectors are scored on the same resampled images, so what an image makes hard for both cancels out.
Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, the percentile interval.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.average_precision import average_precision
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth

__all__ = ["ApDrop", "ResampledAp", "paired_drop"]

SAMPLES = 1000


@dataclass(frozen=True)
class ApDrop:
    """AP of a reference minus AP of a candidate on the same images, with its 95 % interval.

    Attributes:
        reference_ap: AP of the reference on the images as they are, 0..1.
        candidate_ap: AP of the candidate.
        drop: `reference_ap - candidate_ap`.
        low: 2.5th percentile of the drop over the resamplings.
        high: 97.5th percentile.
        images: number of images.
        samples: number of resamplings.
    """

    reference_ap: float
    candidate_ap: float
    drop: float
    low: float
    high: float
    images: int
    samples: int

    def to_json(self) -> dict[str, float]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class _Ranking:
    """The detections of one category, best first.

    Attributes:
        score: (n,).
        image: (n,) row of the image that each belongs to.
        hit: (10, n), whether it matches an object at each overlap level.
        ignored: (10, n), whether it matches an object that does not count, such as a crowd.
        objects: (images,) number of annotated objects that count.
    """

    score: npt.NDArray[np.float64]
    image: npt.NDArray[np.intp]
    hit: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.int64]

    def ap(self, counts: npt.NDArray[np.integer]) -> float | None:
        """AP when image i appears counts[i] times; None if these images have no object of the category."""
        objects = int(np.sum(self.objects * counts))
        if not objects:
            return None
        return average_precision(self.hit, self.score, counts[self.image] * ~self.ignored, objects)


class ResampledAp:
    """COCO AP (all sizes, 100 detections an image) of one detector under any weighting of the images."""

    def __init__(self, truth: CocoGroundTruth, rows: Sequence[dict[str, Any]]) -> None:
        """Match detections to objects once, for all weightings.

        Args:
            truth: the annotations.
            rows: COCO result rows, at least one.
        """
        self.image_ids = sorted((image.id for image in truth.images), key=truth.image_key)
        self._rankings = _match(truth, rows)

    def ap(self, counts: npt.NDArray[np.integer] | None = None) -> float | None:
        """AP of a resampling of the images.

        Args:
            counts: (images,) how often each image appears, in the order of `image_ids`; None for once each.

        Returns:
            0..1, or None if the images have no objects.
        """
        if counts is None:
            counts = np.ones(len(self.image_ids), dtype=np.int64)
        scores = [score for ranking in self._rankings if (score := ranking.ap(counts)) is not None]
        return float(np.mean(scores)) if scores else None


def paired_drop(
    truth: CocoGroundTruth,
    reference: Sequence[dict[str, Any]],
    candidate: Sequence[dict[str, Any]],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ApDrop:
    """Estimate the drop in AP from a reference to a candidate, and its 95 % interval.

    Args:
        truth: the annotations.
        reference: COCO result rows of the reference, at least one.
        candidate: COCO result rows of the candidate, at least one.
        samples: number of resamplings of the images.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        The drop; negative `drop` for a rise. Resamplings without objects, whose AP is undefined, are left out.

    Raises:
        InputError: no object is annotated, so AP is undefined.
    """
    first, second = ResampledAp(truth, reference), ResampledAp(truth, candidate)
    before, after = first.ap(), second.ap()
    if before is None or after is None:
        raise InputError(
            f"{truth.path} annotates no object in the images that count, so AP and its drop are undefined",
            "give annotations with objects that are not crowds",
        )
    count = len(first.image_ids)
    rng = np.random.default_rng(seed)
    drops = []
    for _ in range(samples):
        counts = np.bincount(rng.integers(0, count, count), minlength=count)
        pair = first.ap(counts), second.ap(counts)
        if pair[0] is not None and pair[1] is not None:
            drops.append(pair[0] - pair[1])
    low, high = np.percentile(drops or [before - after], [2.5, 97.5])
    return ApDrop(before, after, before - after, float(low), float(high), count, samples)


def _match(truth: CocoGroundTruth, rows: Sequence[dict[str, Any]]) -> list[_Ranking]:
    """Match with pycocotools; one ranking per category."""
    keys = sorted(truth.image_key(image.id) for image in truth.images)
    positions = {key: row for row, key in enumerate(keys)}
    run = truth.evaluation(rows)
    with contextlib.redirect_stdout(io.StringIO()):
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
        run.evaluate()
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in run.evalImgs:
        if entry is not None:
            found.setdefault(entry["category_id"], []).append(entry)
    return [_rank(entries, positions) for entries in found.values()]


def _rank(entries: Sequence[dict[str, Any]], positions: dict[int, int]) -> _Ranking:
    objects = np.zeros(len(positions), dtype=np.int64)
    images, scores, hits, ignored = [], [], [], []
    for entry in entries:
        row = positions[entry["image_id"]]
        objects[row] = int(np.sum(np.asarray(entry["gtIgnore"]) == 0))
        images.append(np.full(len(entry["dtScores"]), row, dtype=np.intp))
        scores.append(np.asarray(entry["dtScores"], dtype=np.float64))
        hits.append(np.asarray(entry["dtMatches"]) > 0)
        ignored.append(np.asarray(entry["dtIgnore"]) > 0)
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    return _Ranking(
        score[order],
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        objects,
    )
