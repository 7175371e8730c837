"""Boxes, points and order of the host decode, against the official outputs and a plain Python oracle."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import ModelError
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.host.decode import check_heads, decode
from centernet_trt.runtime.presets import preset, spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec, PointsExtra


def official_spec(width: int, height: int) -> ModelSpec:
    return spec_from_mapping(
        {
            "preset": "official",
            "input": {
                "size": {"rule": "fixed", "width": width, "height": height},
                "resize": {"policy": "fix_res"},
            },
            "class_names": [],
            "category_ids": [],
        }
    )


def seeded_heads(key: str) -> dict[str, npt.NDArray[np.float32]]:
    b, c, h, w = map(int, key.split("x"))
    random = np.random.default_rng([1, b, c, h, w])
    return {
        "hm": random.normal(-4, 2, (b, c, h, w)).astype(np.float32),
        "wh": random.uniform(1, 40, (b, 2, h, w)).astype(np.float32),
        "reg": random.uniform(0, 1, (b, 2, h, w)).astype(np.float32),
    }


@pytest.mark.shared
def test_equals_the_official_decode(shared: Path) -> None:
    reference = np.load(shared / "reference" / "decode.seed1.npz")
    keys = [name.removeprefix("grid_") for name in reference.files if name.startswith("grid_")]
    assert len(keys) == 3
    for key in keys:
        batch, _, height, width = map(int, key.split("x"))
        spec = official_spec(4 * width, 4 * height)
        in_image = place(spec.input, 640, 480)
        for kind, placement in {"grid": grid_placement(width, height), "image": in_image}.items():
            found = decode(seeded_heads(key), spec, [placement] * batch, threshold=0.0)
            for detections, rows in zip(found, reference[f"{kind}_{key}"], strict=True):
                assert len(detections) == len(rows) == 100
                # 1e-4 of the coordinates' size: the 8 cells wide map is stretched to thousands of pixels.
                limit = 1e-4 * max(1.0, float(np.abs(rows[:, :4]).max()) / 100)
                np.testing.assert_allclose(detections.xyxy, rows[:, :4], rtol=0, atol=limit)
                np.testing.assert_allclose(detections.score, rows[:, 4], rtol=0, atol=1e-6)
                np.testing.assert_array_equal(detections.label, rows[:, 5])


def grid_placement(width: int, height: int) -> Placement:
    """The placement whose source coordinates are the cells of the output grid."""
    return Placement(
        source_width=width, source_height=height, width=4 * width, height=4 * height, scale_x=4.0, scale_y=4.0,
        shift_x=0.0, shift_y=0.0, half_pixel=False, replicate=False, left=0, top=0, right=4 * width,
        bottom=4 * height, pad_value=0,
    )  # fmt: skip


def expected_row(
    heads: dict[str, Any], spec: ModelSpec, p: Placement, c: int, y: int, x: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Box and extras of one cell in plain Python, straight from the words of ModelSpec."""

    def back(px: float, py: float) -> tuple[float, float]:
        return (px - p.shift_x) / p.scale_x, (py - p.shift_y) / p.scale_y

    cx, cy = x + spec.cell_offset, y + spec.cell_offset
    if spec.heads.offset is not None:
        pair = [float(v) for v in heads["off"][:, y, x]]
        dx, dy = pair if spec.heads.offset.order == "xy" else pair[::-1]
        cx, cy = cx + dx, cy + dy
    values = [float(v) for v in heads["box"][:, y, x]]
    box = spec.heads.box
    unit = spec.stride if box.units == "cells" else 1
    mx, my = cx * spec.stride, cy * spec.stride
    if box.encoding == "ltrb":
        left, top, right, bottom = values if box.order == "xy" else (values[i] for i in (1, 0, 3, 2))
        corners = [mx - left * unit, my - top * unit, mx + right * unit, my + bottom * unit]
    else:
        w, h = values if box.order == "xy" else values[::-1]
        if box.encoding == "log_wh":
            w, h = math.exp(w), math.exp(h)
        corners = [mx - w * unit / 2, my - h * unit / 2, mx + w * unit / 2, my + h * unit / 2]
    x1, y1 = back(*corners[:2])
    x2, y2 = back(*corners[2:])
    row = [x1, y1, x2, y2]
    if spec.clip:
        row = [min(max(v, 0), (p.source_width, p.source_height)[i % 2]) for i, v in enumerate(row)]
    extras = {}
    for extra in spec.heads.extra:
        raw = [float(v) for v in heads[extra.tensor][:, y, x]]
        if isinstance(extra, PointsExtra):
            start = {"cell": (x * spec.stride, y * spec.stride), "centre": (mx, my), "top_left": corners[:2]}
            size = {
                "cells": (spec.stride, spec.stride),
                "input": (1, 1),
                "box": (corners[2] - corners[0], corners[3] - corners[1]),
            }[extra.units]
            raw = [
                v
                for a, b in zip(raw[::2], raw[1::2], strict=True)
                for vx, vy in [(a, b) if extra.order == "xy" else (b, a)]
                for v in back(start[extra.origin][0] + vx * size[0], start[extra.origin][1] + vy * size[1])
            ]
        extras[extra.name] = raw
    return row, extras


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    order = st.sampled_from(["xy", "yx"])
    data: dict[str, Any] = {
        "input": {
            "size": {"rule": "fixed", "width": 32, "height": 24},
            "resize": draw(st.sampled_from([{"policy": "fix_res"}, {"policy": "letterbox"}, {"policy": "stretch"}])),
        },
        "heads": {
            "heatmap": {"tensor": "hm", "activation": draw(st.sampled_from(["logits", "probability"]))},
            "box": {
                "tensor": "box",
                "encoding": draw(st.sampled_from(["wh", "ltrb", "log_wh"])),
                "units": draw(st.sampled_from(["cells", "input"])),
                "order": draw(order),
            },
            "extra": [
                {
                    "kind": "points", "name": "points", "tensor": "points", "points": 3, "order": draw(order),
                    "units": draw(st.sampled_from(["cells", "input", "box"])),
                    "origin": draw(st.sampled_from(["cell", "centre", "top_left"])),
                },
                {"kind": "raw", "name": "embedding", "tensor": "raw", "channels": 4},
            ],
        },
        "cell_offset": draw(st.sampled_from([0.0, 0.5])),
        "clip": draw(st.booleans()),
        "top_k": 7,
    }  # fmt: skip
    if draw(st.booleans()):
        data["heads"]["offset"] = {"tensor": "off", "order": draw(order)}
    return spec_from_mapping(data)


@settings(max_examples=120, deadline=None)
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float32, np.float16]))
def test_every_encoding_equals_the_plain_oracle(spec: ModelSpec, seed: int, dtype: Any) -> None:
    random = np.random.default_rng(seed)
    channels = {"hm": 3, "box": spec.heads.box.channels, "off": 2, "points": 6, "raw": 4}
    heads = {n: random.normal(0.2, 0.8, (2, c, 6, 8)).astype(dtype) for n, c in channels.items()}
    placements = [place(spec.input, 50, 31), place(spec.input, 17, 90)]
    for row, detections in enumerate(decode(heads, spec, placements, threshold=0.1)):
        image_heads = {name: head[row] for name, head in heads.items()}
        assert len(detections) <= 7
        for n in range(len(detections)):
            cells = np.argwhere(
                image_heads["hm"][detections.label[n]]
                == _stored(detections.score[n], image_heads, spec, detections.label[n])
            )
            boxes = [
                expected_row(image_heads, spec, placements[row], int(detections.label[n]), *map(int, c))
                for c in cells
            ]
            errors = [
                max(
                    float(np.abs(detections.xyxy[n] - box).max() / (1 + np.abs(box).max())),
                    *(
                        float(np.abs(detections.extra[k][n] - v).max() / (1 + np.abs(v).max()))
                        for k, v in extras.items()
                    ),
                )
                for box, extras in boxes
            ]
            assert min(errors) < 1e-5


def _stored(score: Any, heads: dict[str, Any], spec: ModelSpec, label: Any) -> Any:
    """The stored value of the heatmap whose score is the one found."""
    stored = heads["hm"][label].astype(np.float64)
    scores = 1 / (1 + np.exp(-stored)) if spec.heads.heatmap.activation == "logits" else stored
    return heads["hm"][label].reshape(-1)[np.abs(scores - score).argmin()]


def test_half_a_cell_and_the_centerface_size_rule() -> None:
    # One cell, by hand: centre (2 + 0.5 + 0.1, 1 + 0.5 + 0.2) cells; size exp(ln 2), exp(ln 3) cells of 4 pixels.
    spec = preset("centerface")
    heads = {
        "537": np.zeros((1, 1, 8, 8), dtype=np.float32),
        "538": np.full((1, 2, 8, 8), 0, dtype=np.float32),
        "539": np.zeros((1, 2, 8, 8), dtype=np.float32),
        "540": np.zeros((1, 10, 8, 8), dtype=np.float32),
    }
    heads["537"][0, 0, 1, 2] = 0.9
    heads["538"][0, :, 1, 2] = np.log([3, 2])  # height first
    heads["539"][0, :, 1, 2] = [0.2, 0.1]  # y first
    heads["540"][0, 2:4, 1, 2] = [1.0, 0.5]  # the second point: bottom edge, middle of the width
    (found,) = decode(heads, spec, [place(spec.input, 32, 32)])
    np.testing.assert_allclose(found.xyxy, [[6.4, 0.8, 14.4, 12.8]], rtol=1e-6)
    np.testing.assert_allclose(found.extra["landmarks"][0, :4], [6.4, 0.8, 10.4, 12.8], rtol=1e-6)
    assert found.score.tolist() == [np.float32(0.9)]


def test_threshold_keeps_scores_that_equal_it_and_top_k_cuts() -> None:
    spec = preset("mmdet")
    heads = {
        "center_heatmap": np.zeros((1, 80, 8, 8), dtype=np.float32),
        "wh": np.ones((1, 2, 8, 8), dtype=np.float32),
        "offset": np.zeros((1, 2, 8, 8), dtype=np.float32),
    }
    for n, score in enumerate([0.5, 0.3, 0.29, 0.8]):
        heads["center_heatmap"][0, n, 2, 2] = score
    placements = [place(spec.input, 31, 31)]
    assert decode(heads, spec, placements, threshold=0.3)[0].label.tolist() == [3, 0, 1]
    assert decode(heads, spec, placements, threshold=0.3, top_k=2)[0].label.tolist() == [3, 0]
    assert len(decode(heads, spec, placements, threshold=1.0)[0]) == 0


def test_nothing_found_has_the_shapes_of_nothing() -> None:
    spec = preset("centerface")
    channels = {"537": 1, "538": 2, "539": 2, "540": 10}
    heads = {name: np.zeros((1, c, 8, 8), dtype=np.float32) for name, c in channels.items()}
    (found,) = decode(heads, spec, [place(spec.input, 32, 32)])
    assert len(found) == 0
    assert (found.xyxy.shape, found.extra["landmarks"].shape) == ((0, 4), (0, 10))
    assert found.to_json() == found.to_coco(1) == []


def test_wrong_heads_are_named() -> None:
    spec = preset("official")
    good = {"hm": (1, 80, 4, 4), "wh": (1, 2, 4, 4), "reg": (1, 2, 4, 4)}
    check_heads(good, spec)
    for change, words in (
        ({"wh": (1, 4, 4, 4)}, r"'wh' has shape \(1, 4, 4, 4\), expected \(N, 2, H, W\)"),
        ({"hm": (1, 20, 4, 4)}, r"'hm' has shape .* expected \(N, 80, H, W\)"),
        ({"reg": (1, 2, 8, 8)}, r"the heatmap's grid of \(4, 4\) cells in head 'reg', got \(8, 8\)"),
        ({"wh": (2, 4, 4)}, "'wh' has shape"),
    ):
        with pytest.raises(ModelError, match=words):
            check_heads(good | change, spec)
    with pytest.raises(ModelError, match="'reg' is missing"):
        check_heads({"hm": (1, 80, 4, 4), "wh": (1, 2, 4, 4)}, spec)
