"""Clipping thresholds from histograms: entropy, squared error, percentile, max."""

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from centernet_trt.builder.calibration.histogram import BINS, Histogram

__all__ = [
    "LEVELS",
    "METHODS",
    "Method",
    "all_thresholds",
    "coarse",
    "divergences",
    "entropy_threshold",
    "find_threshold",
    "max_threshold",
    "mse_threshold",
    "percentile_threshold",
    "signal_to_noise",
]

LEVELS = 128
"""Levels of the quantised distribution: int8's magnitudes 0..127."""
Method = Literal["entropy", "mse", "percentile", "max"]
METHODS: tuple[Method, ...] = ("entropy", "mse", "percentile", "max")
PERCENTILE = 99.99
_LARGEST = LEVELS - 1
_COARSE_BINS = 64
_PART = 64


def signal_to_noise(histogram: Histogram, threshold: float) -> float:
    """Signal-to-quantisation-noise ratio in dB, of values spread evenly inside each bin.

    Rounding costs (step^2) / 12 where a step is wider than a bin, saturation the square of what is cut off.

    Args:
        histogram: of |x|.
        threshold: largest magnitude that int8 represents, in the unit of x.

    Returns:
        inf for a tensor of zeros, which int8 represents exactly.
    """
    counts = histogram.counts.astype(np.float64)
    if histogram.amax <= 0 or threshold <= 0:
        return float("inf")
    # Sixteen points per bin stand for its values: a step is narrower than a bin for a threshold below 6 % of amax.
    offsets = (np.arange(16) + 0.5) / 16
    values = ((np.arange(BINS)[:, None] + offsets) * histogram.width).reshape(BINS, -1)
    # Exact zeros dominate the output of a ReLU; bin 0 is mostly zeros, and they cost nothing.
    step = threshold / _LARGEST
    error = (values - np.minimum(np.rint(values / step), _LARGEST) * step) ** 2
    noise = float(counts[1:] @ error[1:].mean(axis=1))
    signal = float(counts[1:] @ (values[1:] ** 2).mean(axis=1))
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else float("inf")


def coarse(histogram: Histogram) -> npt.NDArray[np.int64]:
    """The histogram in 64 bins, (64,) int64, for drawing."""
    sums: npt.NDArray[np.int64] = histogram.counts.reshape(_COARSE_BINS, -1).sum(axis=1)
    return sums


def find_threshold(histogram: Histogram, method: Method, percentile: float = PERCENTILE) -> float:
    """Choose a threshold by one method.

    Args:
        histogram: of |x|.
        method: see the function of its name.
        percentile: of the values that must not be clipped, for `percentile`.

    Returns:
        In the unit of x; 0 for a tensor that is always zero.
    """
    if method == "max":
        return max_threshold(histogram)
    if method == "percentile":
        return percentile_threshold(histogram, percentile)
    if method == "mse":
        return mse_threshold(histogram)
    return entropy_threshold(histogram)


def all_thresholds(histogram: Histogram) -> dict[Method, float]:
    """The threshold by each method."""
    return {method: find_threshold(histogram, method) for method in METHODS}


def max_threshold(histogram: Histogram) -> float:
    """The largest magnitude seen."""
    return histogram.amax


def percentile_threshold(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The upper edge of the first bin below which there are at least `percentile` % of the values."""
    cumulative = np.cumsum(histogram.counts)
    if histogram.amax <= 0 or not cumulative[-1]:
        return 0.0
    wanted = cumulative[-1] * (percentile / 100)
    place = min(int(np.searchsorted(cumulative, wanted)), BINS - 1)
    return float((place + 1) * histogram.width)


def mse_threshold(histogram: Histogram) -> float:
    """The threshold with the smallest mean squared error of int8, a whole number of bins, at least 128.

    Every value counts as the centre of its bin. Of equally good candidates the widest is taken.
    """
    if histogram.amax <= 0:
        return 0.0
    errors = _squared_errors(BINS) @ histogram.counts.astype(np.float64)
    best = np.flatnonzero(errors <= errors.min() * (1 + 1e-9))  # equal but for the rounding of the sums
    kept = LEVELS + int(best[-1])
    return histogram.amax if kept == BINS else float(kept * histogram.width)


def entropy_threshold(histogram: Histogram) -> float:
    """The threshold with the smallest divergence, (i + 0.5) bins for i kept bins, or `amax` for all bins.

    The method is S. Migacz's ("8-bit Inference with TensorRT", GTC 2017) with one correction: bin 0 takes the count of
    bin 1. After a ReLU, bin 0 holds mostly exact zeros, which int8 represents without an error; counted, they make the
    divergence prefer thresholds that clip most other values. Of equally good candidates the widest is taken.
    """
    if histogram.amax <= 0:
        return 0.0
    counts = histogram.counts.copy()
    counts[0] = counts[1]
    found = divergences(counts)
    kept = LEVELS + len(found) - 1 - int(np.argmin(found[::-1]))
    if kept == BINS or not np.isfinite(found[kept - LEVELS]):
        return histogram.amax
    return float((kept + 0.5) * histogram.width)


def divergences(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute KL(P || Q) in nats for every candidate; element k keeps the first LEVELS + k bins.

    Bin j of i belongs to level floor(j * LEVELS / i); Q spreads the count of a level evenly over those of its bins
    that are not empty. Where P has outliers in a last bin that is empty in Q the divergence is inf.

    All sums over bins are differences of one integer prefix sum, so a candidate costs 128 steps, not i:
    sum p log q = sum over levels of (mass of P in the level) * log(its count / its non-empty bins).

    Args:
        counts: (bins,) of a histogram of |x|.

    Returns:
        (bins - LEVELS + 1,) float64.
    """
    bins = len(counts)
    kept = np.arange(LEVELS, bins + 1)
    edges = _edges(bins)
    # Whole numbers below 2^53 are exact in float64.
    below = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    some = np.concatenate([[0.0], np.cumsum(counts > 0, dtype=np.float64)])
    total, inside = float(below[-1]), below[kept]
    if not total:
        return np.full(len(kept), np.inf)
    outliers, last = total - inside, counts[kept - 1].astype(np.float64)
    cross = np.empty(len(kept))
    with np.errstate(divide="ignore", invalid="ignore"):
        # In parts that fit into the processor's cache: twice as fast.
        for part in (slice(start, start + _PART) for start in range(0, len(kept), _PART)):
            mass = np.diff(below[edges[part]], axis=1)
            density = mass / np.diff(some[edges[part]], axis=1)
            density[mass == 0] = 1.0  # an empty level counts for nothing: the logarithm of 1
            np.log(density, out=density)
            cross[part] = np.einsum("kl,kl->k", mass, density) + outliers[part] * density[:, -1]
        plain = np.concatenate([[0.0], np.cumsum(_x_log_x(counts))])
        # The last bin of P holds the outliers too.
        own = plain[kept - 1] + _x_log_x(last + outliers)
        # p = c / total and q = d / inside, so sum p (log p - log q) splits off the two totals.
        found = (own - cross) / total - np.log(total) + np.log(inside)
    undefined = (inside == 0) | ((outliers > 0) & (last == 0))
    return np.where(undefined, np.inf, found)


@lru_cache(maxsize=4)
def _edges(bins: int) -> npt.NDArray[np.intp]:
    """First bin of each level, (candidates, LEVELS + 1): the smallest j with floor(j * LEVELS / i) = level."""
    kept = np.arange(LEVELS, bins + 1)
    edges: npt.NDArray[np.intp] = -(-kept[:, None] * np.arange(LEVELS + 1) // LEVELS)
    edges.flags.writeable = False
    return edges


@lru_cache(maxsize=1)
def _squared_errors(bins: int) -> npt.NDArray[np.float64]:
    """Squared errors of bin centres, in bins, (candidates, bins); row k keeps the first LEVELS + k bins."""
    centres = np.arange(bins) + 0.5
    scale = np.arange(LEVELS, bins + 1)[:, None] / _LARGEST
    found = np.rint(centres / scale)
    np.minimum(found, _LARGEST, out=found)
    found *= scale
    found -= centres
    np.square(found, out=found)
    found.flags.writeable = False
    return found


def _x_log_x(values: npt.NDArray[np.int64] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    number = values.astype(np.float64)
    result: npt.NDArray[np.float64] = number * np.log(np.where(number > 0, number, 1.0))
    return result
