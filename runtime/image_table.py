"""The descriptors of a batch's images, at the beginning of an upload buffer."""

from typing import Any

from centernet_trt.kernels.structs import Image
from centernet_trt.runtime.backend import Request
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.gpu_memory import descriptor_bytes
from centernet_trt.runtime.kernel_params import absent_image, image_descriptor
from centernet_trt.runtime.spec import ModelSpec

_REMEMBERED = 256  # descriptors; beyond it all are forgotten


class ImageTable:
    """Writes descriptors into page-locked memory. One batch at a time.

    Those of recent calls are remembered: filling in the fields of one costs as much Python as all else in an upload.
    """

    def __init__(self, address: int, spec: ModelSpec) -> None:
        """Use the memory at this address."""
        self._address, self._spec = address, spec
        self._tables: dict[int, tuple[Any, int]] = {}
        self._known: dict[tuple[int, float | None, int | None, int, int], tuple[Placement, Image]] = {}
        self._absent = absent_image()

    def of_batch(self, batch: int) -> tuple[Any, int]:
        """The descriptors of a batch as a ctypes array, and the offset of the first image behind them."""
        found = self._tables.get(batch)
        if found is None:
            table = (Image * batch).from_address(self._address)
            found = self._tables[batch] = table, descriptor_bytes(batch)
        return found

    def put(
        self, table: Any, row: int, request: Request, pixels: int, pitch: int = 0, channels: int = 3
    ) -> None:
        """Describe an image: what is asked of it, where it lies on the device, and in what layout."""
        placement = request.placement
        key = (id(placement), request.threshold, request.top_k, pitch, channels)
        found = self._known.get(key)
        if found is None or found[0] is not placement:
            asked = (placement, self._spec, request.threshold, request.top_k)
            found = placement, image_descriptor(*asked, pitch=pitch, channels=channels)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = found
        descriptor = found[1]
        descriptor.pixels = pixels
        table[row] = descriptor  # copied

    def put_absent(self, table: Any, row: int) -> None:
        """Describe a row without an image; it has no detections."""
        table[row] = self._absent
