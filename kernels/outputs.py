"""One buffer for everything that decode writes, so that a single copy brings a batch's results to the host."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 256


@dataclass(frozen=True)
class DecodeRows:
    """Decode's output for a batch as arrays on the host, views into one buffer.

    `count` (N,) int32; `xyxy` (N, rows, 4) float32 source-image pixels; `score` (N, rows) float32; `label` (N, rows)
    int32; `extra` (N, rows, extra_columns) float32. Rows past an image's count are zeros with label -1.
    """

    count: npt.NDArray[np.int32]
    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    extra: npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecodeLayout:
    """Where each output lies in the buffer: byte offsets, each aligned to 256, for `batch` images of `rows` rows."""

    batch: int
    rows: int
    extra_columns: int

    @property
    def count(self) -> int:
        """Offset of int32[batch]."""
        return 0

    @property
    def xyxy(self) -> int:
        """Offset of float32[batch][rows][4]."""
        return _aligned(self.count + 4 * self.batch)

    @property
    def score(self) -> int:
        """Offset of float32[batch][rows]."""
        return _aligned(self.xyxy + 16 * self.batch * self.rows)

    @property
    def label(self) -> int:
        """Offset of int32[batch][rows]."""
        return _aligned(self.score + 4 * self.batch * self.rows)

    @property
    def extra(self) -> int:
        """Offset of float32[batch][rows][extra_columns]."""
        return _aligned(self.label + 4 * self.batch * self.rows)

    @property
    def nbytes(self) -> int:
        """Size of the whole buffer in bytes."""
        return _aligned(self.extra + 4 * self.batch * self.rows * self.extra_columns)

    def view(self, buffer: npt.NDArray[np.uint8]) -> DecodeRows:
        """The outputs in a host copy of the buffer, (nbytes,) uint8, without copying them."""
        n, k, e = self.batch, self.rows, self.extra_columns

        def part(offset: int, items: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
            return buffer[offset : offset + 4 * items].view(dtype)

        return DecodeRows(
            count=part(self.count, n, np.int32).reshape(n).view(np.int32),
            xyxy=part(self.xyxy, n * k * 4, np.float32).reshape(n, k, 4).view(np.float32),
            score=part(self.score, n * k, np.float32).reshape(n, k).view(np.float32),
            label=part(self.label, n * k, np.int32).reshape(n, k).view(np.int32),
            extra=part(self.extra, n * k * e, np.float32).reshape(n, k, e).view(np.float32),
        )


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
