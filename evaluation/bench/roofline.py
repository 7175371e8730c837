"""Lower bounds of latency from bytes moved and operations done, on host and GPU."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from centernet_trt.errors import CudaError, InputError
from centernet_trt.evaluation.bench.gpu_timer import GpuTimer
from centernet_trt.evaluation.bench.statistics import summarise
from centernet_trt.evaluation.bench.timing import WHOLE, Now, Subject, TimingRules, measure, timed
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.manifest import Manifest

# Of the arrays that the rates are measured with: larger than any cache, and large enough for the GEMM's full speed.
_COPY_BYTES = 256 << 20
_GEMM_SIDE = 1536


@dataclass(frozen=True)
class MachineRates:
    """Bytes a second (read and written together) and fp32 operations a second (a multiply-add is two)."""

    bytes_per_second: float
    operations_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0 and self.operations_per_second > 0):
            raise InputError(
                f"rates of {self.bytes_per_second} B/s and {self.operations_per_second} operations/s were given, "
                "positive numbers were expected"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class StageCost:
    """Bytes and operations that a stage cannot do without; `counted` says what they are."""

    bytes: int
    operations: int
    counted: str

    def floor(self, rates: MachineRates) -> float:
        """Seconds, at least: the longer of the two."""
        return max(self.bytes / rates.bytes_per_second, self.operations / rates.operations_per_second)

    def bound(self, rates: MachineRates) -> str:
        """`bytes` or `operations`: which takes longer."""
        memory = self.bytes / rates.bytes_per_second
        return "bytes" if memory >= self.operations / rates.operations_per_second else "operations"


def measure_rates(cores: int, rounds: int = 5, now: Now = time.perf_counter) -> MachineRates:
    """This machine's rates: the best of some copies, one slice a core, and of some fp32 matrix products (all cores)."""
    source, target = np.ones(_COPY_BYTES // 4, np.float32), np.empty(_COPY_BYTES // 4, np.float32)
    slices = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    left = np.ones((_GEMM_SIDE, _GEMM_SIDE), np.float32)
    product = np.empty_like(left)
    copies, products = [], []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(rounds + 1):  # the first touches the pages and starts the threads
            start = now()
            list(pool.map(lambda pair: np.copyto(*pair), slices))
            middle = now()
            np.matmul(left, left, out=product)
            copies.append(middle - start)
            products.append(now() - middle)
    return MachineRates(
        2 * _COPY_BYTES / min(copies[1:]),
        2 * _GEMM_SIDE**3 / min(products[1:]),
        f"measured in this run: NumPy copy of {_COPY_BYTES >> 20} MiB by {cores} threads, fp32 matrix product of "
        f"side {_GEMM_SIDE}, best of {rounds}",
    )


def faster(a: MachineRates, b: MachineRates) -> MachineRates:
    """The better of two measurements, rate by rate: whatever disturbs one of them can only make it slower."""
    bandwidth = max(a.bytes_per_second, b.bytes_per_second)
    return MachineRates(
        bandwidth, max(a.operations_per_second, b.operations_per_second), f"{a.source}, twice"
    )


def stage_costs(manifest: Manifest, placement: Placement, multiply_adds: int | None) -> dict[str, StageCost]:
    """What each stage of one image costs at least.

    Args:
        manifest: of the bundle: types of input and heads, size of the graph's weights.
        placement: of the image in the network input.
        multiply_adds: of the network at that input size; None where they were not counted, and only bytes are.
    """
    item = np.dtype(manifest.input.dtype).itemsize
    outputs = 3 * placement.height * placement.width
    inside = (placement.right - placement.left) * (placement.bottom - placement.top)
    # Bilinear sampling looks at four pixels of an output pixel, and no more than all there are.
    pixels = min(placement.source_width * placement.source_height, 4 * inside)
    cells = (placement.height // manifest.spec.stride) * (placement.width // manifest.spec.stride)
    heads = sum(head.channels * cells * np.dtype(head.dtype).itemsize for head in manifest.heads)
    heat = next(head for head in manifest.heads if head.name == manifest.spec.heads.heatmap.tensor)
    scores = heat.channels * cells
    arithmetic = "operations not counted" if multiply_adds is None else "two operations a multiply-add"
    return {
        "preprocess": StageCost(
            3 * pixels + outputs * item,
            8 * outputs,
            "source pixels read, tensor written; 6 operations to interpolate a value, 2 to normalise it",
        ),
        "network": StageCost(
            manifest.model.bytes + outputs * item + heads,
            2 * (multiply_adds or 0),
            f"weights and tensor read, heads written, nothing between; {arithmetic}",
        ),
        "decode": StageCost(
            scores * np.dtype(heat.dtype).itemsize, scores, "heatmap read once; one comparison a score"
        ),
    }


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
