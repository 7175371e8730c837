"""The exact top-K against a brute-force oracle written from the contract, cell by cell."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from centernet_trt.runtime.host.decode import find_peaks, stored_threshold, to_score


def brute_force(maps: npt.NDArray[Any], k: int, threshold: float, plateau: str) -> list[tuple[int, float]]:
    """(flat index, value) of the best peaks, straight from the contract."""
    classes, height, width = maps.shape
    found = []
    for c in range(classes):
        for y in range(height):
            for x in range(width):
                value = float(maps[c, y, x])
                if np.isnan(value) or value < threshold:
                    continue
                neighbours = list(_neighbours(maps[c], y, x))
                if any(other > value for _, other in neighbours):
                    continue
                if plateau == "first" and any(
                    other == value and place < (y, x) for place, other in neighbours
                ):
                    continue
                found.append(((c * height + y) * width + x, value))
    found.sort(key=lambda peak: (-peak[1], peak[0]))
    return found[:k]


def _neighbours(plane: npt.NDArray[Any], y: int, x: int) -> Iterator[tuple[tuple[int, int], float]]:
    for ny in range(max(y - 1, 0), min(y + 2, plane.shape[0])):
        for nx in range(max(x - 1, 0), min(x + 2, plane.shape[1])):
            if (ny, nx) != (y, x):
                yield (ny, nx), float(plane[ny, nx])


# Few distinct values make ties and plateaus; the special ones are the nasty ones.
tied = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, np.inf, -np.inf, np.nan])
any_float = st.floats(width=16, allow_nan=True, allow_infinity=True)
shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9)


@st.composite
def maps(draw: st.DrawFn) -> npt.NDArray[Any]:
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    return draw(hnp.arrays(dtype, draw(shapes), elements=draw(st.sampled_from([tied, any_float]))))


@settings(max_examples=400, deadline=None)
@given(
    heat=maps(),
    k=st.integers(1, 40),
    threshold=st.sampled_from([-np.inf, -1.0, 0.0, 1.0, np.inf]),
    plateau=st.sampled_from(["all", "first"]),
)
@example(heat=np.zeros((2, 4, 4), dtype=np.float32), k=5, threshold=-np.inf, plateau="all")
@example(heat=np.full((1, 3, 3), np.nan, dtype=np.float32), k=5, threshold=-np.inf, plateau="all")
def test_equals_brute_force(heat: Any, k: int, threshold: float, plateau: Any) -> None:
    found = find_peaks(heat, k, threshold, plateau)
    expected = brute_force(heat.astype(np.float32), k, threshold, plateau)
    assert found.index.tolist() == [index for index, _ in expected]
    assert found.value.tolist() == [value for _, value in expected]


@pytest.mark.parametrize("plateau", ["all", "first"])
@pytest.mark.parametrize("kind", ["random", "few levels", "constant", "nan", "stripes"])
def test_large_maps_equal_brute_force(kind: str, plateau: Any) -> None:
    # Large enough for the search by levels, which small maps never reach.
    shape = (5, 64, 48)
    random = np.random.default_rng(7)
    heat = {
        "random": lambda: random.normal(-4, 2, shape),
        "few levels": lambda: random.integers(0, 3, shape),
        "constant": lambda: np.full(shape, -1.25),
        "nan": lambda: np.where(random.random(shape) < 0.5, np.nan, random.normal(size=shape)),
        "stripes": lambda: np.broadcast_to(np.arange(48) % 2, shape),
    }[kind]().astype(np.float32)
    found = find_peaks(heat, 100, -np.inf, plateau)
    expected = brute_force(heat, 100, -np.inf, plateau)
    assert found.index.tolist() == [index for index, _ in expected]
    assert found.value.tolist() == [value for _, value in expected]


def test_fewer_peaks_than_k_are_all_found_far_below_the_best() -> None:
    heat = np.full((1, 64, 64), -50.0, dtype=np.float32)
    heat[0, 10, 10], heat[0, 40, 40] = 3.0, -49.0
    heat[0, 20:, :20] = np.linspace(-60, -50.5, 44 * 20, dtype=np.float32).reshape(44, 20)
    expected = brute_force(heat, 200, -np.inf, "all")
    assert find_peaks(heat, 200).index.tolist() == [index for index, _ in expected]


def test_distinct_logits_that_share_the_score_one_keep_their_order() -> None:
    heat = np.full((1, 1, 5), -10.0, dtype=np.float32)
    heat[0, 0, 0], heat[0, 0, 4] = 40.0, 50.0
    found = find_peaks(heat, 2)
    assert found.index.tolist() == [4, 0]
    assert to_score(found.value, "logits").tolist() == [1.0, 1.0]


@given(threshold=st.floats(0, 1, width=32), activation=st.sampled_from(["logits", "probability"]))
@example(threshold=1.0, activation="logits")
@example(threshold=0.0, activation="logits")
@example(threshold=5e-45, activation="logits")
def test_stored_threshold_is_the_smallest_value_with_that_score(threshold: float, activation: Any) -> None:
    stored = np.float32(stored_threshold(threshold, activation))
    if threshold == 0:
        assert stored == -np.inf
        return
    assert to_score(np.array([stored]), activation)[0] >= np.float32(threshold)
    below = np.nextafter(stored, np.float32(-np.inf))
    assert to_score(np.array([below]), activation)[0] < np.float32(threshold)


def test_score_of_extreme_logits() -> None:
    extreme = np.array([np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0], dtype=np.float32)
    assert to_score(extreme, "logits").tolist() == [1.0, 0.0, 1.0, 0.0, 0.5, 0.5]
