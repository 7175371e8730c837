"""Thresholds against a brute-force oracle, and against what the recipes of others give."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from centernet_trt.builder.calibration.histogram import BINS, Histogram
from centernet_trt.builder.calibration.thresholds import (
    LEVELS,
    METHODS,
    all_thresholds,
    divergences,
    entropy_threshold,
    mse_threshold,
    percentile_threshold,
    signal_to_noise,
)


def oracle(counts: NDArray[np.int64], kept: int, correct: bool) -> float:
    """KL(P || Q) for one candidate, bin by bin, as S. Migacz describes it."""
    count = [float(c) for c in counts]
    if correct:
        count[0] = count[1]
    p = count[:kept]
    outliers = sum(count[kept:])
    q = [0.0] * kept
    for level in range(LEVELS):
        members = [j for j in range(kept) if j * LEVELS // kept == level]
        filled = [j for j in members if count[j] > 0]
        for j in filled:
            q[j] = sum(count[m] for m in members) / len(filled)
    p[-1] += outliers
    total_p, total_q = sum(p), sum(q)
    if total_q == 0:
        return np.inf
    result = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            if b == 0:
                return np.inf
            result += a / total_p * np.log((a / total_p) / (b / total_q))
    return result


def corrected(counts: NDArray[np.int64], correct: bool) -> NDArray[np.int64]:
    """With bin 0 set to bin 1, as the product does; without it the method as it was published."""
    return np.concatenate([counts[1:2], counts[1:]]) if correct else counts


def published_threshold(histogram: Histogram) -> float:
    """The entropy method without the correction of bin 0: what TensorRT's first calibrators did."""
    found = divergences(histogram.counts)
    kept = LEVELS + len(found) - 1 - int(np.argmin(found[::-1]))
    return histogram.amax if kept == BINS else float((kept + 0.5) * histogram.width)


def histogram_of(values: NDArray[np.floating]) -> Histogram:
    values = np.asarray(values, dtype=np.float32)
    made = Histogram(float(np.abs(values).max(initial=0)))
    made.add(values)
    return made


def sample(kind: str, seed: int = 0, size: int = 20_000) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    made = {
        "normal": lambda: rng.standard_normal(size),
        "relu": lambda: np.maximum(rng.standard_normal(size), 0),
        "heavy": lambda: rng.standard_t(2, size),
        "one-sided": lambda: rng.exponential(1, size),
        "spiky": lambda: np.where(rng.random(size) < 0.9, 0.5, rng.standard_normal(size)),
        "two values": lambda: rng.choice([0.0, 3.0], size),
        "constant": lambda: np.full(size, 2.5),
        "empty": lambda: np.zeros(size),
        "lognormal": lambda: rng.lognormal(0, 1, size),
        "outlier": lambda: np.append(rng.standard_normal(size - 1), 1000.0),
    }
    return made[kind]().astype(np.float32)


KINDS = ["normal", "relu", "heavy", "one-sided", "spiky", "two values", "constant", "outlier"]


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_divergences_equal_the_oracle(kind: str, correct: bool) -> None:
    counts = histogram_of(sample(kind)).counts
    found = divergences(corrected(counts, correct))
    assert found.shape == (BINS - LEVELS + 1,)
    for kept in [128, 129, 200, 255, 256, 257, 777, 1024, 2047, 2048]:
        expected = oracle(counts, kept, correct)
        assert found[kept - LEVELS] == pytest.approx(expected, abs=1e-9), kept


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=160, max_size=160),
    st.lists(st.tuples(st.integers(0, 159), st.integers(1, 10**6)), max_size=4),
    st.booleans(),
)
def test_divergences_equal_the_oracle_on_any_counts(
    base: list[int], spikes: list[tuple[int, int]], correct: bool
) -> None:
    counts = np.array(base, dtype=np.int64)
    for place, height in spikes:
        counts[place] = height
    if counts[1:].sum() == 0:
        return
    found = divergences(corrected(counts, correct))
    expected = [oracle(counts, kept, correct) for kept in range(LEVELS, 161)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_threshold_is_the_best_candidate(kind: str) -> None:
    histogram = histogram_of(sample(kind))
    found = divergences(corrected(histogram.counts, True))
    threshold = entropy_threshold(histogram)
    if threshold == histogram.amax:
        kept = BINS
    else:
        kept = round(threshold / histogram.width - 0.5)
        assert threshold == pytest.approx((kept + 0.5) * histogram.width)
    assert found[kept - LEVELS] == found.min()


def test_the_correction_of_bin_0_keeps_relu_tensors_from_collapsing() -> None:
    histogram = histogram_of(sample("relu", size=2_000_000))
    assert published_threshold(histogram) < 2.3
    assert entropy_threshold(histogram) > 3.8


@pytest.mark.parametrize("kind", ["normal", "heavy", "lognormal"])
def test_the_published_threshold_is_the_oracles(kind: str) -> None:
    """The counter-example is the method itself, not a fault of its fast form: a bin-by-bin search agrees."""
    histogram = histogram_of(sample(kind))
    kept = round(published_threshold(histogram) / histogram.width - 0.5)
    best = oracle(histogram.counts, kept, False)
    others = range(LEVELS, BINS + 1, 61)
    assert best <= min(oracle(histogram.counts, other, False) for other in others) + 1e-12


def test_entropy_is_not_the_maximum_by_another_name() -> None:
    """The planted impostor: a calibrator with one candidate, the full range, as 128 bins and 128 levels have."""

    def impostor(histogram: Histogram) -> float:
        few = histogram.counts.reshape(LEVELS, -1).sum(axis=1)
        found = divergences(corrected(few, True))
        assert len(found) == 1
        return histogram.amax

    for kind in ("heavy", "lognormal"):
        tailed = histogram_of(sample(kind, size=300_000))
        assert entropy_threshold(tailed) < 0.3 * impostor(tailed)
        assert all_thresholds(tailed)["max"] == impostor(tailed)


def squared_error(values: NDArray[np.floating], threshold: float) -> float:
    """Of int8 as ONNX defines it, value by value."""
    scale = threshold / 127
    return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mse_threshold_loses_least_on_the_values_themselves(kind: str) -> None:
    values = np.abs(sample(kind)).astype(np.float64)
    histogram = histogram_of(values)
    candidates = np.arange(LEVELS, BINS + 1) * histogram.width
    best = min(squared_error(values, t) for t in candidates[::3])
    found = mse_threshold(histogram)
    assert np.abs(candidates - found).min() <= 1e-9 * found
    # The histogram knows a value to half a bin only.
    assert squared_error(values, found) <= 1.02 * best + histogram.width**2 / 3


def test_the_mse_threshold_equals_a_brute_force_over_bins() -> None:
    for kind in ("heavy", "one-sided", "spiky"):
        histogram = histogram_of(sample(kind))
        centres = np.repeat((np.arange(BINS) + 0.5) * histogram.width, histogram.counts)
        candidates = np.arange(LEVELS, BINS + 1, dtype=np.float64) * histogram.width
        kept = round(mse_threshold(histogram) / histogram.width)
        near = [k for k in range(kept - 40, kept + 41) if LEVELS <= k <= BINS]
        errors = [squared_error(centres, candidates[k - LEVELS]) for k in near]
        assert errors[near.index(kept)] == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("kind", ["constant", "two values"])
def test_a_tensor_of_one_magnitude_keeps_it(kind: str) -> None:
    values = sample(kind)
    assert all_thresholds(histogram_of(values)) == pytest.approx(dict.fromkeys(METHODS, float(values.max())))


def test_a_tensor_of_zeros_has_no_threshold() -> None:
    histogram = histogram_of(sample("empty"))
    assert set(all_thresholds(histogram).values()) == {0.0}
    assert histogram.counts[0] == 20_000
    assert signal_to_noise(histogram, 0.0) == float("inf")


def test_percentile_leaves_out_what_it_says() -> None:
    values = np.arange(1, 100_001, dtype=np.float32)
    histogram = histogram_of(values)
    assert percentile_threshold(histogram, 99.9) == pytest.approx(99_900, rel=1 / BINS)
    assert percentile_threshold(histogram, 100.0) == histogram.amax


def test_the_order_of_values_does_not_matter() -> None:
    values = sample("heavy")
    whole = histogram_of(values)
    parts = Histogram(whole.amax)
    for part in np.array_split(np.random.default_rng(1).permutation(values), 7):
        parts.add(part)
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(values)


@pytest.mark.parametrize("amax", [1e-42, 1e-38, 1e30])
def test_extreme_ranges_are_counted(amax: float) -> None:
    values = np.linspace(-amax, amax, 1001).astype(np.float32)
    histogram = histogram_of(values)
    assert histogram.counts.sum() == 1001
    assert histogram.counts[-1] >= 2
    assert np.count_nonzero(histogram.counts) > 100 or amax < 1e-40  # subnormals have few distinct values


def test_signal_to_noise_is_that_of_the_values() -> None:
    values = sample("normal", size=200_000)
    histogram = histogram_of(values)
    for threshold in (1.0, 3.0, histogram.amax):
        step = threshold / 127
        noise = values - np.clip(np.rint(values / step), -127, 127) * step
        measured = 10 * np.log10((values.astype(float) ** 2).sum() / (noise.astype(float) ** 2).sum())
        assert signal_to_noise(histogram, threshold) == pytest.approx(measured, abs=0.1)


def test_the_search_is_twenty_times_faster_than_a_loop_over_candidates() -> None:
    """The loop: one NumPy evaluation for each candidate, on a part of them; the ratio holds for all."""
    counts = corrected(histogram_of(sample("heavy", size=200_000)).counts, True)

    def one(kept: int) -> float:
        count = counts[:kept].astype(np.float64)
        p = count.copy()
        p[-1] += counts[kept:].sum()
        level = np.arange(kept) * LEVELS // kept
        filled = np.bincount(level, count > 0, LEVELS)
        q = np.where(count > 0, np.bincount(level, count, LEVELS)[level] / np.maximum(filled, 1)[level], 0)
        p, q = p / p.sum(), q / q.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(p > 0, p * np.log(p / q), 0).sum())

    divergences(counts)
    start = time.process_time()
    for _ in range(5):
        found = divergences(counts)
    ours = (time.process_time() - start) / 5
    candidates = range(LEVELS, BINS + 1, 8)
    start = time.process_time()
    loop = [one(kept) for kept in candidates]
    theirs = (time.process_time() - start) * 8
    np.testing.assert_allclose(found[::8], loop, atol=1e-9)
    # 34 measured on a quiet machine; half of that leaves room for a busy one.
    assert theirs > 15 * ours, f"loop {theirs:.4f} s, ours {ours:.4f} s"
