"""Greedy suppression against a plain loop."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from centernet_trt.runtime.detections import greedy_nms


def overlap(a: Any, b: Any) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - w * h
    return w * h / union if union > 0 else 0.0


# Whole numbers: the oracle's and the product's arithmetic are exact, so comparisons with 0.5 and 0.25 are too.
@given(
    boxes=hnp.arrays(np.float32, st.tuples(st.integers(0, 25), st.just(4)), elements=st.integers(0, 12)),
    labels=st.lists(st.integers(0, 2), min_size=25, max_size=25),
    iou=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_equals_a_plain_loop(boxes: Any, labels: list[int], iou: float) -> None:
    label = np.array(labels[: len(boxes)], dtype=np.int32)
    stay: list[int] = []
    for n in range(len(boxes)):
        if not any(label[m] == label[n] and overlap(boxes[m], boxes[n]) > iou for m in stay):
            stay.append(n)
    assert greedy_nms(boxes, label, iou).tolist() == stay
