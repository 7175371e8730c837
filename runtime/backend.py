"""The interface of an inference backend (GPU or CPU), its options and its memory use."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.cuda.interop import DeviceImage
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.profiles import Profiles


@dataclass(frozen=True)
class MemoryUse:
    """Memory that a backend has allocated, in bytes.

    Attributes:
        device: bytes on the GPU by purpose; `weights` is the size of the plan's file, about what the engine takes.
        pinned: bytes of pinned host memory by purpose.
    """

    device: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)

    @property
    def device_total(self) -> int:
        """Total bytes on the GPU."""
        return sum(self.device.values())

    @property
    def pinned_total(self) -> int:
        """Total bytes of pinned host memory."""
        return sum(self.pinned.values())

    def __str__(self) -> str:
        parts = [
            f"{name} ({where}): {size / 2**20:.1f} MiB"
            for where, sizes in (("device", self.device), ("pinned", self.pinned))
            for name, size in sizes.items()
        ]
        return (
            f"{self.device_total / 2**20:.1f} MiB on the device, {self.pinned_total / 2**20:.1f} MiB pinned: "
            + "; ".join(parts)
        )


LoadedImage = BgrImage | DeviceImage
"""A validated image: (H, W, 3) uint8 on the host, blue first, or one in GPU memory."""

Heads = dict[str, npt.NDArray[np.floating]]
"""Head tensors on the host, by name; float32 or float16."""


class InferenceRequest(NamedTuple):
    """An image to run, and the options that its decode needs.

    Attributes:
        image: on the host or in GPU memory.
        placement: of the image in the network input.
        threshold: lowest score to return, 0..1; None for the spec's.
        top_k: maximum number of detections; None for the spec's.
    """

    image: LoadedImage
    placement: Placement
    threshold: float | None = None
    top_k: int | None = None


Batch = Sequence[InferenceRequest]
"""Images whose placements share one network size."""

Mark = Callable[[str], None]
"""Called at the end of each stage of a batch, with the stage's name."""


def ignore_mark(stage: str) -> None:
    """Do nothing at the end of a stage."""


class Backend(Protocol):
    """Runs a bundle. Safe to use from many threads; close it."""

    @property
    def note(self) -> str:
        """A remark for the user on how the network runs; empty for a TensorRT engine on a GPU."""
        ...

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that `run` marks, in order."""
        ...

    @property
    def max_batch(self) -> int:
        """Images that run at once."""
        ...

    @property
    def memory(self) -> MemoryUse:
        """Bytes allocated on the GPU and in pinned memory."""
        ...

    def check_image(self, image: LoadedImage) -> None:
        """Raise InputError for an image that this backend does not take."""

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """An uninitialised image (height, width, 3) uint8 in the memory that this backend reads fastest."""
        ...

    def run(self, batches: Iterable[Batch], mark: Mark | None = None) -> list[list[Detections]]:
        """Run batches of at most `max_batch` images.

        Args:
            batches: images each whose placements share one network size.
            mark: called at the end of every stage of every batch, as `stages` names them; the batches then run one
                after the other. A stage's work is done when it is marked (host), or enqueued on the stream (GPU).

        Returns:
            For every batch, the detections of each of its images.
        """
        ...

    def heads(self, tensor: npt.NDArray[np.floating]) -> Heads:
        """Head tensors (N, C, H, W) on the host, by name, of an input tensor (N, 3, height, width) on the host."""
        ...

    def warm(self, batches: Iterable[Batch]) -> None:
        """Do ahead of time what the first run of each batch's shape would do."""

    def close(self) -> None:
        """Finish the batches in flight, then free everything. May be called twice."""


@dataclass(frozen=True)
class GpuOptions:
    """Settings of `Detector.load`.

    Attributes:
        device: the GPU, by number among the visible ones or by UUID.
        streams: batches in flight at once; each has its own buffers.
        max_batch: maximum number of images in a batch; None for the largest that the bundle was built for.
        cuda_graph: capture the work of each shape as a CUDA graph.
        max_graphs: CUDA graphs kept per stream; the least recently used is dropped.
        max_pixels: width * height of the largest image uploaded from the host.
        spin: busy-wait for the GPU: some microseconds faster, but it occupies a core.
        binding: Python package for the driver; `auto` takes PyCUDA if it is installed.

    Raises:
        InputError: a number less than 1.
    """

    device: int | str = 0
    streams: int = 2
    max_batch: int | None = None
    cuda_graph: bool = True
    max_graphs: int = 16
    max_pixels: int = 4096 * 3072
    spin: bool = True
    binding: BindingName = "auto"

    def __post_init__(self) -> None:
        for name in ("streams", "max_batch", "max_graphs", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"expected at least 1 as {name}, got {value}")

    def within(self, profiles: Profiles) -> Self:
        """Fill in the largest batch, and check it against what the bundle was built for.

        Args:
            profiles: of the bundle.

        Raises:
            InputError: no profile contains `max_batch`.
        """
        batches = [profile.batch for profile in profiles]
        wanted = max(batch.max for batch in batches) if self.max_batch is None else self.max_batch
        if not any(wanted in batch for batch in batches):
            raise InputError(
                f"expected a max_batch that the engine was built for ({' or '.join(map(str, batches))}), got {wanted}",
                "rebuild the bundle with another --batch",
            )
        return replace(self, max_batch=wanted)
