"""Device times by CUDA events.

Work that takes microseconds cannot be timed by launching it between two events on an idle GPU: the time would be that of
the host, which comes late with the next launch. So each measurement is held up: a kernel that only waits goes first, on the
same stream, long enough for the host to get ahead; what follows then runs back to back. Whether the host was ahead is
checked, and the wait is lengthened until it is.
"""

from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

from centernet_trt.evaluation.clock import WHOLE
from centernet_trt.evaluation.environment import l2_bytes
from centernet_trt.evaluation.gpu.probes import ProbeKernels
from centernet_trt.evaluation.timing import Sample, Subject
from centernet_trt.runtime.driver import Device, close_all
from centernet_trt.runtime.driver_objects import DeviceBuffer, Event, Graph, Stream

CacheState = Literal["warm", "cold"]
_FIRST_HOLD, _LONGEST_HOLD = 50e-6, 5e-3
"""Seconds."""
_TRIES = 8


class GpuTimer:
    """Times what is enqueued on one stream. A context manager, or close it.

    `late`: measurements that counted although their work had begun before the host had enqueued all of it: their times have
    gaps in them. `hold`: seconds that the wait lasts.
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
        """Enqueue what makes the L2 cache forget: twice its size is written."""
        self.stream.fill(self._flushed.address, 0, self._flushed.nbytes)

    def start(self, cache: CacheState = "warm") -> None:
        """Hold the stream up, flush where the cache is to be cold, and set the first mark."""
        self.probes.occupy(self.stream, self.hold)
        if cache == "cold":
            self.flush()
        self._marks, self._sealed = [], False
        self._record("")

    def mark(self, name: str) -> None:
        """What was enqueued since the last mark bears this name."""
        self._record(name)

    def _record(self, name: str) -> None:
        if len(self._marks) == len(self._events):
            self._events.append(self.device.event(timing=True))
        self.stream.record(self._events[len(self._marks)])
        self._marks.append(name)

    def seal(self) -> None:
        """Everything is enqueued: see whether the host was ahead. Before anything waits for the stream."""
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
        """How long the device is busy with what `enqueue` enqueues on the stream; repeated while the host comes late."""
        for again in reversed(range(_TRIES)):
            self.start(cache)
            enqueue()
            self.mark(WHOLE)
            found = self.finish()[WHOLE]
            if not self._came_late:
                break
            if again:
                self.late -= 1  # thrown away
        return found

    def subject(self, enqueue: Callable[[], object], cache: CacheState = "warm", times: int = 1) -> Subject:
        """As a subject of `timing.measure`; `times`: `enqueue` does the thing so often, and one is reported."""

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


class EventClock:
    """A StageClock of device work: the pipeline marks stages on the timer's stream, `whole` is their sum.

    The hold belongs to no stage. A pipeline that waits for its own results calls `seal` before.
    """

    def __init__(self, timer: GpuTimer, cache: CacheState = "warm") -> None:
        self._timer, self._cache = timer, cache

    def start(self) -> None:
        """A call begins."""
        self._timer.start(self._cache)

    def mark(self, stage: str) -> None:
        """The stage of this name ends here."""
        self._timer.mark(stage)

    def seal(self) -> None:
        """Everything is enqueued."""
        self._timer.seal()

    def finish(self) -> dict[str, float]:
        """Seconds by stage, and their sum."""
        found = self._timer.finish()
        return found | {WHOLE: sum(found.values())}
