"""Soft-NMS against an oracle of plain Python loops."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.runtime.tta.augment import soft_nms


def oracle(
    boxes: list[list[float]], scores: list[float], labels: list[int], sigma: float, lowest: float
) -> dict[int, float]:
    """Row -> final score of those that stay: the definition, one pair of boxes at a time."""
    final: dict[int, float] = {}
    current = list(scores)
    for kind in set(labels):
        waiting = [row for row, label in enumerate(labels) if label == kind]
        while waiting:
            best = max(waiting, key=lambda row: (current[row], -row))
            waiting.remove(best)
            final[best] = current[best]
            for row in list(waiting):
                a, b = boxes[best], boxes[row]
                width = min(a[2], b[2]) - max(a[0], b[0]) + 1
                height = min(a[3], b[3]) - max(a[1], b[1]) + 1
                if width <= 0 or height <= 0:
                    continue
                area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
                area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
                overlap = width * height / (area_a + area_b - width * height)
                current[row] *= math.exp(-overlap * overlap / sigma)
                if current[row] < lowest:
                    waiting.remove(row)
    return final


def arrays(
    rows: list[tuple[int, int, int, int, float, int]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    xyxy = np.array([[x, y, x + w, y + h] for x, y, w, h, _, _ in rows], dtype=np.float32).reshape(-1, 4)
    score = np.array([row[4] for row in rows], dtype=np.float32)
    return xyxy, score, np.array([row[5] for row in rows], dtype=np.int32)


SCORES = st.one_of(st.sampled_from([0.0, 0.0009, 0.001, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1, width=32))
ROW = st.tuples(*[st.integers(-10, 40)] * 2, *[st.integers(0, 30)] * 2, SCORES, st.integers(0, 2))


@settings(max_examples=300, deadline=None)
@given(st.lists(ROW, max_size=24), st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from([0.0, 0.001, 0.2]))
def test_equals_the_oracle(
    rows: list[tuple[int, int, int, int, float, int]], sigma: float, lowest: float
) -> None:
    xyxy, score, label = arrays(rows)
    kept = soft_nms(xyxy, score, label, sigma, lowest)
    expected = oracle(xyxy.tolist(), score.astype(float).tolist(), label.tolist(), sigma, lowest)
    found = dict(zip(kept.rows.tolist(), kept.score.tolist(), strict=True))
    assert found.keys() == expected.keys()
    for row, value in found.items():
        assert value == pytest.approx(expected[row], rel=1e-6, abs=1e-12)
    assert (np.diff(kept.score) <= 0).all()
    ties = kept.score[1:] == kept.score[:-1]
    assert (np.diff(kept.rows)[ties] > 0).all()


def test_known_values() -> None:
    """Two equal boxes decay by exp(-1 / 0.5); a box of another class, and one beside it, do not."""
    xyxy, score, label = arrays(
        [(0, 0, 9, 9, 0.9, 0), (0, 0, 9, 9, 0.8, 0), (0, 0, 9, 9, 0.7, 1), (10, 0, 9, 9, 0.6, 0)]
    )
    kept = soft_nms(xyxy, score, label)
    assert kept.rows.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(kept.score, [0.9, 0.7, 0.6, 0.8 * math.exp(-2)], rtol=1e-6)


def test_sides_are_counted_in_inclusive_pixels() -> None:
    """Boxes that share one column of pixels overlap by 10 of 190."""
    xyxy, score, label = arrays([(0, 0, 9, 9, 0.9, 0), (9, 0, 9, 9, 0.8, 0)])
    kept = soft_nms(xyxy, score, label)
    assert kept.score[1] == pytest.approx(0.8 * math.exp(-((10 / 190) ** 2) / 0.5), rel=1e-6)


def test_only_a_decay_drops_a_box() -> None:
    xyxy, score, label = arrays([(0, 0, 9, 9, 0.9, 0), (50, 50, 9, 9, 0.0005, 0), (0, 0, 9, 9, 0.002, 0)])
    assert soft_nms(xyxy, score, label).rows.tolist() == [0, 1]


def test_no_boxes_and_no_sigma() -> None:
    empty = soft_nms(*arrays([]))
    assert len(empty.rows) == len(empty.score) == 0
    with pytest.raises(InputError, match="sigma"):
        soft_nms(*arrays([]), sigma=0.0)
