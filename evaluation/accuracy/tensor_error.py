"""Error of a candidate's tensors against a reference's: `TensorError`, summed up by `ErrorSum`."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

__all__ = ["ErrorSum", "TensorError"]


@dataclass(frozen=True)
class TensorError:
    """The error of a candidate against a reference, over all values that are finite in both.

    Attributes:
        count: number of values.
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        magnitude: largest magnitude of the reference.
        sqnr_db: signal to quantisation noise in dB, 10 * log10(sum(reference^2) / sum(difference^2)); None if no value
            differs.
        cosine: of the angle between both as vectors; 1 if both are zero.
        unequal: number of values that are infinite or NaN in one tensor and not the same in the other.
    """

    count: int
    max_abs: float
    mean_abs: float
    magnitude: float
    sqnr_db: float | None
    cosine: float
    unequal: int

    @property
    def identical(self) -> bool:
        """Whether no value differs."""
        return self.max_abs == 0 and self.unequal == 0

    @property
    def max_rel(self) -> float:
        """`max_abs` over `magnitude`; 0 if both are 0."""
        return self.max_abs / self.magnitude if self.magnitude else (math.inf if self.max_abs else 0.0)

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


class ErrorSum:
    """Accumulates the error over images, in float64."""

    def __init__(self) -> None:
        self._count = self._unequal = 0
        self._max = self._magnitude = 0.0
        # Sums of |a - b|, (a - b)^2, a^2, b^2 and a * b.
        self._sums = np.zeros(5)

    def add(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
        """Add one pair of tensors.

        Args:
            reference: of any shape.
            candidate: of the same shape.

        Returns:
            The mean absolute difference of this pair.

        Raises:
            InputError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise InputError(f"expected tensors of one shape, got {reference.shape} and {candidate.shape}")
        a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self._unequal += int(np.count_nonzero(~finite & ~same))
            a, b = a[finite], b[finite]
        difference = np.abs(a - b)
        self._count += len(a)
        self._max = max(self._max, float(difference.max(initial=0.0)))
        self._magnitude = max(self._magnitude, float(np.abs(a).max(initial=0.0)))
        self._sums += (difference.sum(), difference @ difference, a @ a, b @ b, a @ b)
        return float(difference.mean()) if len(a) else 0.0

    def result(self) -> TensorError:
        """The error over everything added so far."""
        absolute, noise, signal, other, product = (float(value) for value in self._sums)
        sqnr = None if noise == 0 else (10 * math.log10(signal / noise) if signal else -math.inf)
        norm = math.sqrt(signal * other)
        return TensorError(
            count=self._count,
            max_abs=self._max,
            mean_abs=absolute / self._count if self._count else 0.0,
            magnitude=self._magnitude,
            sqnr_db=None if sqnr is None else max(sqnr, -999.0),
            cosine=product / norm if norm else (1.0 if signal == other else 0.0),
            unequal=self._unequal,
        )
