"""How much of a tensor survives int8 at a threshold, computed from its histogram."""

import numpy as np
import numpy.typing as npt

from centernet_trt.builder.calibration.histogram import BINS, Histogram

__all__ = ["coarse", "signal_to_noise"]

_LEVELS = 127
COARSE_BINS = 64


def signal_to_noise(histogram: Histogram, threshold: float) -> float:
    """Signal-to-quantisation-noise ratio in dB, of values spread evenly inside each bin.

    Rounding costs (step^2) / 12 where a step is wider than a bin, saturation the square of what is cut off. inf for a
    tensor of zeros, which int8 holds exactly.
    """
    counts = histogram.counts.astype(np.float64)
    if histogram.amax <= 0 or threshold <= 0:
        return float("inf")
    # Sixteen points a bin stand for its values: a step is narrower than a bin where the threshold is below 6 % of amax.
    offsets = (np.arange(16) + 0.5) / 16
    values = ((np.arange(BINS)[:, None] + offsets) * histogram.width).reshape(BINS, -1)
    # Exact zeros dominate what a ReLU leaves; bin 0 is mostly they, and they cost nothing.
    step = threshold / _LEVELS
    error = (values - np.minimum(np.rint(values / step), _LEVELS) * step) ** 2
    noise = float(counts[1:] @ error[1:].mean(axis=1))
    signal = float(counts[1:] @ (values[1:] ** 2).mean(axis=1))
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else float("inf")


def coarse(histogram: Histogram) -> npt.NDArray[np.int64]:
    """(64,): the histogram in 64 bins, for drawing."""
    sums: npt.NDArray[np.int64] = histogram.counts.reshape(COARSE_BINS, -1).sum(axis=1)
    return sums
