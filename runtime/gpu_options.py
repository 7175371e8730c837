"""How a detector uses the GPU."""

from dataclasses import dataclass, replace
from typing import Self

from centernet_trt.errors import InputError
from centernet_trt.runtime.driver_binding import BindingName
from centernet_trt.runtime.profiles import Profiles


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
