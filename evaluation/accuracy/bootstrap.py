"""The interval of a difference of COCO AP between two detectors on the same images: a paired bootstrap.

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

from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth

__all__ = ["ApDrop", "ResampledAp", "paired_drop"]

SAMPLES = 1000
_RECALLS = np.linspace(0, 1, 101)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ApDrop:
    """AP of a reference minus AP of a candidate on the same images, with the interval of 95 % of the resamplings."""

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
class _Class:
    """One category's detections, best first: the image of each (n,), and hit and ignored at each overlap (10, n)."""

    image: npt.NDArray[np.intp]
    hit: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.int64]  # (images,) annotated objects that count


class ResampledAp:
    """COCO AP (all sizes, 100 detections an image) of one detector under any weighting of the images."""

    def __init__(self, truth: CocoGroundTruth, rows: Sequence[dict[str, Any]]) -> None:
        """Match once; `rows` are COCO result rows, at least one."""
        self.image_ids = sorted(image.id for image in truth.images)
        self._classes = _match(truth, rows, self.image_ids)

    def ap(self, counts: npt.NDArray[np.integer] | None = None) -> float:
        """AP when image i is there counts[i] times, in the order of `image_ids`; without counts, of the images as they are."""
        if counts is None:
            counts = np.ones(len(self.image_ids), dtype=np.int64)
        scores = [score for one in self._classes if (score := _class_ap(one, counts)) is not None]
        return float(np.mean(scores)) if scores else -1.0


def paired_drop(
    truth: CocoGroundTruth,
    reference: Sequence[dict[str, Any]],
    candidate: Sequence[dict[str, Any]],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ApDrop:
    """The drop in AP from `reference` to `candidate` (COCO result rows), and its 95 % interval."""
    first, second = ResampledAp(truth, reference), ResampledAp(truth, candidate)
    count = len(first.image_ids)
    rng = np.random.default_rng(seed)
    drops = []
    for _ in range(samples):
        counts = np.bincount(rng.integers(0, count, count), minlength=count)
        drops.append(first.ap(counts) - second.ap(counts))
    low, high = np.percentile(drops, [2.5, 97.5])
    before, after = first.ap(), second.ap()
    return ApDrop(before, after, before - after, float(low), float(high), count, samples)


def _match(truth: CocoGroundTruth, rows: Sequence[dict[str, Any]], image_ids: Sequence[int]) -> list[_Class]:
    """pycocotools' own matching, by category."""
    place = {image: row for row, image in enumerate(image_ids)}
    run = truth.evaluation(rows)
    with contextlib.redirect_stdout(io.StringIO()):
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
        run.evaluate()
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in run.evalImgs:
        if entry is not None:
            found.setdefault(entry["category_id"], []).append(entry)
    return [_class(entries, place) for entries in found.values()]


def _class(entries: Sequence[dict[str, Any]], place: dict[int, int]) -> _Class:
    objects = np.zeros(len(place), dtype=np.int64)
    images, scores, hits, ignored = [], [], [], []
    for entry in entries:
        row = place[entry["image_id"]]
        objects[row] = int(np.sum(np.asarray(entry["gtIgnore"]) == 0))
        images.append(np.full(len(entry["dtScores"]), row, dtype=np.intp))
        scores.append(np.asarray(entry["dtScores"], dtype=np.float64))
        hits.append(np.asarray(entry["dtMatches"]) > 0)
        ignored.append(np.asarray(entry["dtIgnore"]) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return _Class(
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        objects,
    )


def _class_ap(one: _Class, counts: npt.NDArray[np.integer]) -> float | None:
    """AP of a category; None where the sample has no object of it. Source: pycocotools' COCOeval.accumulate."""
    total = int(np.sum(one.objects * counts))
    if not total:
        return None
    weight = counts[one.image] * ~one.ignored
    right = np.cumsum(weight * one.hit, axis=1, dtype=np.float64)
    wrong = np.cumsum(weight * ~one.hit, axis=1, dtype=np.float64)
    seen = right + wrong
    precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.zeros((len(precision), len(_RECALLS)))
    for row, (recall, level) in enumerate(zip(right / total, precision, strict=True)):
        at = np.searchsorted(recall, _RECALLS, side="left")
        inside = at < len(level)
        values[row, inside] = level[at[inside]]
    return float(values.mean())
