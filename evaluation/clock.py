"""Stage clocks: who says how long each stage of a pipeline took.

A pipeline marks the end of each stage; the clock knows how to take the time. On the host that is the wall clock. A
pipeline that only *launches* its stages, on a GPU, brings a clock that records events and waits in `finish`.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

Now = Callable[[], float]
"""A clock's reading in seconds, never going back: `time.perf_counter`, or a test's own."""

WHOLE = "whole"
"""The name of the time from `start` to `finish`."""


class StageClock(Protocol):
    """Times the stages of one call after another; not shared between threads."""

    def start(self) -> None:
        """A call begins."""

    def mark(self, stage: str) -> None:
        """The stage of this name ends here; what follows belongs to the next."""

    def finish(self) -> dict[str, float]:
        """The call is over, and so is its work: seconds by stage in order, and of the `whole`."""
        ...


class WallClock:
    """A StageClock for stages that are done when their call returns."""

    def __init__(self, now: Now = time.perf_counter) -> None:
        self._now = now
        self._marks: list[tuple[str, float]] = []

    def start(self) -> None:
        """A call begins."""
        self._marks = [("", self._now())]

    def mark(self, stage: str) -> None:
        """The stage of this name ends here."""
        self._marks.append((stage, self._now()))

    def finish(self) -> dict[str, float]:
        """Seconds by stage; a stage that was marked twice in one call has the sum."""
        end = self._now()
        seconds: dict[str, float] = {}
        for (_, before), (stage, after) in pairwise(self._marks):
            seconds[stage] = seconds.get(stage, 0.0) + after - before
        return seconds | {WHOLE: end - self._marks[0][1]}
