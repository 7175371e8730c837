"""Average precision against pycocotools, on random scenes with crowds, equal scores and misses."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from centernet_trt.evaluation.accuracy.average_precision import IOU_LEVELS, average_precision

SEEDS = st.integers(0, 2**32 - 1)


def random_scenes(rng: np.random.Generator, images: int) -> tuple[list[Any], list[Any]]:
    """Annotated objects, a few of them crowds, and detections near them, with scores of two digits that repeat."""
    objects: list[Any] = []
    found: list[Any] = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            x, y, w, h = (*rng.uniform(0, 200, 2), *rng.uniform(20, 100, 2))
            common = {"image_id": image, "category_id": 1, "bbox": [x, y, w, h]}
            crowd = int(rng.random() < 0.15)
            objects.append({**common, "id": len(objects) + 1, "area": w * h, "iscrowd": crowd})
            for _ in range(rng.integers(0, 3)):
                box = [x + rng.normal(0, 6), y + rng.normal(0, 6), w * rng.uniform(0.7, 1.4), h]
                found.append({**common, "bbox": box, "score": round(rng.uniform(), 2)})
    stray = {"image_id": 1, "category_id": 1, "bbox": [300.0, 300.0, 10.0, 10.0], "score": 0.5}
    return objects, [*found, stray]


def evaluate(objects: list[Any], found: list[Any], images: int) -> Any:
    """A finished COCOeval for one category and all sizes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(1, images + 1)],
            "annotations": objects,
            "categories": [{"id": 1, "name": "thing"}],
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(found), "bbox")
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], run.params.areaRngLbl[:1]
        run.evaluate()
        run.accumulate()
    return run


@given(SEEDS, st.integers(1, 8))
def test_is_pycocotools(seed: int, images: int) -> None:
    objects, found = random_scenes(np.random.default_rng(seed), images)
    run = evaluate(objects, found, images)
    entries = [entry for entry in run.evalImgs if entry is not None]
    total = sum(int(np.sum(np.asarray(entry["gtIgnore"]) == 0)) for entry in entries)
    precision = run.eval["precision"][:, :, 0, 0, -1]
    if not total:
        assert (precision == -1).all()
        return
    hits = np.concatenate([np.asarray(entry["dtMatches"]) > 0 for entry in entries], axis=1)
    ignored = np.concatenate([np.asarray(entry["dtIgnore"]) > 0 for entry in entries], axis=1)
    scores = np.concatenate([np.asarray(entry["dtScores"], dtype=np.float64) for entry in entries])
    np.testing.assert_allclose(IOU_LEVELS, run.params.iouThrs, atol=1e-15)
    assert average_precision(hits, scores, ~ignored, total) == pytest.approx(precision.mean(), abs=1e-12)


@given(SEEDS, st.integers(1, 30), st.integers(1, 5))
def test_weight_zero_leaves_out_and_a_common_factor_cancels(seed: int, count: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    hits, scores = rng.random((10, count)) < 0.6, np.linspace(1, 0, count)
    weights = rng.integers(0, 4, count)
    objects = 3 * count + 1
    expected = average_precision(hits, scores, weights, objects)
    kept = weights > 0
    assert average_precision(hits[:, kept], scores[kept], weights[kept], objects) == expected
    assert average_precision(hits, scores, factor * weights, factor * objects) == expected


@given(SEEDS, st.integers(0, 40))
def test_the_order_of_detections_with_other_scores_does_not_matter(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    hits, scores = rng.random((10, count)) < 0.5, rng.permutation(count) / max(count, 1)
    order = rng.permutation(count)
    ones = np.ones(count)
    assert average_precision(hits, scores, ones, 50) == average_precision(
        hits[:, order], scores[order], ones, 50
    )


def test_known_rankings() -> None:
    hit = np.array([[True, False]])
    # One of two objects, found first: precision 1 up to recall 0.5, of 101 recalls 51; then after a miss.
    assert average_precision(hit, np.array([0.9, 0.8]), np.ones(2), 2) == pytest.approx(51 / 101)
    assert average_precision(hit, np.array([0.8, 0.9]), np.ones(2), 2) == pytest.approx(51 / 101 / 2)
    assert average_precision(hit, np.array([0.8, 0.9]), np.array([1, 0]), 1) == 1.0
    assert average_precision(np.zeros((10, 0), bool), np.zeros(0), np.zeros(0), 3) == 0.0
