"""Histogram: counts of a tensor's magnitudes in bins that do not depend on the order of the images."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Histogram"]

BINS = 2048
"""Bins of a histogram; the number of the published method."""

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins from 0 to `amax`; a value of `amax` itself falls into the last bin.

    The edges come from a first pass over all images, so the counts, sums of integers, do not depend on the order and
    the batches of the images.

    Attributes:
        amax: upper edge of the last bin, the largest |x| of the first pass; 0 for a tensor of zeros.
        counts: (BINS,) int64.
    """

    amax: float
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.amax / BINS

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the values of an array of any shape, none larger in magnitude than `amax`."""
        if self.amax <= 0:
            self.counts[0] += values.size
            return
        # float32 throughout: half the memory traffic of float64, and the same arithmetic for every value, whatever
        # array it is in. Only a factor beyond float32 (amax below 6e-36) needs float64.
        factor = BINS / self.amax
        kind = np.float32 if factor < float(np.finfo(np.float32).max) else np.float64
        scaled = np.abs(values.reshape(-1)).astype(kind, copy=False)
        index = np.multiply(scaled, kind(factor)).astype(np.int32)
        np.minimum(index, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)
