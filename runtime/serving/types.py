"""Options, futures and statistics of batched requests."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from centernet_trt.errors import BackendError, InputError

WINDOW = 2048  # latest requests that the percentiles are taken of


@dataclass(frozen=True)
class RequestStatistics:
    """What became of the requests so far.

    Attributes:
        queue_depth: requests that wait now.
        running: requests in a batch that runs now.
        submitted: requests accepted.
        completed: those with a result.
        failed: those with an error, abandoned ones among them.
        cancelled: those whose future was cancelled in time.
        rejected: refused because the queue was full; not among the submitted.
        batch_sizes: how many batches ran with so many requests.
        latency_p50: seconds from submission to result, median of the latest requests; None before the first.
        latency_p99: the 99th percentile of the same.
    """

    queue_depth: int = 0
    running: int = 0
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    batch_sizes: dict[int, int] = field(default_factory=dict)
    latency_p50: float | None = None
    latency_p99: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile of ascending values: the smallest that at least `share` of them do not exceed."""
    if not ordered:
        return None
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


class RequestStats:
    """Collects; safe to call from many threads. Memory does not grow with the number of requests."""

    def __init__(self, window: int = WINDOW) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._latencies: deque[float] = deque(maxlen=window)

    def count(self, what: str, number: int = 1) -> None:
        """Add to `submitted`, `completed`, `failed`, `cancelled`, `rejected` or `running`."""
        with self._lock:
            self._counts[what] += number

    def batch(self, size: int) -> None:
        """A batch of so many requests starts."""
        with self._lock:
            self._batches[size] += 1
            self._counts["running"] += size

    def done(self, latency: float, failed: bool) -> None:
        """A request of a running batch has its result, or its error, after so many seconds."""
        with self._lock:
            self._counts["running"] -= 1
            self._counts["failed" if failed else "completed"] += 1
            self._latencies.append(latency)

    def snapshot(self, queue_depth: int) -> RequestStatistics:
        """The figures now."""
        with self._lock:
            counts, batches = dict(self._counts), dict(sorted(self._batches.items()))
            latencies = list(self._latencies)
        latencies.sort()
        return RequestStatistics(
            queue_depth=queue_depth,
            batch_sizes=batches,
            latency_p50=percentile(latencies, 0.50),
            latency_p99=percentile(latencies, 0.99),
            **counts,
        )


Result = TypeVar("Result")


class QueueFullError(BackendError):
    """The queue had no room for a request within its timeout."""


class RequestFuture(Future[Result]):
    """A `concurrent.futures.Future` that a coroutine can `await` too, as `asyncio.wrap_future` makes it."""

    def __await__(self) -> Generator[Any, None, Result]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


class Clock(Protocol):
    """Time, as the batcher uses it; tests bring their own."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait, holding the condition, until it is notified or so many seconds have passed."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait until notified or timed out."""
        condition.wait(timeout)


@dataclass(frozen=True)
class Batching:
    """How single requests become batches.

    Attributes:
        max_batch: requests in a batch; None for the most that the bundle was built for.
        max_wait: seconds that a request waits for others while a worker is free. 0 takes what is there.
        queue: requests that may wait; whoever submits more waits for room or is refused.
        workers: threads, each running one batch at a time; started when there is work. None for as many as the GPU has
            streams, one on the host.
    """

    max_batch: int | None = None
    max_wait: float = 0.002
    queue: int = 64
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_batch", self.max_batch), ("queue", self.queue), ("workers", self.workers)):
            if value is not None and value < 1:
                raise InputError(f"batching: {name} is {value}, at least 1 was expected")
        if not 0 <= self.max_wait < float("inf"):
            raise InputError(f"batching: max_wait is {self.max_wait}, seconds from 0 up were expected")
