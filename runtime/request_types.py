"""The words of submitted requests: how they are batched, the clock, the future they give, the error of a full queue."""

import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from centernet_trt.errors import BackendError, InputError

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
