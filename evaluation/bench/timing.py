"""TimingRules, and `measure`: samples of several subjects, interleaved window by window."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from centernet_trt.errors import InputError
from centernet_trt.progress import Progress

Now = Callable[[], float]
"""A monotonic clock's reading in seconds: `time.perf_counter`, or a test's own."""

ChosenBackend = Literal["onnxruntime", "tensorrt"]
"""Where the network runs, once `auto` is resolved."""

CacheState = Literal["warm", "cold"]
"""State of the GPU's L2 cache when a call begins: as it is, or flushed."""
InputKind = Literal["pageable", "pinned", "device"]
"""The memory that images come from."""

WHOLE = "whole"
"""The name of the time from the start of a call to its end."""

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
        warmup: seconds of calls that are discarded.
        duration: least seconds of calls that count.
        iterations: least number of calls that count.
        windows: number of parts of the duration; at least three, for the stability rule.
        allow_short: accept less than trtexec's duration and iterations; the report then says so.
    """

    warmup: float = 0.2
    duration: float = SHORTEST
    iterations: int = FEWEST
    windows: int = 6
    allow_short: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise InputError(f"expected a positive duration, got {self.duration} s")
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise InputError(f"expected a warm-up of 0 or more seconds, got {self.warmup} s")
        if self.windows < 3:
            raise InputError(
                f"expected three or more windows, which the stability rule needs, got {self.windows}"
            )
        if self.iterations < 1:
            raise InputError(f"expected 1 or more iterations, got {self.iterations}")
        if self.short and not self.allow_short:
            raise InputError(
                f"{self.duration:g} s and {self.iterations} iterations are too short for a reliable figure: expected at "
                f"least {SHORTEST:g} s and {FEWEST} iterations",
                "measure for longer, or add --allow-short to get figures that are marked as short",
            )

    @property
    def short(self) -> bool:
        """Whether the rules require less than trtexec's."""
        return self.duration < SHORTEST or self.iterations < FEWEST


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        call: does it once, and returns how long each stage took.
        cycle: number of calls after which it repeats (the images that it rotates over). A window holds whole cycles,
            so that all windows cover the same images.
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

    The subjects are interleaved window by window, so that a slow moment of the machine affects all of them.

    Args:
        subjects: by name.
        rules: how long.
        now: the clock that measures the durations.
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
