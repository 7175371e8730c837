"""Counts and latencies of submitted requests, over a window of bounded size."""

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

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
