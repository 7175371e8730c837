"""DynamicBatcher: gather single requests from many threads into batches.

Requests of one group may share a batch. A batch starts when it is full, or when its oldest request has waited long
enough. The queue is bounded: a caller that submits too fast waits or is rejected. Nothing polls.
"""

import atexit
import copy
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime.fork_guard import check_owner
from centernet_trt.runtime.serving.types import (
    Batching,
    Clock,
    MonotonicClock,
    QueueFullError,
    RequestFuture,
    RequestStatistics,
    RequestStats,
)

_log = logging.getLogger(__name__)

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Entry(Generic[Request, Result]):
    """A queued or running request; `arrived` by the batcher's clock."""

    value: Request
    group: Hashable
    future: RequestFuture[Result]
    arrived: float


class DynamicBatcher(Generic[Request, Result]):
    """Gathers requests into batches and runs them on its own threads, which keep it alive until `close`."""

    def __init__(
        self,
        run: Callable[[list[Request]], Sequence[Result | Exception]],
        max_batch: int,
        settings: Batching | None = None,
        *,
        name: str = "detector",
        clock: Clock | None = None,
    ) -> None:
        """Set up the batcher; threads start with the first request.

        Args:
            run: runs the requests of one batch, all of one group, and returns as many results in the same order; called
                from `settings.workers` threads at once. An exception in place of a result fails that request alone; an
                exception that it raises fails the batch, and the worker continues.
            max_batch: maximum number of requests in a batch; `settings.max_batch` may lower it.
            settings: None for the defaults of `Batching`.
            name: name of the threads, also used in messages.
            clock: None for the machine's monotonic clock.
        """
        self._run = run
        self._settings = settings or Batching()
        self._max_batch = min(max_batch, self._settings.max_batch or max_batch)
        self._name = name
        self._clock: Clock = clock or MonotonicClock()
        self._stats = RequestStats()
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._space = threading.Condition(self._lock)
        # Waiting requests by group, each group in order of arrival; groups that are empty are removed.
        self._groups: dict[Hashable, deque[_Entry[Request, Result]]] = {}
        self._depth = 0
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._closed = False

    def check_open(self) -> None:
        """Raise BackendError if the batcher is closed or was made in another process, as `submit` does."""
        check_owner(self._owner, f"the {self._name}")
        if self._closed:
            raise self._closed_error("and takes no more requests")

    def submit(
        self, request: Request, group: Hashable = None, timeout: float | None = None
    ) -> RequestFuture[Result]:
        """Queue a request.

        Args:
            request: passed to `run`.
            group: only requests of equal groups share a batch.
            timeout: seconds to wait for space in the queue: 0 does not wait, None waits without limit.

        Returns:
            The future of its result.

        Raises:
            QueueFullError: no space within the timeout.
            InputError: the timeout is negative.
            BackendError: the batcher is closed, or this process was forked from the one that made it.
        """
        check_owner(self._owner, f"the {self._name}")
        if timeout is not None and not timeout >= 0:
            raise InputError(f"expected a timeout of 0 or more seconds or None, got {timeout}")
        future: RequestFuture[Result] = RequestFuture()
        entry = _Entry(request, group, future, self._clock.now())
        with self._lock:
            self._wait_for_space(timeout)
            self._ensure_worker()
            self._groups.setdefault(group, deque()).append(entry)
            self._depth += 1
            self._stats.count("submitted")
            self._work.notify()
        future.add_done_callback(lambda done: self._forget(entry) if done.cancelled() else None)
        return future

    def close(self, drain: bool = True) -> None:
        """Accept no more requests, and return when the threads have ended. May be called twice, and from any thread.

        In a forked child of the process that made the batcher there are no threads, and nothing is done.

        Args:
            drain: run the queued requests; False fails them with a BackendError. Batches in flight finish either way.
        """
        if os.getpid() != self._owner:
            return
        abandoned: list[_Entry[Request, Result]] = []
        with self._lock:
            self._closed = True
            if not drain:
                abandoned = [entry for waiting in self._groups.values() for entry in waiting]
                self._groups.clear()
                self._depth = 0
            self._work.notify_all()
            self._space.notify_all()
            threads = list(self._threads)
        if abandoned:
            _log.warning("the %s closed with %d requests in its queue", self._name, len(abandoned))
        for entry in abandoned:
            if entry.future.set_running_or_notify_cancel():
                self._stats.count("failed")
                entry.future.set_exception(self._closed_error("before this request was run"))
        for thread in threads:
            if thread is not threading.current_thread():  # a future's callback may close the batcher
                thread.join()
        atexit.unregister(self.close)

    @property
    def statistics(self) -> RequestStatistics:
        """Counts, batch sizes and latencies so far.

        Raises:
            BackendError: this process was forked from the one that made the batcher.
        """
        check_owner(self._owner, f"the {self._name}")
        with self._lock:
            depth = self._depth
        return self._stats.snapshot(depth)

    def _closed_error(self, when: str) -> BackendError:
        hint = "load the bundle again: Detector.load(...)"
        return BackendError(f"the {self._name} was closed {when}", hint)

    def _wait_for_space(self, timeout: float | None) -> None:
        """Wait for space in the queue; called with the lock, and returns with it."""
        capacity = self._settings.queue
        if threading.current_thread() in self._threads:
            timeout = 0  # a future's callback: waiting here could deadlock the queue
        deadline = None if timeout is None else self._clock.now() + timeout
        while not self._closed and self._depth >= capacity:
            remaining = None if deadline is None else deadline - self._clock.now()
            if remaining is not None and remaining <= 0:
                self._stats.count("rejected")
                raise QueueFullError(
                    f"{self._depth} requests wait, the queue holds {capacity}"
                    + (f"; no space within {timeout} s" if timeout else ""),
                    "submit more slowly, wait longer (timeout=), or allow a longer queue (Batching.queue)",
                )
            self._clock.wait(self._space, remaining)
        self.check_open()

    def _ensure_worker(self) -> None:
        """Start a thread if none is idle and more are allowed; called with the lock."""
        if self._idle or len(self._threads) >= (self._settings.workers or 1):
            return
        number = len(self._threads)
        # A batcher that was not closed must not keep the interpreter from ending: atexit ends the daemons in order.
        thread = threading.Thread(target=self._work_loop, name=f"{self._name}-{number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if self._threads:
                return  # the running ones suffice
            hint = "raise the limit on threads (ulimit -u) or use fewer"
            raise BackendError(f"no thread could be started for the {self._name}: {error}", hint) from error
        if not self._threads:
            atexit.register(self.close, drain=False)
        self._threads.append(thread)

    def _forget(self, entry: _Entry[Request, Result]) -> None:
        """Free the queue entry of a cancelled future at once."""
        self._stats.count("cancelled")
        with self._lock:
            waiting = self._groups.get(entry.group)
            if waiting is None or entry not in waiting:
                return  # a worker has taken it, and will see that it is cancelled
            waiting.remove(entry)
            if not waiting:
                del self._groups[entry.group]
            self._depth -= 1
            self._space.notify()
        del entry.value
        entry.future.set_running_or_notify_cancel()

    def _work_loop(self) -> None:
        _log.debug("%s starts", threading.current_thread().name)
        while batch := self._take():
            self._serve(batch)
            del batch  # an idle worker must not keep the last images alive
        _log.debug("%s ends", threading.current_thread().name)

    def _take(self) -> list[_Entry[Request, Result]]:
        """Wait for the next batch; empty if the batcher is closed and no request is left."""
        with self._lock:
            while True:
                group, due = self._next_group()
                now = self._clock.now()
                if group is not None and (self._closed or due <= now):
                    waiting = self._groups[group[0]]
                    batch = [waiting.popleft() for _ in range(min(len(waiting), self._max_batch))]
                    if not waiting:
                        del self._groups[group[0]]
                    self._depth -= len(batch)
                    self._space.notify(len(batch))
                    if self._groups:
                        self._work.notify()
                        self._ensure_worker()
                    return batch
                if group is None and self._closed:
                    return []
                self._idle += 1
                try:
                    self._clock.wait(self._work, None if group is None else due - now)
                finally:
                    self._idle -= 1

    def _next_group(self) -> tuple[tuple[Hashable] | None, float]:
        """Choose the group to run next, in a tuple since None is a group too, and the time at which it is due."""
        chosen: tuple[Hashable] | None = None
        earliest = float("inf")
        for group, waiting in self._groups.items():
            full = len(waiting) >= self._max_batch
            # Full batches are overdue; of several, the one with the oldest request goes first.
            due = waiting[0].arrived + (0.0 if full else self._settings.max_wait)
            if due < earliest:
                chosen, earliest = (group,), due
        return chosen, earliest

    def _serve(self, batch: list[_Entry[Request, Result]]) -> None:
        live = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
        if not live:
            return
        values = [entry.value for entry in live]
        for entry in live:
            del entry.value  # a future refers to its entry, and must not keep the image alive
        self._stats.batch(len(live))
        for entry, result in zip(live, self._results(values), strict=True):
            failed = isinstance(result, BaseException)
            self._stats.done(self._clock.now() - entry.arrived, failed)
            try:
                if isinstance(result, BaseException):
                    entry.future.set_exception(result)
                else:
                    entry.future.set_result(result)
            except BaseException:  # noqa: BLE001 - a callback raised SystemExit, or the user set the result
                _log.warning("a future did not accept its result", exc_info=True)

    def _results(self, requests: list[Request]) -> Sequence[Result | BaseException]:
        """Return a result or an error for each request, whatever `run` does."""
        try:
            results = self._run(requests)
            if len(results) != len(requests):
                raise BackendError(
                    f"expected {len(requests)} results of a batch of {len(requests)} requests, got {len(results)}"
                )
        except BaseException as error:  # noqa: BLE001 - a worker that ended would leave its futures waiting forever
            _log.warning("a batch of %d requests failed: %s: %s", len(requests), type(error).__name__, error)
            return [error, *(_own_copy(error) for _ in requests[1:])]
        return results


def _own_copy(error: BaseException) -> BaseException:
    """Copy an exception for another thread to raise: a shared one would accumulate every thread's traceback."""
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - whatever its constructor does
        return error
    twin.__cause__ = error
    return twin
