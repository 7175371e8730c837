"""Stage timers, whose `mark` is given to `Backend.run`: StageTimer by the wall clock, EventTimer by CUDA events."""

import time
from itertools import pairwise
from typing import Protocol

from centernet_trt.evaluation.bench.gpu_timer import GpuTimer
from centernet_trt.evaluation.bench.timing import WHOLE, CacheState, Now, Sample


class StageTimer(Protocol):
    """Times the stages of one call after another; not shared between threads."""

    def start(self) -> None:
        """Begin a call."""

    def mark(self, stage: str) -> None:
        """End the stage of this name; what follows belongs to the next."""

    def finish(self) -> Sample:
        """End the call -> seconds by stage in order, and of the `whole`."""
        ...


class WallTimer:
    """A StageTimer for stages whose work is done when they are marked."""

    def __init__(self, now: Now = time.perf_counter) -> None:
        self._now = now
        self._marks: list[tuple[str, float]] = []

    def start(self) -> None:
        """Begin a call."""
        self._marks = [("", self._now())]

    def mark(self, stage: str) -> None:
        """End the stage of this name."""
        self._marks.append((stage, self._now()))

    def finish(self) -> Sample:
        """Seconds by stage; a stage that was marked twice in one call has the sum."""
        end = self._now()
        seconds: Sample = {}
        for (_, before), (stage, after) in pairwise(self._marks):
            seconds[stage] = seconds.get(stage, 0.0) + after - before
        return seconds | {WHOLE: end - self._marks[0][1]}


class EventTimer:
    """A StageTimer of GPU work that is enqueued on the GpuTimer's stream; `whole` is the sum of the stages.

    Events cannot be recorded inside a CUDA graph, so a marked call runs without it, behind the timer's hold, which
    belongs to no stage.
    """

    def __init__(self, timer: GpuTimer, last: str, cache: CacheState = "warm") -> None:
        """Use a GpuTimer of the backend's only stream.

        Args:
            timer: records the events.
            last: the stage after which nothing is enqueued, so that the host may wait.
            cache: state of the L2 cache when a call begins.
        """
        self._timer, self._last = timer, last
        self._cache: CacheState = cache

    def start(self) -> None:
        """Begin a call."""
        self._timer.start(self._cache)

    def mark(self, stage: str) -> None:
        """End the stage of this name."""
        self._timer.mark(stage)
        if stage == self._last:
            self._timer.seal()

    def finish(self) -> Sample:
        """Seconds by stage, and their sum."""
        found = self._timer.finish()
        return found | {WHOLE: sum(found.values())}
