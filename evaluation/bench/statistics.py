"""Statistics of timings: percentiles, stability, rates of requests, and ratios with bootstrap intervals.

A measurement is a list of windows, each a list of seconds in the order in which they were taken. The samples of one
window share the state of the machine, so they are not independent, and an interval that treats them as independent is
too narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

Item = TypeVar("Item")
Windows = Sequence[Sequence[float]]
Array = npt.NDArray[np.float64]
Statistic = Literal["median", "mean"]
_STATISTICS: dict[Statistic, Callable[[Array], Any]] = {"median": np.median, "mean": np.mean}

STABLE_WITHIN = 0.10
"""Three windows within 10 %: the default of NVIDIA's perf_analyzer (`--stability-percentage 10`)."""

SAME_WITHIN = 0.01
"""Ratios nearer to 1 are not called a difference: the same program started twice differs by as much from where its code
and data happen to be placed (T. Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong", 2009)."""


@dataclass(frozen=True)
class Summary:
    """Percentiles of seconds (linear between samples, as numpy.percentile), and the number of samples."""

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
    """Whether three successive parts of a measurement agree.

    Attributes:
        stable: whether they do.
        medians: of the parts, in seconds.
        spread: largest / smallest median - 1.
    """

    stable: bool
    medians: tuple[float, float, float]
    spread: float


@dataclass(frozen=True)
class Ratio:
    """b / a of two measurements' medians (or means), with a two-sided interval."""

    ratio: float
    low: float
    high: float
    confidence: float

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1 and everything within 1 % of it."""
        return self.low > 1.0 + SAME_WITHIN or self.high < 1.0 - SAME_WITHIN

    @property
    def verdict(self) -> str:
        """`no difference`, `faster` or `slower` (of b against a)."""
        if not self.differs:
            return "no difference"
        return "slower" if self.ratio > 1 else "faster"


@dataclass(frozen=True)
class TimedRequest:
    """A batch of images that was answered.

    Attributes:
        start: when it was sent, in seconds.
        end: when its answer came, in seconds.
        images: its size.
    """

    start: float
    end: float
    images: int


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


def centre(windows: Windows, statistic: Statistic) -> float:
    """The median or mean of all samples."""
    return float(_STATISTICS[statistic](np.asarray(flat(windows), dtype=np.float64)))


def stability(windows: Windows, within: float = STABLE_WITHIN) -> Stability:
    """Compare the medians of three successive parts of a measurement.

    Args:
        windows: at least three, none empty; neighbours are joined into three parts where there are more.
        within: largest allowed (largest median / smallest median - 1).

    Raises:
        InputError: fewer than three windows.
    """
    if len(windows) < 3 or not all(len(window) for window in windows):
        raise InputError(
            f"expected three windows with samples to judge stability, got {sum(bool(len(w)) for w in windows)}",
            "measure for longer",
        )
    first, second, third = (float(np.median(flat(part))) for part in in_thirds(windows))
    medians = (first, second, third)
    smallest = min(medians)
    spread = max(medians) / smallest - 1 if smallest > 0 else 0.0
    return Stability(spread <= within, medians, spread)


def in_thirds(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Three successive parts of a sequence, as equally long as can be."""
    cuts = [round(part * len(items) / 3) for part in range(4)]
    return [items[start:stop] for start, stop in pairwise(cuts)]


def part_rates(requests: Sequence[TimedRequest]) -> tuple[float, float, float]:
    """Images a second in three successive parts with equally many answers.

    A part lasts from the last answer of the part before it (the first part: from the first answer, which does not
    count) to its own last, so that neither the start nor unfinished requests at the end distort it.

    Raises:
        InputError: fewer than four requests.
    """
    if len(requests) < 4:
        raise InputError(
            f"expected four or more answered requests, got {len(requests)}", "measure for longer"
        )
    ends = [requests[0].end, *(part[-1].end for part in in_thirds(requests[1:]))]
    first, second, third = (
        _rate(part, since) for part, since in zip(in_thirds(requests[1:]), ends, strict=False)
    )
    return first, second, third


def whole_rate(requests: Sequence[TimedRequest]) -> float:
    """Images a second from the first answer (which does not count) to the last; InputError for fewer than two."""
    if len(requests) < 2:
        raise InputError(f"expected two or more answered requests, got {len(requests)}", "measure for longer")
    return _rate(requests[1:], requests[0].end)


def _rate(requests: Sequence[TimedRequest], since: float) -> float:
    elapsed = requests[-1].end - since
    return sum(request.images for request in requests) / elapsed if elapsed > 0 else float("inf")


def bootstrap_ratio(
    a: Windows,
    b: Windows,
    statistic: Statistic = "median",
    *,
    interleaved: bool = False,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Ratio:
    """The ratio of b's median (or mean) to a's, with a bootstrap percentile interval over the windows.

    Each resample draws whole windows with replacement, since the samples within one are not independent. It draws two
    fewer than there are: with as many as there are, the interval of only six windows misses the truth in 11 % of the
    cases instead of 5 %. No interval from within one run covers a change between two runs.

    Args:
        a: the denominator.
        b: the numerator.
        statistic: of all samples.
        interleaved: the windows of both were measured alternately, the first of a beside the first of b and so on: both
            then get the same windows in a resample, and a drift that affects both cancels out.
        confidence: of the interval.
        resamples: how many.
        seed: the same seed gives the same interval.

    Raises:
        InputError: one of them has no samples, or, interleaved, not equally many windows.
    """
    first, second = ([np.asarray(w, dtype=np.float64) for w in windows if len(w)] for windows in (a, b))
    if not first or not second:
        raise InputError("a measurement without samples cannot be compared", "measure for longer")
    if interleaved and len(first) != len(second):
        raise InputError(f"expected equally many interleaved windows, got {len(first)} and {len(second)}")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(first), size=(resamples, max(1, len(first) - 2)))
    other = chosen if interleaved else rng.integers(len(second), size=(resamples, max(1, len(second) - 2)))
    of = _STATISTICS[statistic]
    drawn = _resampled(second, other, of) / _resampled(first, chosen, of)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Ratio(centre(b, statistic) / centre(a, statistic), float(low), float(high), confidence)


def _resampled(windows: Sequence[Array], chosen: npt.NDArray[np.int64], of: Callable[[Array], Any]) -> Array:
    """The statistic (resamples,) of the chosen windows (resamples, draws), once for each set that occurs."""
    sets, places = np.unique(np.sort(chosen, axis=1), axis=0, return_inverse=True)
    values = np.array(
        [of(np.concatenate([windows[i] for i in indices])) for indices in sets], dtype=np.float64
    )
    return values[places.reshape(-1)]
