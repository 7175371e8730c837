"""The statistics against distributions whose answers are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.statistics import Ratio, bootstrap_ratio, flat, stability, summarise


def test_percentiles_of_an_exponential_distribution() -> None:
    # The quantile q of an exponential distribution with mean 1 is -ln(1 - q).
    found = summarise(np.random.default_rng(1).exponential(1.0, 200_000).tolist())
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert getattr(found, name) == pytest.approx(-math.log(1 - share), rel=0.02)
    assert found.mean == pytest.approx(1.0, rel=0.01)
    assert found.count == 200_000


def test_percentiles_of_few_samples_by_hand() -> None:
    found = summarise([4.0, 1.0, 3.0, 2.0])
    assert (found.minimum, found.p50, found.maximum) == (1.0, 2.5, 4.0)
    assert found.p90 == pytest.approx(3.7)  # linear between the third and the fourth: 0.9 * 3 = 2.7
    assert summarise([7.0]).p99 == 7.0
    with pytest.raises(InputError, match="no samples"):
        summarise([])


def test_stability_is_the_spread_of_three_medians() -> None:
    still = stability([[1.0, 1.05], [1.0], [1.08]])
    assert still.stable
    assert still.spread == pytest.approx(0.08)
    moved = stability([[1.0], [1.0], [1.2]])
    assert not moved.stable
    assert moved.medians == (1.0, 1.0, 1.2)
    # Six windows are taken two by two: one slow window of six does not move a median of eight samples far.
    six = stability([[1.0] * 4, [1.0] * 4, [1.0] * 4, [1.0] * 5, [1.01] * 4, [1.3] * 3])
    assert six.medians[2] == pytest.approx(1.01)
    for windows in ([[1.0], [1.0]], [[1.0], [1.0], []]):
        with pytest.raises(InputError, match="three windows"):
            stability(windows)


Windows = list[list[float]]


def steady(rng: np.random.Generator, centre: float = 1.0) -> Windows:
    """Independent samples with a long tail, as latencies have."""
    return [(centre * rng.lognormal(0, 0.1, 20)).tolist() for _ in range(6)]


def sluggish(rng: np.random.Generator, centre: float = 1.0) -> Windows:
    """Neighbours resemble each other: an AR(1) process with correlation 0.7."""
    windows = []
    for _ in range(6):
        noise = [rng.normal()]
        for _ in range(19):
            noise.append(0.7 * noise[-1] + math.sqrt(1 - 0.49) * rng.normal())
        windows.append([centre * math.exp(0.1 * value) for value in noise])
    return windows


def moody(rng: np.random.Generator, centre: float = 1.0) -> Windows:
    """Each window has a mood of its own, far larger than the noise within it."""
    return [(centre * math.exp(rng.normal(0, 0.05)) * rng.lognormal(0, 0.01, 20)).tolist() for _ in range(6)]


def leaves_one_out(found: Ratio) -> bool:
    """Whether the interval misses the truth, for two measurements of the same."""
    return not found.low <= 1.0 <= found.high


@pytest.mark.parametrize("make", [steady, sluggish, moody])
def test_no_difference_is_found_where_there_is_none(make: Callable[..., Windows]) -> None:
    """A 95 % interval may leave 1 out in 5 % of the cases; 200 of them with this seed."""
    rng = np.random.default_rng(7)
    wrong = sum(
        leaves_one_out(bootstrap_ratio(make(rng), make(rng), resamples=200, seed=row)) for row in range(150)
    )
    assert wrong <= 15  # 10 %: six windows are few, and the machine's moods are drawn from them


def test_intervals_that_ignore_the_windows_would_be_wrong() -> None:
    # The same data as one long window: what resampling the windows is for.
    rng = np.random.default_rng(7)
    wrong = sum(
        leaves_one_out(bootstrap_ratio([flat(moody(rng))], [flat(moody(rng))], resamples=200, seed=row))
        for row in range(60)
    )
    assert wrong > 15


@pytest.mark.parametrize("make", [steady, sluggish])
def test_a_planted_slowdown_of_ten_percent_is_found(make: Callable[..., Windows]) -> None:
    rng = np.random.default_rng(11)
    found = [bootstrap_ratio(make(rng), make(rng, 1.1), resamples=200, seed=row) for row in range(40)]
    assert sum(ratio.verdict == "slower" for ratio in found) >= (38 if make is steady else 25)
    assert sum(ratio.low <= 1.1 <= ratio.high for ratio in found) >= 36
    assert np.median([ratio.ratio for ratio in found]) == pytest.approx(1.1, rel=0.02)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.011, 1.2, "slower"),
        (1.009, 1.2, "no difference"),
        (0.9, 0.991, "no difference"),
        (0.9, 0.989, "faster"),
        (0.9, 1.1, "no difference"),
    ],
)
def test_what_is_within_a_percent_is_no_difference(low: float, high: float, verdict: str) -> None:
    assert Ratio((low + high) / 2, low, high, 0.95).verdict == verdict


def test_means_and_directions() -> None:
    rng = np.random.default_rng(3)
    slow, quick = steady(rng, 2.0), steady(rng)
    assert bootstrap_ratio(slow, quick).verdict == "faster"
    assert bootstrap_ratio(quick, slow, "mean").ratio == pytest.approx(2.0, rel=0.05)
    same = bootstrap_ratio(quick, quick)
    assert (same.ratio, same.verdict) == (1.0, "no difference")
    assert bootstrap_ratio(quick, slow, seed=5) == bootstrap_ratio(quick, slow, seed=5)
    with pytest.raises(InputError, match="without samples"):
        bootstrap_ratio([[]], quick)


def test_interleaved_windows_cancel_a_common_drift() -> None:
    rng = np.random.default_rng(5)
    apart = together = wrong = 0
    for row in range(30):
        # The machine's mood of each window meets both.
        moods = np.exp(rng.normal(0, 0.15, 12))
        first, same, slow = (
            [(factor * mood * rng.lognormal(0, 0.03, 15)).tolist() for mood in moods]
            for factor in (1, 1, 1.1)
        )
        apart += bootstrap_ratio(first, slow, resamples=300, seed=row).differs
        together += bootstrap_ratio(first, slow, interleaved=True, resamples=300, seed=row).differs
        wrong += bootstrap_ratio(first, same, interleaved=True, resamples=300, seed=row).differs
    assert together >= 25
    assert apart <= 15
    assert wrong <= 3
    with pytest.raises(InputError, match="interleaved"):
        bootstrap_ratio([[1.0]] * 3, [[1.0]] * 4, interleaved=True)
