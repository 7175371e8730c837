"""The rules of a measurement, with clocks that the tests wind themselves."""

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest

from centernet_trt.errors import CenterNetError, InputError, ModelError
from centernet_trt.evaluation.bench.stages import WallTimer
from centernet_trt.evaluation.bench.statistics import TimedRequest, part_rates, whole_rate
from centernet_trt.evaluation.bench.throughput import drive
from centernet_trt.evaluation.bench.timing import Subject, TimingRules, measure, timed


class FakeClock:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds


def lasting(
    clock: FakeClock, seconds: float, log: list[str] | None = None, name: str = ""
) -> Callable[[], None]:
    def function() -> None:
        clock.wait(seconds)
        if log is not None:
            log.append(name)

    return function


def test_the_wall_timer_names_the_stages() -> None:
    now = FakeClock()
    clock = WallTimer(now)
    for _ in range(2):  # a clock is used again and again
        clock.start()
        now.wait(1)
        clock.mark("a")
        now.wait(2)
        clock.mark("b")
        now.wait(4)
        clock.mark("a")
        now.wait(8)
        assert clock.finish() == {"a": 5, "b": 2, "whole": 15}


def test_duration_iterations_and_warm_up_are_kept() -> None:
    clock = FakeClock()
    log: list[str] = []
    quick = timed(lasting(clock, 0.25, log, "quick"), clock)
    found = measure({"quick": quick}, TimingRules(warmup=0.5, duration=6, iterations=10, windows=6), clock)
    assert [len(window) for window in found["quick"]] == [4] * 6
    assert found["quick"][0][0] == {"whole": 0.25}
    assert len(log) == 24 + 2  # half a second of warm-up
    slow = timed(lasting(clock, 10), clock)
    found = measure({"slow": slow}, TimingRules(duration=3, iterations=10, windows=6), clock)
    assert [len(window) for window in found["slow"]] == [2] * 6  # at least ten, in equal windows


def test_subjects_take_turns_window_by_window() -> None:
    clock = FakeClock()
    log: list[str] = []
    subjects = {name: timed(lasting(clock, 1, log, name), clock) for name in "ab"}
    told: list[tuple[str, int, int]] = []
    measure(
        subjects,
        TimingRules(warmup=0, duration=6, iterations=10, windows=3),
        clock,
        lambda *words: told.append(words),
    )
    assert "".join(log) == "ab" + "aaaabbbb" * 3
    assert told[-1] == ("b", 2, 3)


def test_windows_hold_whole_cycles() -> None:
    clock = FakeClock()
    turn = itertools.count()

    def call() -> dict[str, float]:
        clock.wait(1)
        return {"whole": float(next(turn) % 4)}

    rules = TimingRules(warmup=0, duration=3, iterations=10, windows=3)
    found = measure({"x": Subject(call, cycle=4)}, rules, clock)["x"]
    assert [sorted(sample["whole"] for sample in window) for window in found] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration": 0.5}, "too short"),
        ({"iterations": 3}, "too short"),
        ({"duration": 0}, "expected a positive duration"),
        ({"duration": float("nan")}, "expected a positive duration"),
        ({"warmup": -1}, "0 or more"),
        ({"windows": 2}, "expected three or more windows"),
        ({"iterations": 0, "allow_short": True}, "1 or more"),
    ],
)
def test_durations_that_say_nothing_are_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TimingRules(**values)  # type: ignore[arg-type]


def test_short_runs_are_marked() -> None:
    assert TimingRules(duration=0.1, iterations=1, allow_short=True).short
    assert not TimingRules().short


IMAGE = np.zeros((2, 2, 3), dtype=np.uint8)


def test_rates_of_requests_by_hand() -> None:
    # One thread, batches of two, an answer every half second: four images a second.
    requests = [TimedRequest(n / 2, (n + 1) / 2, 2) for n in range(10)]
    assert whole_rate(requests) == pytest.approx(4)
    assert part_rates(requests) == pytest.approx((4, 4, 4))
    # The last third takes twice as long.
    late = requests[:7] + [TimedRequest(3.5 + n, 4.5 + n, 2) for n in range(3)]
    assert part_rates(late) == pytest.approx((4, 4, 2))
    with pytest.raises(InputError, match="expected four or more answered requests, got 3"):
        part_rates(requests[:3])
    with pytest.raises(InputError, match="expected two or more answered requests, got 1"):
        whole_rate(requests[:1])


def test_every_thread_asks_and_the_duration_is_kept() -> None:
    clock = FakeClock()
    lock = threading.Lock()
    names: set[str] = set()

    def detect(batch: object) -> None:
        with lock:
            clock.wait(1)
            names.add(threading.current_thread().name)

    rules = TimingRules(warmup=0, duration=40, iterations=10)
    requests = drive(detect, [[IMAGE], [IMAGE, IMAGE]], 2, rules, clock)
    assert len(names) == 2
    assert 38 <= len(requests) <= 42
    assert [r.end for r in requests] == sorted(r.end for r in requests)
    assert {r.images for r in requests} == {1, 2}


def test_an_error_of_one_thread_stops_all_and_is_told() -> None:
    turn = itertools.count()

    def detect(batch: object) -> None:
        if next(turn) == 5:
            raise ModelError("the sixth request fails")

    rules = TimingRules(warmup=0, duration=3600, iterations=10)
    with pytest.raises(CenterNetError, match="sixth request"):
        drive(detect, [[IMAGE]], 3, rules)
    with pytest.raises(InputError, match="expected at least one batch"):
        drive(detect, [], 1, rules)
