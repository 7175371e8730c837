"""Heads averaged with those of the mirror, against heads worked out from boxes and points one cell at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from helpers.tiny_centernet import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.runtime.spec import ModelSpec, PointsExtra
from centernet_trt.runtime.tta.flip import average_with_mirror, check_flip

GRID_H, GRID_W = 3, 5
PAIRS = (1, 0, 2)
Heads = dict[str, npt.NDArray[np.float32]]


def spec_of(box: dict[str, Any], offset: str | None, cell_offset: float, points: dict[str, Any]) -> ModelSpec:
    heads: dict[str, Any] = {"heatmap": {"tensor": "hm"}, "box": {"tensor": "box", **box}}
    if offset is not None:
        heads["offset"] = {"tensor": "reg", "order": offset}
    heads["extra"] = [{"kind": "points", "name": "marks", "tensor": "marks", "points": 3, **points}]
    return tiny_spec(heads=heads, cell_offset=cell_offset)


def written(spec: ModelSpec, truth: "dict[str, Any]", reg: npt.NDArray[np.float64], mirror: bool) -> Heads:
    """The heads that a perfect network gives: from a box and three points a cell, in pixels of its own input."""
    stride, heads = spec.stride, spec.heads
    found = {"hm": np.zeros((2, GRID_H, GRID_W)), "marks": np.zeros((6, GRID_H, GRID_W))}
    found["box"] = np.zeros((heads.box.channels, GRID_H, GRID_W))
    found["reg"] = np.zeros((2, GRID_H, GRID_W))
    (marks,) = heads.extra
    assert isinstance(marks, PointsExtra)
    for row in range(GRID_H):
        for source in range(GRID_W):
            left, top, right, bottom = truth["box"][row, source]
            points = [tuple(point) for point in truth["points"][row, source]]
            column = source
            if mirror:
                column = GRID_W - 1 - source
                left, right = GRID_W * stride - right, GRID_W * stride - left
                points = [(GRID_W * stride - x, y) for x, y in points]
                points = [points[PAIRS[place]] for place in range(3)]
            found["hm"][:, row, column] = truth["hm"][:, row, source]
            shift = reg[:, row, column] if heads.offset is not None else np.zeros(2)
            cx, cy = (np.array([column, row]) + spec.cell_offset + shift) * stride
            if heads.offset is not None:
                found["reg"][:, row, column] = shift if heads.offset.order == "xy" else shift[::-1]
            unit = stride if heads.box.units == "cells" else 1
            if heads.box.encoding == "ltrb":
                edges = [cx - left, cy - top, right - cx, bottom - cy]
                if heads.box.order == "yx":
                    edges = [edges[1], edges[0], edges[3], edges[2]]
                found["box"][:, row, column] = np.array(edges) / unit
            else:
                sides = np.array([right - left, bottom - top]) / unit
                sides = sides if heads.box.order == "xy" else sides[::-1]
                found["box"][:, row, column] = np.log(sides) if heads.box.encoding == "log_wh" else sides
            origin = {"cell": (column * stride, row * stride), "centre": (cx, cy), "top_left": (left, top)}
            length = {"cells": (stride, stride), "input": (1, 1), "box": (right - left, bottom - top)}
            vectors = (np.array(points) - origin[marks.origin]) / length[marks.units]
            vectors = vectors if marks.order == "xy" else vectors[:, ::-1]
            found["marks"][:, row, column] = vectors.reshape(-1)
    if heads.offset is None:
        del found["reg"]
    return {name: head.astype(np.float32) for name, head in found.items()}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["wh", "log_wh", "ltrb"]),
    st.sampled_from(["cells", "input"]),
    st.sampled_from(["xy", "yx"]),
    st.sampled_from([None, "xy", "yx"]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from(
        [("cells", "cell"), ("input", "cell"), ("cells", "centre"), ("input", "centre"), ("box", "top_left")]
    ),
    st.sampled_from(["xy", "yx"]),
    st.integers(0, 2**32),
)
def test_a_perfect_network_is_left_as_it_is(
    encoding: str, units: str, order: str, offset: str | None, cell_offset: float,
    points: tuple[str, str], points_order: str, seed: int,
) -> None:  # fmt: skip
    marks = {"units": points[0], "origin": points[1], "order": points_order}
    spec = spec_of({"encoding": encoding, "units": units, "order": order}, offset, cell_offset, marks)
    check_flip(spec, {"marks": PAIRS})
    random = np.random.default_rng(seed)
    low = random.uniform(0, 10, (GRID_H, GRID_W, 2))
    truth = {
        "box": np.concatenate([low, low + random.uniform(1, 20, low.shape)], axis=2),
        "points": random.uniform(-5, 25, (GRID_H, GRID_W, 3, 2)),
        "hm": random.normal(size=(2, GRID_H, GRID_W)),
    }
    direct_reg, mirrored_reg = random.uniform(-1, 1, (2, 2, GRID_H, GRID_W))
    direct = written(spec, truth, direct_reg, mirror=False)
    averaged = average_with_mirror(
        direct, written(spec, truth, mirrored_reg, mirror=True), spec, {"marks": PAIRS}
    )
    for name in direct.keys() - {"hm"}:
        np.testing.assert_allclose(averaged[name], direct[name], rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(averaged["hm"], 1 / (1 + np.exp(-direct["hm"])), rtol=1e-6)


def test_the_official_average() -> None:
    """Heatmap after the sigmoid and wh are averaged with the flipped mirror, reg is that of the image alone."""
    random = np.random.default_rng(5)
    direct, mirrored = (
        {name: random.normal(size=(2, 4, 6)).astype(np.float32) for name in ("hm", "wh", "reg")} for _ in "ab"
    )
    found = average_with_mirror(direct, mirrored, tiny_spec(), {})
    for x in range(6):
        scores = [
            1 / (1 + np.exp(-head[:, :, at])) for head, at in ((direct["hm"], x), (mirrored["hm"], 5 - x))
        ]
        np.testing.assert_allclose(found["hm"][:, :, x], (scores[0] + scores[1]) / 2, rtol=1e-6)
        sides = (direct["wh"][:, :, x] + mirrored["wh"][:, :, 5 - x]) / 2
        np.testing.assert_allclose(found["wh"][:, :, x], sides, rtol=1e-6)
    np.testing.assert_array_equal(found["reg"], direct["reg"])


def test_half_precision_heads_and_probabilities() -> None:
    random = np.random.default_rng(6)
    heads = {name: random.uniform(0, 1, (2, 4, 6)).astype(np.float16) for name in ("hm", "wh", "reg")}
    mirrored = {name: head[:, :, ::-1] for name, head in heads.items()}
    spec = tiny_spec(
        heads={
            "heatmap": {"tensor": "hm", "activation": "probability"},
            "box": {"tensor": "wh"},
            "offset": {"tensor": "reg"},
        }
    )
    found = average_with_mirror(heads, mirrored, spec, {})
    for name, head in heads.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], head.astype(np.float32))


MARKS = {"units": "box", "origin": "top_left"}


@pytest.mark.parametrize(
    ("flip_index", "points", "message"),
    [
        ({}, MARKS, "flip_index has no pairs for it"),
        ({"marks": (0, 1)}, MARKS, "expected pairs of the points 0..2 as flip_index of 'marks', got"),
        ({"marks": (1, 2, 0)}, MARKS, "expected pairs of the points 0..2 as flip_index of 'marks', got"),
        ({"marks": (0, 1, 7)}, MARKS, "expected pairs of the points 0..2 as flip_index of 'marks', got"),
        ({"marks": None, "eyes": None}, MARKS, r"expected the spec's points heads \(marks\) in flip_index, got eyes"),
        ({"marks": PAIRS}, {"units": "box", "origin": "centre"}, "cannot be averaged"),
        ({"marks": PAIRS}, {"units": "cells", "origin": "top_left"}, "cannot be averaged"),
    ],
)  # fmt: skip
def test_points_that_cannot_be_mirrored(
    flip_index: dict[str, Any], points: dict[str, str], message: str
) -> None:
    spec = spec_of({}, "xy", 0.0, points)
    with pytest.raises(InputError, match=message):
        check_flip(spec, flip_index)
    check_flip(spec, {"marks": None})


def test_points_of_the_image_alone() -> None:
    spec = spec_of({}, "xy", 0.0, MARKS)
    random = np.random.default_rng(7)
    shapes = {"hm": 2, "box": 2, "reg": 2, "marks": 6}
    direct, mirrored = (
        {name: random.normal(size=(count, 3, 4)).astype(np.float32) for name, count in shapes.items()}
        for _ in "ab"
    )
    found = average_with_mirror(direct, mirrored, spec, {"marks": None})
    np.testing.assert_array_equal(found["marks"], direct["marks"])
