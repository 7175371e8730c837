"""Statistics of timings: percentiles, whether a measurement held still, and intervals of ratios by bootstrap.

A measurement is a list of windows, each a list of seconds in the order they were taken. Windows matter: samples of
one window share the mood of the machine, so they are not independent, and an interval that takes them for
independent is too narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

Windows = Sequence[Sequence[float]]
Array = npt.NDArray[np.float64]
Statistic = Literal["median", "mean"]
_STATISTICS: dict[Statistic, Callable[[npt.ArrayLike], float]] = {
    "median": lambda values: float(np.median(np.asarray(values, dtype=np.float64))),
    "mean": lambda values: float(np.mean(np.asarray(values, dtype=np.float64))),
}

_CHUNK = 4_000_000
"""Samples that are resampled at once."""

STABLE_WITHIN = 0.10
"""Three windows within 10 %: the default of NVIDIA's perf_analyzer (`--stability-percentage 10`)."""


SAME_WITHIN = 0.01
"""Ratios nearer to 1 are not called a difference: the same program started twice differs by as much from where its code
and data happen to lie (T. Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong", 2009)."""


@dataclass(frozen=True)
class Summary:
    """Percentiles of seconds (linear between samples, as numpy.percentile), and how many samples there were."""

    count: int
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float

    def to_json(self) -> dict[str, float]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class Stability:
    """Whether three successive parts of a measurement agree: their medians in seconds, and largest / smallest - 1."""

    stable: bool
    medians: tuple[float, float, float]
    spread: float


@dataclass(frozen=True)
class Ratio:
    """b / a of two measurements' medians (or means), with a two-sided interval; `verdict` puts it into words."""

    ratio: float
    low: float
    high: float
    confidence: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1 and all within 1 % of it."""
        return self.low > 1.0 + SAME_WITHIN or self.high < 1.0 - SAME_WITHIN

    @property
    def verdict(self) -> str:
        """`no difference`, `faster` or `slower` (of b against a)."""
        if not self.differs:
            return "no difference"
        return "slower" if self.ratio > 1 else "faster"


def summarise(seconds: Sequence[float]) -> Summary:
    """Percentiles of all samples.

    Raises:
        InputError: there are none.
    """
    if not len(seconds):
        raise InputError("there are no samples to summarise", "measure for longer")
    values = np.asarray(seconds, dtype=np.float64)
    p50, p90, p95, p99 = (float(v) for v in np.percentile(values, [50, 90, 95, 99]))
    return Summary(
        len(values), float(values.mean()), float(values.min()), p50, p90, p95, p99, float(values.max())
    )


def flat(windows: Windows) -> list[float]:
    """All samples, in order."""
    return list(chain.from_iterable(windows))


def stability(windows: Windows, within: float = STABLE_WITHIN) -> Stability:
    """Hold three successive parts of a measurement to one another by their medians.

    Args:
        windows: at least three, none empty; where there are more, neighbours are put together into three parts.
        within: largest allowed (largest median / smallest median - 1).

    Raises:
        InputError: fewer than three windows.
    """
    if len(windows) < 3 or not all(len(window) for window in windows):
        raise InputError(
            f"stability needs three windows with samples, found {sum(bool(len(w)) for w in windows)}",
            "measure for longer",
        )
    cuts = [round(part * len(windows) / 3) for part in range(4)]
    first, second, third = (float(np.median(flat(windows[start:stop]))) for start, stop in pairwise(cuts))
    medians = (first, second, third)
    smallest = min(medians)
    spread = max(medians) / smallest - 1 if smallest > 0 else 0.0
    return Stability(spread <= within, medians, spread)


def bootstrap_ratio(
    a: Windows,
    b: Windows,
    statistic: Statistic = "median",
    *,
    in_turn: bool = False,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """The ratio of b's median (or mean) to a's, with a bootstrap percentile interval in two stages.

    Each resample draws windows with replacement, and inside each window blocks of successive samples (moving-block
    bootstrap, Kuensch 1989, block length n^(1/3)), because neither windows nor neighbouring samples are alike by
    chance only. On independent samples the interval is about 1.4 times as wide as it had to be; where the machine
    drifts between windows it stays honest. What no interval inside one run can see is a change between two runs.

    Args:
        a: what is divided by.
        b: what is divided.
        statistic: of all samples.
        in_turn: the windows of both were measured in turn, the first of a beside the first of b and so on: both then
            get the same windows in a resample, and a drift that met both cancels out.
        confidence: of the interval.
        resamples: how many.
        seed: the same seed gives the same interval.

    Raises:
        InputError: one of them has no samples, or, in turn, not equally many windows.
    """
    first, second = ([np.asarray(w, dtype=np.float64) for w in windows if len(w)] for windows in (a, b))
    if not first or not second:
        raise InputError("a measurement without samples cannot be compared", "measure for longer")
    if in_turn and len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} windows cannot have been measured in turn")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(first), size=(resamples, len(first)))
    other = chosen if in_turn else rng.integers(len(second), size=(resamples, len(second)))
    drawn = _resampled(second, other, statistic, rng) / _resampled(first, chosen, statistic, rng)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    of = _STATISTICS[statistic]
    return Ratio(of(flat(b)) / of(flat(a)), float(low), float(high), confidence)


def _resampled(
    arrays: Sequence[Array], chosen: npt.NDArray[np.int64], statistic: Statistic, rng: np.random.Generator
) -> Array:
    """The statistic (resamples,) of measurements made of the chosen windows (resamples, windows)."""
    longest = max(len(array) for array in arrays)
    # Some resamples at a time: all at once could be gigabytes.
    chunk = max(1, _CHUNK // (longest * len(arrays)))
    parts = (chosen[start : start + chunk] for start in range(0, len(chosen), chunk))
    return np.concatenate([_some(arrays, longest, part, statistic, rng) for part in parts])


def _some(
    arrays: Sequence[Array],
    longest: int,
    chosen: npt.NDArray[np.int64],
    statistic: Statistic,
    rng: np.random.Generator,
) -> Array:
    """`_resampled` of some. A short window leaves NaN behind it, which sorts to the end."""
    drawn = np.full((*chosen.shape, longest), np.nan)
    for index, array in enumerate(arrays):
        row, slot = np.nonzero(chosen == index)
        drawn[row, slot, : len(array)] = _blocks(array, len(row), rng)
    values = drawn.reshape(len(chosen), -1)
    count = np.count_nonzero(~np.isnan(values), axis=1)
    if statistic == "mean":
        return np.asarray(np.nansum(values, axis=1) / count)
    values = np.sort(values, axis=1)
    row = np.arange(len(values))
    return np.asarray((values[row, (count - 1) // 2] + values[row, count // 2]) / 2)


def _blocks(window: Array, rows: int, rng: np.random.Generator) -> Array:
    """Rows (rows, n) of as many samples as the window has, drawn in blocks that wrap around its end."""
    count = len(window)
    length = max(1, round(count ** (1 / 3)))
    starts = rng.integers(count, size=(rows, -(-count // length)))
    places = (starts[:, :, None] + np.arange(length)) % count
    return np.asarray(window[places.reshape(rows, -1)[:, :count]])
