"""Roofline: lower bounds of latency from bytes moved and operations done, on the host and on a GPU."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from centernet_trt.errors import CudaError, InputError
from centernet_trt.evaluation.bench.gpu_timer import GpuTimer
from centernet_trt.evaluation.bench.report import LowerBound
from centernet_trt.evaluation.bench.statistics import summarise
from centernet_trt.evaluation.bench.timing import WHOLE, Now, Subject, TimingRules, measure, timed
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.manifest import Manifest

# Sizes that the rates are measured with: larger than any cache, and large enough for the GEMM's full speed.
_COPY_BYTES = 256 << 20
_GEMM_SIDE = 1536


@dataclass(frozen=True)
class MachineRates:
    """Peak rates of a machine.

    Attributes:
        bytes_per_second: read and written together.
        operations_per_second: in fp32, a multiply-add is two; infinity where they were not measured.
        source: of the figures, in words.
    """

    bytes_per_second: float
    operations_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0 and self.operations_per_second > 0):
            raise InputError(
                f"expected positive numbers for the rates, got {self.bytes_per_second} B/s and "
                f"{self.operations_per_second} operations/s"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class StageCost:
    """The least bytes and operations of a stage; `counted` says what was counted."""

    bytes: int
    operations: int
    counted: str

    def seconds(self, rates: MachineRates) -> float:
        """The lower bound: the longer time of the two."""
        return max(self.bytes / rates.bytes_per_second, self.operations / rates.operations_per_second)

    def bound(self, rates: MachineRates) -> Literal["bytes", "operations"]:
        """Which takes longer."""
        memory = self.bytes / rates.bytes_per_second
        return "bytes" if memory >= self.operations / rates.operations_per_second else "operations"


def lower_bound(costs: Sequence[StageCost], rates: MachineRates) -> LowerBound:
    """The lower bound of the median image.

    Args:
        costs: of one stage, one for each image.
        rates: of the machine.
    """
    cost = sorted(costs, key=lambda cost: cost.seconds(rates))[len(costs) // 2]
    return LowerBound(
        bytes=cost.bytes,
        operations=cost.operations,
        counted=cost.counted,
        seconds=cost.seconds(rates),
        bound=cost.bound(rates),
    )


def measure_rates(cores: int, rounds: int = 5, now: Now = time.perf_counter) -> MachineRates:
    """The host's rates: the best of some copies, one slice a core, and of some fp32 matrix products on all cores."""
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
    """The better of two measurements, rate by rate: a disturbance can only make one slower."""
    bandwidth = max(a.bytes_per_second, b.bytes_per_second)
    return MachineRates(
        bandwidth, max(a.operations_per_second, b.operations_per_second), f"{a.source}, twice"
    )


def stage_costs(manifest: Manifest, placement: Placement, multiply_adds: int | None) -> dict[str, StageCost]:
    """The least cost of each stage of one image.

    Args:
        manifest: of the bundle, for the types of input and heads and the size of the weights.
        placement: of the image in the network input.
        multiply_adds: of the network at that input size; None counts bytes only.
    """
    item = np.dtype(manifest.input.dtype).itemsize
    outputs = 3 * placement.height * placement.width
    inside = (placement.right - placement.left) * (placement.bottom - placement.top)
    # Bilinear sampling reads four source pixels for an output pixel, and no more than there are.
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
"""Launches in a row in one graph: their time over their number is that of one, without the launch by the host."""
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class GpuRates:
    """Rates of a GPU in bytes a second, and medians in seconds of the shortest launches.

    Attributes:
        copy: device to device, bytes read and written together.
        upload: pinned host memory to device.
        download: device to pinned host memory.
        launch: an empty kernel between two events.
        train: an empty kernel, one of many in a graph.
        graph: a graph of one empty kernel between two events.
        round_trip: wall time of launching an empty kernel and waiting for it.
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

    @property
    def memory(self) -> MachineRates:
        """The rates for stages on the device."""
        return MachineRates(
            self.copy, math.inf, f"copy on the device of {self.copy_bytes >> 20} MiB in this run"
        )

    @property
    def transfer(self) -> MachineRates:
        """The rates for uploads."""
        return MachineRates(self.upload, math.inf, "copy from pinned memory in this run")

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


def copy_on_device(device: Device, stream: Stream, target: int, source: int, nbytes: int) -> None:
    """Enqueue a copy from device memory to device memory, by addresses.

    Raises:
        CudaError: the driver refuses.
    """
    from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs

    with device.current:
        (status,) = driver.cuMemcpyDtoDAsync(target, source, nbytes, driver.CUstream(stream.number))
    if int(status) != 0:
        raise CudaError(
            f"cuMemcpyDtoDAsync failed: {status.name}", "check that both buffers are large enough"
        )


@contextmanager
def _copies(timer: GpuTimer, nbytes: int) -> Iterator[dict[str, Subject]]:
    device, stream = timer.device, timer.stream
    with (
        device.allocate(nbytes) as one,
        device.allocate(nbytes) as two,
        device.allocate_pinned(nbytes) as host,
    ):
        host.array[:] = 1  # untouched pages could be shared
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


def measure_gpu_rates(timer: GpuTimer, rules: TimingRules, copy_bytes: int = COPY_BYTES) -> GpuRates:
    """Measure all rates of a GPU, interleaved.

    Args:
        timer: of the device.
        rules: how long each.
        copy_bytes: size of a copy, far larger than the L2 cache.

    Raises:
        CudaError: out of memory.
    """
    with _copies(timer, copy_bytes) as copies, _launches(timer) as launches:
        samples = measure({**copies, **launches}, rules)
    median = {
        name: summarise([sample[WHOLE] for window in windows for sample in window]).p50
        for name, windows in samples.items()
    }
    return GpuRates(
        copy=2 * copy_bytes / median["copy"],
        upload=copy_bytes / median["upload"],
        download=copy_bytes / median["download"],
        launch=median["launch"],
        train=median["train"],
        graph=median["graph"],
        round_trip=median["round_trip"],
        copy_bytes=copy_bytes,
    )
