"""Placements against the official geometry (its own construction of the affine) and against their own inverse."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.presets import preset, spec_from_mapping
from centernet_trt.runtime.spec import InputSpec

sides = st.integers(1, 3000)


def fixed(policy: dict[str, object], width: int = 512, height: int = 384) -> InputSpec:
    size = {"rule": "fixed", "width": width, "height": height}
    return InputSpec.model_validate({"size": size, "resize": policy})


@given(width=sides, height=sides)
def test_fix_res_is_the_official_affine(width: int, height: int) -> None:
    # The official construction: three points, cv2.getAffineTransform.
    centre, scale = np.array([width / 2, height / 2]), float(max(width, height))
    out = np.array([512 / 2, 384 / 2])
    source = np.array([centre, centre + [0, -scale / 2], centre + [-scale / 2, -scale / 2]], dtype=np.float32)
    target = np.array([out, out + [0, -512 / 2], out + [-512 / 2, -512 / 2]], dtype=np.float32)
    expected = cv2.getAffineTransform(source, target)
    found = place(fixed({"policy": "fix_res"}), width, height).matrix()
    # The official points are float32.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@given(width=sides, height=sides, multiple=st.sampled_from([32, 128]))
def test_keep_res_moves_by_whole_pixels(width: int, height: int, multiple: int) -> None:
    spec = spec_from_mapping({"preset": "official", "input": {"size": {"rule": "pad", "multiple": multiple}}})
    p = place(spec.input, width, height)
    assert (p.width, p.height) == ((width | (multiple - 1)) + 1, (height | (multiple - 1)) + 1)
    assert p.width > width
    assert p.height > height
    assert (p.shift_x, p.shift_y) == (p.width // 2 - width // 2, p.height // 2 - height // 2)


@given(width=sides, height=sides, policy=st.sampled_from(["fix_res", "letterbox", "stretch"]))
def test_to_source_undoes_the_matrix(width: int, height: int, policy: str) -> None:
    p = place(fixed({"policy": policy}), width, height)
    points = np.array([[0, 0], [width, height], [width / 3, height / 7]], dtype=np.float32)
    there = points @ p.matrix()[:, :2].T + p.matrix()[:, 2]
    np.testing.assert_allclose(p.to_source(there), points, rtol=1e-5, atol=1e-3)


@given(width=sides, height=sides, upscale=st.booleans(), align=st.sampled_from(["centre", "top_left"]))
def test_letterbox_fits_and_keeps_the_aspect(width: int, height: int, upscale: bool, align: str) -> None:
    p = place(fixed({"policy": "letterbox", "upscale": upscale, "align": align}), width, height)
    assert 0 <= p.left < p.right <= p.width
    assert 0 <= p.top < p.bottom <= p.height
    if min(width, height) * min(512 / width, 384 / height) > 1:
        assert p.scale_x == p.scale_y
    assert upscale or p.scale_x <= 1
    if align == "top_left":
        assert (p.left, p.top) == (0, 0)
    else:
        assert abs((p.width - p.right) - p.left) <= 1
        assert abs((p.height - p.bottom) - p.top) <= 1


@pytest.mark.parametrize(
    ("width", "height", "size"), [(640, 480, (640, 480)), (641, 479, (672, 480)), (1, 1, (32, 32))]
)
def test_multiple_rule(width: int, height: int, size: tuple[int, int]) -> None:
    p = place(preset("centerface").input, width, height)
    assert (p.width, p.height) == size
    assert (p.scale_x, p.scale_y) == (size[0] / width, size[1] / height)
