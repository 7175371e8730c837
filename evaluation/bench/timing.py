"""Timing rules, windows and the stage timer."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from centernet_trt.errors import InputError
from centernet_trt.progress import Progress

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


Sample = dict[str, float]
"""Seconds by stage of one call; `whole` is always there."""

SHORTEST = 3.0
"""Seconds below which trtexec's own default does not go (`--duration=3`)."""
FEWEST = 10
"""Calls below which trtexec's own default does not go (`--iterations=10`)."""


@dataclass(frozen=True)
class TimingRules:
    """How long to measure; the defaults are trtexec's.

    Attributes:
        warmup: seconds of calls that are thrown away.
        duration: seconds of calls that count, at least.
        iterations: calls that count, at least.
        windows: into so many parts the duration is cut; at least three, for the stability rule.
        allow_short: accept less than trtexec's duration and iterations; the report then says so.
    """

    warmup: float = 0.2
    duration: float = SHORTEST
    iterations: int = FEWEST
    windows: int = 6
    allow_short: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise InputError(f"the duration is {self.duration} s, a positive number was expected")
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise InputError(f"the warm-up is {self.warmup} s, 0 or more was expected")
        if self.windows < 3:
            raise InputError(f"{self.windows} windows were asked for, the stability rule needs three")
        if self.iterations < 1:
            raise InputError(f"{self.iterations} iterations were asked for, 1 or more was expected")
        if self.short and not self.allow_short:
            raise InputError(
                f"{self.duration:g} s and {self.iterations} iterations are too short for a figure to rely on: at least "
                f"{SHORTEST:g} s and {FEWEST} iterations were expected",
                "measure for longer, or add --allow-short to get figures that are marked as short",
            )

    @property
    def short(self) -> bool:
        """Whether the rules ask for less than trtexec's."""
        return self.duration < SHORTEST or self.iterations < FEWEST


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        call: does it once, and says how long each stage took.
        cycle: after so many calls it begins again (the images that it rotates over). A window holds whole cycles, so
            that all windows have the same images in them.
    """

    call: Callable[[], Sample]
    cycle: int = 1


def timed(function: Callable[[], object], now: Now = time.perf_counter) -> Subject:
    """A plain function as a subject."""

    def call() -> Sample:
        start = now()
        function()
        return {WHOLE: now() - start}

    return Subject(call)


def measure(
    subjects: Mapping[str, Subject],
    rules: TimingRules,
    now: Now = time.perf_counter,
    progress: Progress | None = None,
) -> dict[str, list[list[Sample]]]:
    """Samples of each subject, by window.

    The subjects take turns, window by window, so that a slow moment of the machine meets all of them.

    Args:
        subjects: by name.
        rules: how long.
        now: the clock that the durations are held to.
        progress: called with (subject, windows done, windows in all).
    """
    for name, subject in subjects.items():
        if progress is not None:
            progress(f"{name}: warm-up", 0, rules.windows)
        _calls(subject, rules.warmup, 1, now, whole_cycles=False)
    found: dict[str, list[list[Sample]]] = {name: [] for name in subjects}
    fewest = math.ceil(rules.iterations / rules.windows)
    for window in range(rules.windows):
        for name, subject in subjects.items():
            if progress is not None:
                progress(name, window, rules.windows)
            found[name].append(_calls(subject, rules.duration / rules.windows, fewest, now))
    return found


def _calls(
    subject: Subject, seconds: float, fewest: int, now: Now, whole_cycles: bool = True
) -> list[Sample]:
    """Call until the time has passed, `fewest` calls are done and the cycle is whole."""
    samples: list[Sample] = []
    start = now()
    while (
        now() - start < seconds
        or len(samples) < fewest
        or (whole_cycles and len(samples) % subject.cycle != 0)
    ):
        samples.append(subject.call())
    return samples
