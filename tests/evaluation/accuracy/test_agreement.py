"""Agreement of detections, expected AP without labels, and the interval of a drop in AP."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.agreement import agreement, match, overlaps
from centernet_trt.evaluation.accuracy.bootstrap import ResampledAp, paired_drop
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth
from centernet_trt.evaluation.accuracy.expected_ap import DrawnAnnotations, Objects, pooled_ap
from centernet_trt.runtime.detections import Detections


def found(boxes: object, scores: object, labels: object) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int32)
    )


def scene(seed: int, count: int = 20) -> Detections:
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 300, (count, 2)), rng.uniform(20, 120, (count, 2))
    scores = np.sort(rng.uniform(0.02, 0.95, count))[::-1]
    return found(np.concatenate([corner, corner + side], axis=1), scores, rng.integers(0, 3, count))


def moved(image: Detections, pixels: float, seed: int = 9) -> Detections:
    noise = np.random.default_rng(seed).normal(0, pixels, image.xyxy.shape).astype(np.float32)
    return Detections(image.xyxy + noise, image.score, image.label)


SCENES = [scene(seed) for seed in range(12)]


def test_overlaps_are_those_of_the_textbook() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 5]], np.float32)
    np.testing.assert_allclose(overlaps(a, b), [[1, 1 / 3, 0, 0], [0, 0, 0, 0]])


def test_a_set_agrees_with_itself() -> None:
    same = agreement(SCENES, SCENES, threshold=0.3)
    assert (same.f1, same.score_max, same.iou_min, same.images) == (1.0, 0.0, 1.0, 12)
    assert same.matched == same.reference == same.candidate > 0


def test_the_lower_bound_of_f1_holds_for_nine_draws_in_ten() -> None:
    """Images drawn from a population whose F1 is known: how often is the bound below it?"""
    rng = np.random.default_rng(0)
    below, draws = 0, 200
    truth = 0.9
    for _ in range(draws):
        images, candidates = [], []
        for row in range(40):
            image = scene(row, 8)
            image = found(image.xyxy + 1000 * np.arange(8)[:, None], np.full(8, 0.9), image.label)
            # Eight boxes each: every one is found with 0.9 and, where it is not, another in its place.
            hit = rng.random(8) < truth
            boxes = np.where(hit[:, None], image.xyxy, image.xyxy + 500)
            images.append(image)
            candidates.append(found(boxes, image.score, image.label))
        below += agreement(images, candidates, threshold=0.3).f1_low <= truth
    assert 0.83 <= below / draws <= 0.96


def test_each_detection_is_matched_once_and_within_its_class() -> None:
    a = found([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8], [0, 0])
    b = found([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 8]], [0.9, 0.9, 0.5], [1, 0, 0])
    pairs = match(a, b)
    assert sorted(zip(pairs.reference.tolist(), pairs.candidate.tolist(), strict=True)) == [(0, 1), (1, 2)]
    result = agreement([a], [b], threshold=0.3)
    assert (result.matched, result.reference, result.candidate) == (2, 2, 3)
    assert result.f1 == pytest.approx(2 * 2 / 5)
    assert result.score_max == pytest.approx(0.3)
    assert result.iou_min == pytest.approx(80 / 90)


def test_the_best_overlap_goes_first() -> None:
    a = found([[0, 0, 10, 10]], [0.5], [0])
    b = found([[0, 0, 10, 6], [0, 0, 10, 9]], [0.9, 0.4], [0, 0])
    assert match(a, b).candidate.tolist() == [1]


def test_nothing_against_nothing_agrees_and_against_something_does_not() -> None:
    none = found([], [], [])
    assert agreement([none], [none], threshold=0.3).f1 == 1.0
    assert agreement([none], [SCENES[0]], threshold=0.3).f1 == 0.0
    with pytest.raises(InputError, match="got 2 and 1"):
        agreement([none, none], [none], threshold=0.3)
    with pytest.raises(InputError):
        agreement([], [], threshold=0.3)


@given(st.floats(0.1, 20), st.integers(0, 100))
def test_agreement_falls_as_boxes_move(pixels: float, seed: int) -> None:
    near = [moved(image, pixels, seed) for image in SCENES]
    far = [moved(image, 4 * pixels, seed) for image in SCENES]
    a, b = (agreement(SCENES, other, threshold=0.3) for other in (near, far))
    assert a.iou_mean >= b.iou_mean - 0.02 or b.matched < a.matched
    assert a.f1 >= b.f1 - 0.02


def test_pooled_ap_of_known_rankings() -> None:
    truth = [Objects(np.array([[0.0, 0, 10, 10], [50, 50, 60, 60]]), np.array([0, 1], np.int32))]
    right = found([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.8], [0, 1])
    assert pooled_ap(truth, [right]) == 1.0
    # A wrong class is no hit; one of two objects found first: precision 1 up to recall 0.5, of 101 recalls 51.
    wrong = found([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.8], [0, 0])
    assert pooled_ap(truth, [wrong]) == pytest.approx(51 / 101)
    # The wrong one first: precision 1/2 up to recall 0.5.
    late = found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])
    assert pooled_ap(truth, [late]) == pytest.approx(51 / 101 / 2)
    # An overlap of 0.72 is a hit at 5 of the 10 levels.
    loose = found([[0, 0, 10, 7.2], [50, 50, 60, 60]], [0.9, 0.8], [0, 1])
    assert pooled_ap(truth, [loose]) == pytest.approx(5 * 1 / 10 + 5 * (51 / 101) / 2 / 10)
    assert pooled_ap([Objects(np.zeros((0, 4)), np.zeros(0, np.int32))], [right]) == 0.0


def test_one_object_is_hit_once() -> None:
    truth = [Objects(np.array([[0.0, 0, 10, 10]]), np.array([0], np.int32))] * 2
    twice = found([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])
    none = found([], [], [])
    assert pooled_ap(truth, [twice, none]) == pytest.approx(51 / 101)


def test_the_expected_drop_is_nothing_for_the_same_and_grows_with_the_change() -> None:
    drawn = DrawnAnnotations(SCENES)
    assert drawn.drop(SCENES) == 0.0
    assert 0.05 < drawn.reference_ap < 0.95
    drops = [drawn.drop([moved(image, pixels) for image in SCENES]) for pixels in (1, 5, 20)]
    assert 0 < drops[1] < drops[2]
    assert drops[0] < drops[1]
    lost = [image[np.arange(len(image)) % 3 > 0] for image in SCENES]
    assert drawn.drop(lost) > 0.06


def test_draws_are_the_same_for_everyone() -> None:
    other = [moved(image, 3) for image in SCENES]
    assert DrawnAnnotations(SCENES).drop(other) == DrawnAnnotations(SCENES).drop(other)
    assert DrawnAnnotations(SCENES, seed=1).drop(other) != DrawnAnnotations(SCENES).drop(other)


@pytest.fixture
def truth(tmp_path: Path) -> CocoGroundTruth:
    """Twelve annotated images: the scenes' detections above a score of 0.5, moved a little."""
    rows, images = [], []
    for number, image in enumerate(SCENES):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((8, 8, 3), np.uint8))
        images.append({"id": number + 1, "file_name": f"{number}.png", "width": 8, "height": 8})
        for row in moved(image[image.score > 0.5], 2, number).to_coco(number + 1):
            _, _, w, h = row["bbox"]
            del row["score"]
            rows.append({**row, "id": len(rows) + 1, "iscrowd": int(len(rows) % 9 == 8), "area": w * h})
    categories = [{"id": number, "name": str(number)} for number in (1, 2, 3)]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return CocoGroundTruth(file, tmp_path)


def rows_of(scenes: list[Detections]) -> list[dict[str, object]]:
    return [row for number, image in enumerate(scenes) for row in image.to_coco(number + 1)]


@pytest.mark.parametrize("pixels", [0.0, 4.0, 15.0])
def test_resampled_ap_without_resampling_is_pycocotools(truth: CocoGroundTruth, pixels: float) -> None:
    rows = rows_of([moved(image, pixels) for image in SCENES])
    assert ResampledAp(truth, rows).ap() == pytest.approx(truth.score(rows).ap, abs=1e-12)


def test_resampling_an_image_away_is_leaving_it_out(truth: CocoGroundTruth) -> None:
    rows = rows_of([moved(image, 4) for image in SCENES])
    counts = np.ones(12, np.int64)
    counts[[2, 7]] = 0
    kept = [image for image in range(1, 13) if image not in (3, 8)]
    expected = truth.score([row for row in rows if row["image_id"] in kept], kept).ap
    assert ResampledAp(truth, rows).ap(counts) == pytest.approx(expected, abs=1e-12)
    # Every image twice is every image once.
    assert ResampledAp(truth, rows).ap(np.full(12, 2)) == pytest.approx(
        ResampledAp(truth, rows).ap(), abs=0.02
    )


def test_the_interval_of_a_drop_holds_it(truth: CocoGroundTruth) -> None:
    before, after = rows_of(SCENES), rows_of([moved(image, 6) for image in SCENES])
    result = paired_drop(truth, before, after, samples=200)
    assert result.drop == pytest.approx(truth.score(before).ap - truth.score(after).ap)
    assert 0 < result.low < result.drop < result.high
    same = paired_drop(truth, before, before, samples=50)
    assert (same.drop, same.low, same.high) == (0.0, 0.0, 0.0)
    assert paired_drop(truth, before, after, samples=200) == result
