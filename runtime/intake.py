"""Images of any source made ready for a backend: read, checked, and laid into the network's input."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.backend import Picture, Request
from centernet_trt.runtime.device_arrays import device_image, is_device_array
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.images import BgrImage, ImageSource, as_bgr
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.profiles import check_size, largest_batch

_BYTE = np.dtype(np.uint8)
_REMEMBERED = 256  # sizes; beyond it all are forgotten


class Intake:
    """What one bundle does with an image before any backend sees it. Safe to use from many threads."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        # A camera's pictures are all of one size, and a placement costs as much Python as a launch.
        self._placements: dict[tuple[int, int], Placement] = {}

    def prepare(self, source: ImageSource, check: Callable[[Picture], None]) -> tuple[Picture, Placement]:
        """The image and where it lies in the network's input.

        Args:
            source: see `Detector.detect`.
            check: raises InputError for an image that the backend does not take.

        Raises:
            InputError: it cannot be used.
        """
        image: Picture
        if isinstance(source, np.ndarray):  # which has DLPack as well
            image = source if _is_ready(source) else as_bgr(source)
        else:
            image = device_image(source) if is_device_array(source) else as_bgr(source)
        check(image)
        height, width, _ = image.shape
        return image, self._placements.get((width, height)) or self.place(width, height)

    def place(self, width: int, height: int) -> Placement:
        """Where an image of this size, in pixels, lies in the network's input.

        Raises:
            InputError: it needs an input that the bundle was not built for.
        """
        placement = place(self._manifest.spec.input, width, height)
        check_size(
            self._manifest.profiles,
            placement.height,
            placement.width,
            lambda: f"an image of {width}x{height} pixels",
            "scale the image down, or rebuild the bundle with wider --width and --height",
        )
        if len(self._placements) >= _REMEMBERED:
            self._placements.clear()
        self._placements[width, height] = placement
        return placement

    def blank_batches(
        self, sizes: Sequence[tuple[int, int]] | None, batches: Sequence[int] | None, largest: int
    ) -> list[list[Request]]:
        """Batches of black images, to warm up with.

        Args:
            sizes: (width, height) in pixels; None for the size that each profile is tuned for.
            batches: how many images each; None for 1 and the largest batch.
            largest: most images that run at once.

        Raises:
            InputError: a size or a batch that the bundle was not built for.
        """
        profiles = self._manifest.profiles
        runs: list[list[Request]] = []
        for width, height in sizes or sorted({(p.width.opt - 1, p.height.opt - 1) for p in profiles}):
            placement = self.place(width, height)
            most = min(largest, largest_batch(profiles, placement.height, placement.width))
            counts = sorted({1, most}) if batches is None else batches
            if any(not 1 <= count <= most for count in counts):
                raise InputError(f"batches are {list(counts)}, 1 to {most} images were expected")
            image = np.zeros((height, width, 3), np.uint8)
            runs += [[Request(image, placement)] * count for count in counts]
        return runs


def _is_ready(array: npt.NDArray[Any]) -> bool:
    """Whether an array is what `as_bgr` would return for it, as most are."""
    shape = array.shape
    return (
        len(shape) == 3
        and shape[2] == 3
        and array.dtype == _BYTE
        and array.flags.c_contiguous
        and array.size > 0
    )


def host_image(source: ImageSource) -> BgrImage:
    """The image on the host, for test-time augmentation.

    Raises:
        InputError: it cannot be used, or lies in GPU memory.
    """
    if is_device_array(source):
        raise InputError(
            "an image in GPU memory was given with tta=, which prepares images on the host",
            "copy it to the host first",
        )
    return as_bgr(source)
