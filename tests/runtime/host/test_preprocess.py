"""The host pre-processing against the official code's steps, against cv2.resize, and against exact bilinear."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.host.preprocess import preprocess, resample
from centernet_trt.runtime.presets import preset, spec_from_mapping
from centernet_trt.runtime.spec import InputSpec


def picture(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exact_bilinear(image: npt.NDArray[np.uint8], p: Placement) -> npt.NDArray[np.float64]:
    """Every network pixel by the words of Placement, in float64, not rounded."""
    half = 0.5 if p.half_pixel else 0.0
    u = (np.arange(p.width) + half - p.shift_x) / p.scale_x - half
    v = (np.arange(p.height) + half - p.shift_y) / p.scale_y - half
    height, width = image.shape[:2]

    def taps(position: Any, size: int) -> list[tuple[Any, Any, Any]]:
        low = np.floor(position).astype(int)
        rows = []
        for index, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
            inside = (index >= 0) & (index < size)
            rows.append((np.clip(index, 0, size - 1), weight, inside | p.replicate))
        return rows

    out = np.zeros((p.height, p.width, 3))
    for yi, yw, yok in taps(v, height):
        for xi, xw, xok in taps(u, width):
            weight = (yw * yok)[:, None] * (xw * xok)[None, :]
            out += image[yi][:, xi] * weight[:, :, None]
    covered = np.zeros((p.height, p.width), dtype=bool)
    covered[p.top : p.bottom, p.left : p.right] = True
    out[~covered] = p.pad_value
    return out


policies = st.sampled_from(
    [
        {"policy": "fix_res"},
        {"policy": "letterbox"},
        {"policy": "letterbox", "upscale": False, "pad_value": 114, "align": "top_left"},
        {"policy": "stretch"},
    ]
)


@settings(max_examples=80, deadline=None)
@given(policy=policies, width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 99))
def test_every_policy_is_exact_bilinear_within_a_grey_level(
    policy: dict[str, Any], width: int, height: int, seed: int
) -> None:
    size = {"rule": "fixed", "width": 64, "height": 48}
    spec = InputSpec.model_validate({"size": size, "resize": policy})
    image, p = picture(seed, height, width), place(spec, width, height)
    difference = np.abs(resample(image, p) - exact_bilinear(image, p))
    assert difference.max() <= 1.0


def test_keep_res_copies_exactly() -> None:
    image = picture(1, 37, 53)
    spec = preset("official").input
    p = place(spec, 53, 37)
    # The official code warps even where nothing is scaled.
    expected = cv2.warpAffine(image, p.matrix(), (p.width, p.height), flags=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resample(image, p), expected)
    np.testing.assert_array_equal(resample(image, p)[int(p.shift_y) :, int(p.shift_x) :][:37, :53], image)


def test_official_normalisation_to_the_last_bit() -> None:
    image = picture(2, 32, 64)
    spec = preset("official")
    p = place(spec.input, 64, 32)
    found = preprocess([image], [p], spec.input)
    mean = np.array([0.40789654, 0.44719302, 0.47026115])
    std = np.array([0.28863828, 0.27408164, 0.27809835])
    expected = ((resample(image, p) / 255.0 - mean) / std).astype(np.float32).transpose(2, 0, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=2e-7, atol=1e-7)


def test_rgb_models_get_red_first_and_fp16_is_rounded_once() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, :] = (10, 20, 30)
    spec = spec_from_mapping({"preset": "mmdet"}).input
    p = place(spec, 32, 32)
    found = preprocess([image], [p], spec, np.float16)
    assert found.dtype == np.float16
    middle = found[0, :, 32, 32]
    expected = ((np.array([30, 20, 10]) - spec.mean) / spec.std).astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(middle, expected)


def test_a_batch_of_different_sizes() -> None:
    spec = preset("ttf-ltrb").input
    images = [picture(n, h, w) for n, (h, w) in enumerate([(20, 30), (700, 40), (512, 512)])]
    placements = [place(spec, i.shape[1], i.shape[0]) for i in images]
    together = preprocess(images, placements, spec)
    assert together.shape == (3, 3, 512, 512)
    for row, (image, p) in enumerate(zip(images, placements, strict=True)):
        np.testing.assert_array_equal(together[row], preprocess([image], [p], spec)[0])


def test_a_sliver_keeps_a_pixel() -> None:
    spec = preset("ttf-ltrb").input
    p = place(spec, 4000, 1)
    assert (p.right - p.left, p.bottom - p.top) == (512, 1)
    assert resample(picture(3, 1, 4000), p).shape == (512, 512, 3)


@pytest.mark.parametrize("value", [0, 255])
def test_padding_is_black_before_normalisation(value: int) -> None:
    spec = preset("official").input
    image = np.full((1, 1, 3), value, dtype=np.uint8)
    found = preprocess([image], [place(spec, 1, 1)], spec)
    corner = found[0, :, 0, 0]
    np.testing.assert_allclose(corner, [-m / s for m, s in zip(spec.mean, spec.std, strict=True)], rtol=1e-6)
