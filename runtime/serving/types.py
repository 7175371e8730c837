"""Batching, RequestFuture and RequestStatistics: options, futures and statistics of batched requests."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from centernet_trt.errors import BackendError, InputError

WINDOW = 2048  # number of latest requests in the percentiles


@dataclass(frozen=True)
class RequestStatistics:
    """Statistics of the requests so far.

    Attributes:
        queue_depth: requests waiting now.
        running: requests in flight now.
        submitted: requests accepted.
        completed: requests with a result.
        failed: requests with an error, including those still queued when the detector was closed without draining.
        cancelled: requests whose future was cancelled before their batch started.
        rejected: requests refused because the queue was full; not among the submitted.
        batch_sizes: number of batches by their number of requests.
        latency_p50: seconds from submission to result, median of the latest 2048 requests; None before the first.
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
    """Return the nearest-rank percentile: the smallest of the ascending values that `share` (0..1) do not exceed."""
    if not ordered:
        return None
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


class RequestStats:
    """Collects statistics in bounded memory. Safe to use from many threads."""

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
        """Count a batch of `size` requests that starts."""
        with self._lock:
            self._batches[size] += 1
            self._counts["running"] += size

    def done(self, latency: float, failed: bool) -> None:
        """Count a request of a running batch that completed or failed, `latency` seconds after its submission."""
        with self._lock:
            self._counts["running"] -= 1
            self._counts["failed" if failed else "completed"] += 1
            self._latencies.append(latency)

    def snapshot(self, queue_depth: int) -> RequestStatistics:
        """Return the statistics now."""
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
    """The queue had no space for a request within its timeout."""


class RequestFuture(Future[Result]):
    """A `concurrent.futures.Future` that coroutines can also `await`, as with `asyncio.wrap_future`."""

    def __await__(self) -> Generator[Any, None, Result]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


class Clock(Protocol):
    """The batcher's clock; tests use their own."""

    def now(self) -> float:
        """Return seconds since some moment; never goes back."""
        ...

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait, holding the condition, until it is notified or `timeout` seconds have passed."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        """Wait until notified or timed out."""
        condition.wait(timeout)


@dataclass(frozen=True)
class Batching:
    """How `Detector.submit` gathers requests into batches.

    Attributes:
        max_batch: maximum number of requests in a batch, at least 1; None for the largest that the bundle was built for.
        max_wait: seconds that a request waits for others while a worker is idle; 0 runs what is queued.
        queue: maximum number of waiting requests, at least 1; beyond it `submit` waits for space or fails.
        workers: number of threads, each running one batch at a time, at least 1; started when there is work. None for
            the number of GPU streams, and one on the host.

    Raises:
        InputError: a value out of range.
    """

    max_batch: int | None = None
    max_wait: float = 0.002
    queue: int = 64
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_batch", self.max_batch), ("queue", self.queue), ("workers", self.workers)):
            if value is not None and value < 1:
                raise InputError(f"expected at least 1 as Batching.{name}, got {value}")
        if not 0 <= self.max_wait < float("inf"):
            raise InputError(f"expected 0 or more seconds as Batching.max_wait, got {self.max_wait}")
