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
    """Bytes held, by purpose; `weights` is the size of the plan's file, about what the engine takes."""

    device: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)

    @property
    def device_total(self) -> int:
        """All device memory."""
        return sum(self.device.values())

    @property
    def pinned_total(self) -> int:
        """All page-locked host memory."""
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
"""An image that can be used: (H, W, 3) uint8 on the host, blue first, or one in GPU memory."""

Heads = dict[str, npt.NDArray[np.floating]]


class InferenceRequest(NamedTuple):
    """An image laid into the network input, and what is asked of it; None stands for the spec's."""

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
        """What the user must know about how the network is run; empty for a TensorRT engine on a GPU."""
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
        """What is allocated on the GPU and in page-locked memory."""
        ...

    def check_image(self, image: LoadedImage) -> None:
        """Raise InputError for an image that this backend does not take."""

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """An image of any content, (height, width, 3) uint8, in the memory that this backend reads fastest."""
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
        """Do whatever the first run of each batch's shape would do."""

    def close(self) -> None:
        """Finish what is under way, then free everything. May be called twice."""


@dataclass(frozen=True)
class GpuOptions:
    """Settings of `Detector.load`.

    Attributes:
        device: number among the visible GPUs, or UUID.
        streams: batches under way at once; each has buffers of its own.
        max_batch: images in a batch; None for the most that the bundle was built for.
        cuda_graph: record each shape's work as a CUDA graph.
        max_graphs: shapes kept by each stream; beyond it the one used longest ago is forgotten.
        max_pixels: of the largest image that comes from the host.
        spin: wait for the GPU without sleeping: some microseconds faster, at the price of a busy core.
        binding: Python package for the driver; `auto` takes PyCUDA where it is installed.
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
                raise InputError(f"{name} is {value}, at least 1 was expected")

    def within(self, profiles: Profiles) -> Self:
        """The options with the largest batch filled in, and held to what the bundle was built for.

        Raises:
            InputError: `max_batch` is outside.
        """
        batches = [profile.batch for profile in profiles]
        wanted = max(batch.max for batch in batches) if self.max_batch is None else self.max_batch
        if not any(wanted in batch for batch in batches):
            raise InputError(
                f"max_batch is {wanted}; the engine was built for batches {' or '.join(map(str, batches))}",
                "rebuild the bundle with another --batch",
            )
        return replace(self, max_batch=wanted)
