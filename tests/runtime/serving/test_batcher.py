"""The dynamic batcher: a fake clock, events, and many threads; no test sleeps."""

import asyncio
import concurrent.futures
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime.serving.batcher import DynamicBatcher
from centernet_trt.runtime.serving.types import Batching, QueueFullError, RequestStats, percentile

LONG = 30.0  # seconds; how long a broken test hangs before it fails


class FakeClock:
    """Time stands still until `advance`; whoever waits is reported, and woken by it."""

    def __init__(self) -> None:
        self.time = 100.0
        self.waits: list[float | None] = []
        self._waiting: set[threading.Condition] = set()
        self._waited = threading.Semaphore(0)

    def now(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, timeout: float | None) -> None:
        self.waits.append(timeout)
        self._waiting.add(condition)
        self._waited.release()
        assert condition.wait(LONG), "nobody woke the waiter"

    def until_waits(self, count: int = 1) -> None:
        """Return when `wait` has been called so many more times."""
        for _ in range(count):
            assert self._waited.acquire(timeout=LONG)

    def advance(self, seconds: float) -> None:
        self.time += seconds
        for condition in list(self._waiting):
            with condition:
                condition.notify_all()


class Runner:
    """Answers a request with its double; can be held at a gate, and keeps the batches that it saw."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        if not held:
            self.gate.set()

    def __call__(self, batch: list[int]) -> list[int | Exception]:
        self.batches.append(batch)
        self.entered.release()
        assert self.gate.wait(LONG)
        return [ValueError(f"bad {value}") if value < 0 else 2 * value for value in batch]

    def until_entered(self) -> None:
        assert self.entered.acquire(timeout=LONG)


@contextmanager
def batcher(
    run: Callable[[list[Any]], Sequence[Any]],
    max_batch: int = 4,
    clock: FakeClock | None = None,
    **settings: Any,
) -> Iterator[DynamicBatcher[Any, Any]]:
    made: DynamicBatcher[Any, Any] = DynamicBatcher(
        run, max_batch, Batching(**settings), name="test", clock=clock
    )
    try:
        yield made
    finally:
        if isinstance(run, Runner):
            run.gate.set()
        made.close(drain=False)


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_a_partial_batch_waits_for_its_time_and_no_longer() -> None:
    clock, run = FakeClock(), Runner()
    with batcher(run, clock=clock, max_wait=0.5) as made:
        futures = [made.submit(1)]
        clock.until_waits()
        assert clock.waits == [0.5]
        clock.time += 0.2
        futures.append(made.submit(2))
        clock.until_waits()
        assert clock.waits[1] == pytest.approx(0.3)  # what is left to the oldest
        assert run.batches == []
        clock.advance(0.3)
        assert [future.result(LONG) for future in futures] == [2, 4]
        assert run.batches == [[1, 2]]
        clock.until_waits()
        assert clock.waits[2] is None  # idle: no time to wake at, so nothing polls
        assert len(clock.waits) == 3


def test_a_full_batch_does_not_wait() -> None:
    clock, run = FakeClock(), Runner()
    with batcher(run, max_batch=3, clock=clock, max_wait=1000.0) as made:
        futures = [made.submit(value) for value in range(7)]
        assert [future.result(LONG) for future in futures[:6]] == [0, 2, 4, 6, 8, 10]
        assert run.batches == [[0, 1, 2], [3, 4, 5]]
        assert not futures[6].done()
        clock.advance(1000.0)
        assert futures[6].result(LONG) == 12


def test_groups_are_not_mixed_and_the_oldest_goes_first() -> None:
    clock, run = FakeClock(), Runner(held=True)
    with batcher(run, max_batch=2, clock=clock, max_wait=0.0) as made:
        first = made.submit(0, "warm")
        run.until_entered()
        futures = [made.submit(value, group) for value, group in ((1, "b"), (2, "a"), (3, "b"), (4, "c"))]
        run.gate.set()
        assert [future.result(LONG) for future in (first, *futures)] == [0, 2, 4, 6, 8]
        assert run.batches == [[0], [1, 3], [2], [4]]


def test_no_thread_before_the_first_request_and_no_more_than_allowed() -> None:
    run = Runner(held=True)
    with batcher(run, max_batch=1, workers=2, max_wait=0.0) as made:
        assert threads_named("test-") == []
        futures = [made.submit(0)]
        run.until_entered()
        assert len(threads_named("test-")) == 1
        futures += [made.submit(value) for value in (1, 2, 3)]
        run.until_entered()
        assert len(threads_named("test-")) == 2
        run.gate.set()
        assert [future.result(LONG) for future in futures] == [0, 2, 4, 6]
    assert threads_named("test-") == []


def test_what_remains_after_a_batch_gets_another_worker() -> None:
    clock, run = FakeClock(), Runner(held=True)
    with batcher(run, clock=clock, workers=2, max_wait=5.0) as made:
        futures = [made.submit(1, "a")]
        clock.until_waits()
        futures.append(made.submit(2, "b"))
        clock.until_waits()
        assert len(threads_named("test-")) == 1  # one that waits suffices as long as nothing is due
        clock.advance(5.0)
        for _ in futures:
            run.until_entered()
        run.gate.set()
        assert [future.result(LONG) for future in futures] == [2, 4]


def test_a_full_queue_refuses_waits_or_times_out() -> None:
    clock, run = FakeClock(), Runner(held=True)
    with batcher(run, max_batch=1, clock=clock, queue=2, max_wait=0.0) as made:
        futures = [made.submit(0)]
        run.until_entered()
        futures += [made.submit(1), made.submit(2)]
        with pytest.raises(QueueFullError, match="2 requests wait, the queue holds 2"):
            made.submit(3, timeout=0)

        late: list[Future[Any] | BaseException] = []

        def submit(value: int, timeout: float | None) -> None:
            try:
                late.append(made.submit(value, timeout=timeout))
            except QueueFullError as error:
                late.append(error)

        timed = threading.Thread(target=submit, args=(4, 5.0))
        timed.start()
        clock.until_waits()
        clock.advance(5.0)
        timed.join(LONG)
        assert isinstance(late[0], QueueFullError)
        assert "no space within 5.0 s" in late[0].message
        patient = threading.Thread(target=submit, args=(5, None))
        patient.start()
        clock.until_waits()
        assert clock.waits[-1] is None
        run.gate.set()
        patient.join(LONG)
        accepted = late[1]
        assert isinstance(accepted, Future)
        assert [future.result(LONG) for future in (*futures, accepted)] == [0, 2, 4, 10]
        assert made.statistics.rejected == 2
        for timeout in (-1.0, float("nan")):
            with pytest.raises(InputError, match="timeout"):
                made.submit(6, timeout=timeout)


def test_cancelling_a_queued_request_frees_its_place() -> None:
    run = Runner(held=True)
    with batcher(run, max_batch=2, queue=2, max_wait=0.0) as made:
        running = made.submit(0)
        run.until_entered()
        queued = [made.submit(1, "g"), made.submit(2, "g")]
        assert not running.cancel()
        assert queued[0].cancel()
        # A waiter learns of it at once, not when a worker comes by.
        assert concurrent.futures.wait([queued[0]], timeout=0).done
        assert made.statistics.queue_depth == 1
        replaced = made.submit(3, "g", timeout=0)
        run.gate.set()
        assert [future.result(LONG) for future in (running, queued[1], replaced)] == [0, 4, 6]
        with pytest.raises(CancelledError):
            queued[0].result(0)
        assert run.batches == [[0], [2, 3]]
        figures = made.statistics
        assert (figures.submitted, figures.completed, figures.cancelled) == (4, 3, 1)


def test_one_bad_request_fails_alone() -> None:
    clock = FakeClock()
    with batcher(Runner(), max_batch=3, clock=clock, max_wait=9.0) as made:
        good, bad, other = (made.submit(value) for value in (1, -1, 2))
        assert (good.result(LONG), other.result(LONG)) == (2, 4)
        with pytest.raises(ValueError, match="bad -1"):
            bad.result(LONG)
        figures = made.statistics
        assert (figures.completed, figures.failed, figures.running) == (2, 1, 0)


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3), BackendError("gone", "come back")])
def test_an_exception_reaches_every_future_and_the_worker_lives_on(error: BaseException) -> None:
    failing = True

    def run(batch: list[int]) -> list[int]:
        if failing:
            raise error
        return batch

    clock = FakeClock()
    with batcher(run, max_batch=3, clock=clock, max_wait=9.0) as made:
        futures = [made.submit(value) for value in range(3)]
        raised = [future.exception(LONG) for future in futures]
        assert [type(one) for one in raised] == [type(error)] * 3
        assert len({id(one) for one in raised}) == 3  # each its own: tracebacks of threads do not mix
        assert {str(one) for one in raised} == {str(error)}
        failing = False
        assert [made.submit(value) for value in range(3)][2].result(LONG) == 2
        assert len(threads_named("test-")) == 1


def test_a_wrong_number_of_results_and_a_callback_that_exits() -> None:
    def leave(_: Future[Any]) -> None:
        raise SystemExit(3)

    clock = FakeClock()
    with batcher(lambda batch: batch[1:], max_batch=2, clock=clock, max_wait=9.0) as made:
        futures = [made.submit(1), made.submit(2)]
        with pytest.raises(BackendError, match="expected 2 results of a batch of 2 requests, got 1"):
            futures[0].result(LONG)
        futures[1].exception(LONG)
    run = Runner(held=True)
    with batcher(run, max_batch=2, max_wait=0.0) as made:
        future = made.submit(1)
        run.until_entered()
        future.add_done_callback(leave)
        run.gate.set()
        assert future.result(LONG) == 2
        assert made.submit(2).result(LONG) == 4


def test_a_callback_may_submit_and_close() -> None:
    run, heard = Runner(held=True), []
    with batcher(run, max_batch=1, queue=1, max_wait=0.0) as made:

        def again(_: Future[Any]) -> None:
            try:
                made.submit(7)  # the queue is full and this is the only worker: it must not wait for itself
            except QueueFullError as error:
                heard.append(error)
            made.close(drain=False)
            heard.append("closed")

        first = made.submit(1)
        run.until_entered()
        first.add_done_callback(again)
        second = made.submit(2)
        run.gate.set()
        assert isinstance(second.exception(LONG), BackendError)
        made.close()
        assert [str(one)[:17] for one in heard] == ["1 requests wait, ", "closed"]


def test_close_drains() -> None:
    run = Runner(held=True)
    with batcher(run, max_batch=1, max_wait=1000.0) as made:
        futures = [made.submit(value) for value in range(3)]
        run.until_entered()
        closer = threading.Thread(target=made.close)
        closer.start()
        run.gate.set()
        closer.join(LONG)
        assert [future.result(0) for future in futures] == [0, 2, 4]
        with pytest.raises(BackendError, match="closed and takes no more"):
            made.submit(4)
        made.close()


def test_close_runs_a_partial_batch_at_once() -> None:
    clock, run = FakeClock(), Runner()
    with batcher(run, clock=clock, max_wait=1000.0) as made:
        future = made.submit(1)
        clock.until_waits()
        made.close()
        assert future.result(0) == 2


def test_close_aborts_and_wakes_those_who_wait_for_room() -> None:
    clock, run = FakeClock(), Runner(held=True)
    with batcher(run, max_batch=1, queue=1, clock=clock, max_wait=0.0) as made:
        running = made.submit(0)
        run.until_entered()
        queued = made.submit(1)
        refused: list[BaseException] = []

        def submit() -> None:
            try:
                made.submit(2)
            except BackendError as error:
                refused.append(error)

        patient = threading.Thread(target=submit)
        patient.start()
        clock.until_waits()
        closer = threading.Thread(target=made.close, kwargs={"drain": False})
        closer.start()
        with pytest.raises(BackendError, match="closed before this request was run"):
            queued.result(LONG)
        patient.join(LONG)
        assert "takes no more" in str(refused[0])
        run.gate.set()
        closer.join(LONG)
        assert running.result(0) == 0
        figures = made.statistics
        assert (figures.completed, figures.failed, figures.queue_depth) == (1, 1, 0)


def test_a_future_can_be_awaited_and_cancelled_by_its_task() -> None:
    run = Runner(held=True)
    with batcher(run, max_batch=1, max_wait=0.0) as made:

        async def main() -> list[Any]:
            first, second, third = (made.submit(value) for value in (1, -2, 3))

            async def waits() -> Any:
                return await third

            task = asyncio.ensure_future(waits())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            run.gate.set()
            return [
                await first,
                *await asyncio.gather(second, task, return_exceptions=True),
                third.cancelled(),
            ]

        answers = asyncio.run(main())
        assert answers[0] == 2
        assert [type(answer) for answer in answers[1:3]] == [ValueError, asyncio.CancelledError]
        assert answers[3]


def test_an_idle_worker_keeps_neither_request_nor_result_alive() -> None:
    class Thing:
        pass

    clock = FakeClock()
    with batcher(lambda batch: [Thing() for _ in batch], clock=clock, max_wait=0.0) as made:
        picture = Thing()
        future = made.submit(picture)
        picture_alive, result_alive = weakref.ref(picture), weakref.ref(future.result(LONG))
        del picture
        clock.until_waits()
        gc.collect()
        assert picture_alive() is None  # although its future is still there
        assert result_alive() is not None
        del future
        gc.collect()
        assert result_alive() is None


@pytest.mark.parametrize(
    "wrong", [{"max_batch": 0}, {"queue": 0}, {"workers": 0}, {"max_wait": -1.0}, {"max_wait": float("inf")}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Batching(**wrong)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 10), max_size=50), st.integers(1, 20))
def test_percentiles_and_window(latencies: list[float], window: int) -> None:
    stats = RequestStats(window)
    for latency in latencies:
        stats.batch(1)
        stats.done(latency, failed=False)
    kept = sorted(latencies[-window:])
    figures = stats.snapshot(0)
    for share, found in ((0.5, figures.latency_p50), (0.99, figures.latency_p99)):
        assert found == percentile(kept, share)
        if found is not None:
            assert sum(value <= found for value in kept) >= share * len(kept)
            assert sum(value < found for value in kept) < share * len(kept)
    assert figures.batch_sizes == ({1: len(latencies)} if latencies else {})


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.0005]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_many_threads(
    max_batch: int, workers: int, queue: int, max_wait: float, drain: bool, seed: int
) -> None:
    """Whatever is submitted, cancelled and closed at once: every future ends, with its own answer, and all is counted."""
    sizes: list[tuple[int, int]] = []

    def run(batch: list[tuple[int, int]]) -> list[Any]:
        sizes.append((len(batch), len({group for _, group in batch})))
        return [ValueError(value) if value % 7 == 0 else 2 * value for value, _ in batch]

    made: DynamicBatcher[Any, Any] = DynamicBatcher(
        run, max_batch, Batching(max_wait=max_wait, queue=queue, workers=workers)
    )
    futures: dict[int, Future[Any]] = {}
    refused = []

    def client(number: int) -> None:
        chance = random.Random(seed + number)
        for step in range(40):
            value, group = number * 1000 + step, chance.randrange(3)
            try:
                future = made.submit((value, group), group, chance.choice([None, 0.0, 0.001]))
            except QueueFullError:
                refused.append(value)
                continue
            futures[value] = future
            if chance.random() < 0.2:
                future.cancel()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    made.close(drain)
    outcomes = {"completed": 0, "failed": 0, "cancelled": 0}
    for value, future in futures.items():
        assert future.done()
        if future.cancelled():
            outcomes["cancelled"] += 1
        elif (error := future.exception(0)) is not None:
            assert isinstance(error, BackendError) or value % 7 == 0
            outcomes["failed"] += 1
        else:
            assert future.result(0) == 2 * value
            outcomes["completed"] += 1
    figures = made.statistics
    assert {name: getattr(figures, name) for name in outcomes} == outcomes
    assert (figures.submitted, figures.rejected) == (len(futures), len(refused))
    assert (figures.queue_depth, figures.running) == (0, 0)
    assert all(size <= max_batch and groups == 1 for size, groups in sizes)
    assert sum(size * count for size, count in figures.batch_sizes.items()) == sum(size for size, _ in sizes)


def test_an_idle_batcher_uses_no_processor_time() -> None:
    """With the real clock: a worker that has nothing to do is asleep, in a wait without a timeout."""
    with batcher(lambda batch: batch, max_wait=0.001) as made:
        made.submit(1).result(LONG)
        (worker,) = threads_named("test-")
        assert worker.ident is not None
        clock = time.pthread_getcpuclockid(worker.ident)
        pause = threading.Event()
        pause.wait(0.02)
        before = time.clock_gettime(clock)
        pause.wait(0.1)
        assert time.clock_gettime(clock) - before < 0.005
