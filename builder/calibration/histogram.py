"""Histograms of |x|, one for each tensor: exact counts that do not depend on the order they were made in."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Histogram"]

BINS = 2048
"""Bins of a histogram; the number of the published method."""

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of |x| in `BINS` equal bins from 0 to `amax`; a value of `amax` itself falls into the last.

    The edges come from a first pass over all images, so the counts are the same in whatever order and batches the
    images come: sums of integers.

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
        """Take in an array of any shape, of values no larger in magnitude than `amax`."""
        if self.amax <= 0:
            self.counts[0] += values.size
            return
        # float32 throughout: half the memory traffic of float64, and every value meets the same arithmetic
        # whatever array it came in. A factor beyond float32 (amax below 6e-36) is the one case that needs float64.
        factor = BINS / self.amax
        kind = np.float32 if factor < float(np.finfo(np.float32).max) else np.float64
        scaled = np.abs(values.reshape(-1)).astype(kind, copy=False)
        index = np.multiply(scaled, kind(factor)).astype(np.int32)
        np.minimum(index, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)
