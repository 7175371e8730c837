"""Throughput: many requests at once, from several threads and in batches; images a second, and what each waits."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.timing import Now, TimingRules
from centernet_trt.runtime.images import BgrImage

Detect = Callable[[Sequence[BgrImage]], object]


@dataclass(frozen=True)
class Request:
    """A batch that was answered: when it was asked and when the answer came, in seconds, and its number of images."""

    start: float
    end: float
    images: int


def drive(
    detect: Detect,
    batches: Sequence[Sequence[BgrImage]],
    threads: int,
    rules: TimingRules,
    now: Now = time.perf_counter,
) -> list[Request]:
    """Ask from so many threads, each with its next batch as soon as its last is answered.

    Every thread warms up by itself; requests count from the moment that all have. The order is that of the answers.

    Args:
        detect: called from every thread at once.
        batches: asked in turn; each thread starts at another one.
        threads: how many.
        rules: the duration, and the number of requests over all threads.
        now: the clock.

    Raises:
        InputError: no batches, or no threads.
        CenterNetError: whatever `detect` raised first; the other threads stop.
    """
    if not batches or threads < 1:
        raise InputError(
            f"{len(batches)} batches and {threads} threads were given, at least one of each is needed"
        )
    run = _Run(detect, batches, threads, rules, now)
    with ThreadPoolExecutor(threads, thread_name_prefix="bench") as pool:
        workers = [pool.submit(run.work, row) for row in range(threads)]
    errors = [error for worker in workers if (error := worker.exception()) is not None]
    for error in errors:
        # Threads that only waited for the one that failed have nothing to tell.
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return sorted(run.requests, key=lambda request: request.end)


class _Run:
    """What the threads of one measurement share."""

    def __init__(
        self,
        detect: Detect,
        batches: Sequence[Sequence[BgrImage]],
        threads: int,
        rules: TimingRules,
        now: Now,
    ) -> None:
        self._detect, self._batches, self._rules, self._now = detect, batches, rules, now
        self._began = 0.0
        self._ready = threading.Barrier(threads, action=self._begin)
        self._failed = False
        # list.append is atomic: every thread adds to it.
        self.requests: list[Request] = []

    def _begin(self) -> None:
        self._began = self._now()

    def work(self, row: int) -> None:
        """One thread, from warm-up to the end."""
        try:
            start = self._now()
            self._ask(row)
            while self._now() - start < self._rules.warmup:
                self._ask(row)
            self._ready.wait()
            while self._wanted():
                row += 1
                self.requests.append(self._ask(row))
        except BaseException:
            self._failed = True
            self._ready.abort()
            raise

    def _ask(self, row: int) -> Request:
        batch = self._batches[row % len(self._batches)]
        start = self._now()
        self._detect(batch)
        return Request(start, self._now(), len(batch))

    def _wanted(self) -> bool:
        if self._failed:
            return False
        # Three parts of three requests each are the least that the stability rule can look at.
        fewest = max(self._rules.iterations, 9)
        return self._now() - self._began < self._rules.duration or len(self.requests) < fewest


def part_rates(requests: Sequence[Request]) -> tuple[float, float, float]:
    """Images a second in three successive parts with equally many answers.

    A part lasts from the last answer of the part before it (the first part: from the first answer, which does not
    count) to its own last, so that neither the start nor unfinished requests at the end distort it.

    Raises:
        InputError: fewer than four requests.
    """
    if len(requests) < 4:
        raise InputError(f"{len(requests)} requests were answered, a rate needs four", "measure for longer")
    counted = requests[1:]
    cuts = [round(part * len(counted) / 3) for part in range(4)]
    first, second, third = (_rate(counted[start:stop], requests[start].end) for start, stop in pairwise(cuts))
    return first, second, third


def whole_rate(requests: Sequence[Request]) -> float:
    """Images a second from the first answer (which does not count) to the last; InputError for fewer than two."""
    if len(requests) < 2:
        raise InputError(f"{len(requests)} requests were answered, a rate needs two", "measure for longer")
    return _rate(requests[1:], requests[0].end)


def _rate(requests: Sequence[Request], since: float) -> float:
    elapsed = requests[-1].end - since
    return sum(request.images for request in requests) / elapsed if elapsed > 0 else float("inf")
