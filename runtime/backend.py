"""Backend: all that lies between a placed image and its detections, on whichever machine part does it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.device_arrays import DeviceImage
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.gpu_memory import MemoryUse
from centernet_trt.runtime.images import BgrImage

Picture = BgrImage | DeviceImage
"""An image that can be used: (H, W, 3) uint8 on the host, blue first, or one in GPU memory."""

Heads = dict[str, npt.NDArray[np.floating]]


class Request(NamedTuple):
    """An image laid into the network input, and what is asked of it; None stands for the spec's."""

    image: Picture
    placement: Placement
    threshold: float | None = None
    top_k: int | None = None


Batch = Sequence[Request]
"""Images whose placements share one network size."""


class Backend(Protocol):
    """Runs a bundle. Safe to use from many threads; close it."""

    @property
    def note(self) -> str:
        """What the user must know about how the network is run; empty for a TensorRT engine on a GPU."""
        ...

    @property
    def max_batch(self) -> int:
        """Images that run at once."""
        ...

    @property
    def memory(self) -> MemoryUse:
        """What is allocated on the GPU and in page-locked memory."""
        ...

    def check_image(self, image: Picture) -> None:
        """Raise InputError for an image that this backend does not take."""

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """An image of any content, (height, width, 3) uint8, in the memory that this backend reads fastest."""
        ...

    def run(self, batches: Iterable[Batch]) -> list[list[Detections]]:
        """Detections of the images of every batch, each of `max_batch` images at most."""
        ...

    def heads(self, tensor: npt.NDArray[np.floating]) -> Heads:
        """Head tensors (N, C, H, W) on the host, by name, of an input tensor (N, 3, height, width) on the host."""
        ...

    def warm(self, batches: Iterable[Batch]) -> None:
        """Do whatever the first run of each batch's shape would do."""

    def close(self) -> None:
        """Finish what is under way, then free everything. May be called twice."""
