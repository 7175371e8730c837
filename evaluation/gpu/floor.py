"""What nothing on this GPU can beat: copies, and launches of a kernel that does nothing. Measured in the same run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from centernet_trt.errors import CudaError
from centernet_trt.evaluation.clock import WHOLE
from centernet_trt.evaluation.gpu.timer import GpuTimer
from centernet_trt.evaluation.timing import Subject, TimingRules, measure, timed
from centernet_trt.evaluation.timing_statistics import summarise
from centernet_trt.runtime.driver import Device
from centernet_trt.runtime.driver_objects import Stream

TRAIN = 50
"""Launches in a row in one graph: their time over their number is that of one, without the way from the host."""
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class GpuFloor:
    """Rates in bytes a second, medians in seconds.

    Attributes:
        copy: device to device, bytes read and written together.
        upload: pinned host memory to device.
        download: device to pinned host memory.
        launch: an empty kernel between two events.
        train: an empty kernel, one of many in a graph.
        graph: a graph of one empty kernel between two events.
        round_trip: wall time of an empty kernel launched and waited for by the host.
        copy_bytes: size of the copies.
    """

    copy: float
    upload: float
    download: float
    launch: float
    train: float
    graph: float
    round_trip: float
    copy_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


def copy_on_device(device: Device, stream: Stream, target: int, source: int, nbytes: int) -> None:
    """Enqueue a copy from device memory to device memory, by addresses.

    Raises:
        CudaError: the driver refuses.
    """
    from cuda.bindings import driver

    with device.current:
        (status,) = driver.cuMemcpyDtoDAsync(target, source, nbytes, driver.CUstream(stream.number))
    if int(status) != 0:
        raise CudaError(
            f"cuMemcpyDtoDAsync failed: {status.name}", "the device memory is smaller than expected"
        )


@contextmanager
def _copies(timer: GpuTimer, nbytes: int) -> Iterator[dict[str, Subject]]:
    device, stream = timer.device, timer.stream
    with (
        device.allocate(nbytes) as one,
        device.allocate(nbytes) as two,
        device.allocate_pinned(nbytes) as host,
    ):
        host.array[:] = 1  # pages that nobody touched could be shared
        yield {
            "copy": timer.subject(partial(copy_on_device, device, stream, two.address, one.address, nbytes)),
            "upload": timer.subject(partial(stream.copy_to_device, one.address, host.address, nbytes)),
            "download": timer.subject(partial(stream.copy_to_host, host.address, two.address, nbytes)),
        }
        stream.synchronize()


@contextmanager
def _launches(timer: GpuTimer) -> Iterator[dict[str, Subject]]:
    stream, empty = timer.stream, partial(timer.probes.nothing, timer.stream)
    done = timer.device.event()

    def there_and_back() -> None:
        empty()
        stream.record(done)
        done.synchronize()

    def train() -> None:
        for _ in range(TRAIN):
            empty()

    try:
        empty()
        stream.synchronize()
        with timer.recorded(train) as many, timer.recorded(empty) as one:
            yield {
                "launch": timer.subject(empty),
                "train": timer.subject(partial(many.launch, stream), times=TRAIN),
                "graph": timer.subject(partial(one.launch, stream)),
                "round_trip": timed(there_and_back),
            }
            stream.synchronize()
    finally:
        done.close()


def measure_floor(timer: GpuTimer, rules: TimingRules, copy_bytes: int = COPY_BYTES) -> GpuFloor:
    """Measure all of it, in turn.

    Args:
        timer: of the device.
        rules: how long each.
        copy_bytes: size of a copy; far beyond the L2 cache, or it measures that.

    Raises:
        CudaError: out of memory.
    """
    with _copies(timer, copy_bytes) as copies, _launches(timer) as launches:
        samples = measure({**copies, **launches}, rules)
    median = {
        name: summarise([sample[WHOLE] for window in windows for sample in window]).p50
        for name, windows in samples.items()
    }
    return GpuFloor(
        copy=2 * copy_bytes / median["copy"],
        upload=copy_bytes / median["upload"],
        download=copy_bytes / median["download"],
        launch=median["launch"],
        train=median["train"],
        graph=median["graph"],
        round_trip=median["round_trip"],
        copy_bytes=copy_bytes,
    )
