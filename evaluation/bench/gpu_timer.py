"""GpuTimer: GPU work timed by CUDA events, behind a hold kernel and with the L2 cache flushed where wanted."""

import ctypes
from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.timing import WHOLE, CacheState, Sample, Subject
from centernet_trt.evaluation.environment import l2_bytes
from centernet_trt.kernels.compile import find_toolchain, sm_name
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.resources import DeviceBuffer, Event, Graph, Owner, PinnedBuffer, Stream

Array = npt.NDArray[Any]


class DeviceTensor:
    """An array of fixed shape and type in GPU memory, with a pinned copy on the host for transfers. Close it.

    It has `__cuda_array_interface__`; its content is ready once `write` has returned.
    """

    def __init__(self, device: Owner, shape: tuple[int, ...], dtype: npt.DTypeLike, stream: Stream) -> None:
        """Allocate it uninitialised; its copies run on `stream`.

        Raises:
            DriverError: out of memory.
        """
        self.shape, self.dtype, self._stream = shape, np.dtype(dtype), stream
        nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self._memory = DeviceBuffer(device, nbytes)
        try:
            self._pinned = PinnedBuffer(device, nbytes)
        except BaseException:
            self._memory.close()
            raise

    @classmethod
    def of(cls, device: Owner, array: Array, stream: Stream) -> "DeviceTensor":
        """A copy of a host array."""
        made = cls(device, array.shape, array.dtype, stream)
        made.write(array)
        return made

    @property
    def address(self) -> int:
        """Address of its first element."""
        return self._memory.address

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._memory.nbytes

    @property
    def host(self) -> Array:
        """The pinned copy; invalid after `close`."""
        return self._pinned.array.view(self.dtype).reshape(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def write(self, array: Array) -> None:
        """Fill it, and wait.

        Raises:
            InputError: an array of another shape or type.
        """
        if array.shape != self.shape or array.dtype != self.dtype:
            raise InputError(
                f"expected an array of {self.dtype} and shape {self.shape}, got {array.dtype} and shape {array.shape}"
            )
        self.host[...] = array
        self.upload()
        self._stream.synchronize()

    def read(self) -> Array:
        """Its content on the host, once the work on the stream is done."""
        self.download()
        self._stream.synchronize()
        return self.host.copy()

    def upload(self) -> None:
        """Enqueue the copy from the pinned memory to the device."""
        self._stream.copy_to_device(self.address, self._pinned.address, self.nbytes)

    def download(self) -> None:
        """Enqueue the copy from the device to the pinned memory."""
        self._stream.copy_to_host(self._pinned.address, self.address, self.nbytes)

    def close(self) -> None:
        """Free both. May be called twice."""
        close_all([self._memory, self._pinned])


# `occupy` touches no memory: a copy would keep a stream busy as well, but would evict the L2 cache.
_SOURCE = """
extern "C" __global__ void nothing(unsigned long long) {}
extern "C" __global__ void occupy(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""


class _Number(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint64),)


class ProbeKernels:
    """An empty kernel and one that holds a stream, on one device. Close it."""

    def __init__(self, device: Device) -> None:
        """Compile and load them.

        Raises:
            CudaError: no compiler, or the driver refuses its code.
        """
        architecture = sm_name(*device.info.capability)
        made = find_toolchain().compile("probes.cu", {"probes.cu": _SOURCE}, architecture, "cubin")
        self._module = device.load_module(made.code)
        self._nothing = self._module.function("nothing")
        self._occupy = self._module.function("occupy")
        self._number = _Number(0)

    def nothing(self, stream: Stream) -> None:
        """Enqueue an empty kernel: one block of 32 threads."""
        stream.launch(self._nothing, (1, 1, 1), (32, 1, 1), 0, self._number)

    def occupy(self, stream: Stream, seconds: float) -> None:
        """Keep the stream busy for this time, with one thread and no memory traffic."""
        stream.launch(self._occupy, (1, 1, 1), (1, 1, 1), 0, _Number(round(seconds * 1e9)))

    def close(self) -> None:
        """Unload them. May be called twice."""
        self._module.close()


_FIRST_HOLD, _LONGEST_HOLD = 50e-6, 5e-3
"""Seconds."""
_TRIES = 8


class GpuTimer:
    """Times what is enqueued on one stream. A context manager, or close it.

    A kernel holds the stream until the host has enqueued everything, so that the times have no gaps of the host's.

    Attributes:
        device: the GPU.
        stream: whose work is timed.
        l2_bytes: size of the L2 cache.
        hold: seconds for which the kernel holds the stream.
        late: measurements that counted although their work began before the host had enqueued all of it, so that their
            times contain gaps.
    """

    def __init__(self, device: Device, stream: Stream | None = None) -> None:
        """Make the events and buffers.

        Args:
            device: the GPU.
            stream: whose work is timed; None for one of its own.

        Raises:
            CudaError: out of memory, no compiler, or the driver does not say how large the L2 cache is.
        """
        self.device = device
        self._own = stream is None
        self.stream = stream or device.stream()
        self.l2_bytes = l2_bytes(device)
        self._flushed: DeviceBuffer = device.allocate(2 * self.l2_bytes)
        self.probes = ProbeKernels(device)
        self.hold = _FIRST_HOLD
        self._events: list[Event] = []
        self._marks: list[str] = []
        self._sealed = self._came_late = False
        self.late = 0

    def flush(self) -> None:
        """Enqueue a flush of the L2 cache: a write of twice its size."""
        self.stream.fill(self._flushed.address, 0, self._flushed.nbytes)

    def start(self, cache: CacheState = "warm") -> None:
        """Hold the stream, flush the cache for a cold start, and record the first event."""
        self.probes.occupy(self.stream, self.hold)
        if cache == "cold":
            self.flush()
        self._marks, self._sealed = [], False
        self._record("")

    def mark(self, name: str) -> None:
        """Give this name to what was enqueued since the last mark."""
        self._record(name)

    def _record(self, name: str) -> None:
        if len(self._marks) == len(self._events):
            self._events.append(self.device.event(timing=True))
        self.stream.record(self._events[len(self._marks)])
        self._marks.append(name)

    def seal(self) -> None:
        """Check, once everything is enqueued and before anything waits, whether the host was ahead of the GPU."""
        if not self._sealed:
            self._sealed = True
            self._came_late = self._events[0].done
            if self._came_late:
                self.late += 1
                self.hold = min(2 * self.hold, _LONGEST_HOLD)

    def finish(self) -> dict[str, float]:
        """Wait -> seconds by mark, in order; a name that was marked twice has the sum."""
        self.seal()
        events = self._events[: len(self._marks)]
        events[-1].synchronize()
        seconds: dict[str, float] = {}
        for (before, after), name in zip(pairwise(events), self._marks[1:], strict=True):
            seconds[name] = seconds.get(name, 0.0) + after.elapsed_ms(before) * 1e-3
        return seconds

    def seconds(self, enqueue: Callable[[], object], cache: CacheState = "warm") -> float:
        """Seconds for which the device is busy with what `enqueue` enqueues; repeated while the host is late."""
        for left in reversed(range(_TRIES)):
            self.start(cache)
            enqueue()
            self.mark(WHOLE)
            found = self.finish()[WHOLE]
            if not self._came_late or not left:
                return found
            self.late -= 1  # discarded
        raise AssertionError("unreachable: the last try returns")

    def subject(self, enqueue: Callable[[], object], cache: CacheState = "warm", times: int = 1) -> Subject:
        """As a subject of `timing.measure`; where `enqueue` repeats its work `times` times, the time of one is reported."""

        def call() -> Sample:
            return {WHOLE: self.seconds(enqueue, cache) / times}

        return Subject(call)

    def recorded(self, enqueue: Callable[[], object]) -> Graph:
        """The work as a CUDA graph; it must have run once before. Close the graph.

        Raises:
            DriverError: it cannot be recorded.
        """
        self.stream.begin_capture()
        try:
            enqueue()
        except BaseException:
            self.stream.abandon_capture()
            raise
        return self.stream.end_capture()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the stream, then free everything."""
        if not self.stream.closed:
            self.stream.synchronize()
        close_all([*self._events, self.probes, self._flushed, *([self.stream] if self._own else [])])
        self._events = []
