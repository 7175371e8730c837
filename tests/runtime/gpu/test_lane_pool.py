"""The pool of idle streams, with lanes that do nothing: who waits, who is woken, and what is told after a failure."""

import threading
from typing import Any

import pytest

from centernet_trt.errors import BackendError, CudaError
from centernet_trt.runtime.cuda.binding import DriverError
from centernet_trt.runtime.gpu.lane_pool import LanePool

LONG = 30.0


class Gpu:
    """A device that can be used, or not."""

    usable = True

    def check_usable(self) -> None:
        if not self.usable:
            raise CudaError("the GPU is closed")


def pool(count: int) -> tuple[LanePool, list[Any], Gpu]:
    lanes: list[Any] = [object() for _ in range(count)]
    device: Any = Gpu()
    return LanePool(device, lanes), lanes, device


def waiters(made: LanePool, count: int) -> None:
    """Return when so many threads wait."""
    alarm = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if made._waiting == count:
            return
        alarm.wait(0.01)
    raise AssertionError(f"{made._waiting} threads wait, {count} were expected")


def test_the_lane_used_last_is_taken_first() -> None:
    made, lanes, _ = pool(3)
    taken = [made.take() for _ in lanes]
    assert set(map(id, taken)) == set(map(id, lanes))
    assert made.take_idle() is None
    made.give_back(taken[0])
    made.give_back(taken[2])
    assert made.take() is taken[2]
    assert made.take_idle() is taken[0]


def test_those_who_wait_are_woken() -> None:
    made, _, _ = pool(2)
    first, second = made.take(), made.take()
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(made.take()), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiters(made, 2)
    made.give_back(first)
    made.give_back(second)
    for thread in threads:
        thread.join(LONG)
    assert set(map(id, got)) == {id(first), id(second)}
    assert made._waiting == 0


def test_close_waits_for_the_lanes_and_refuses_the_others() -> None:
    made, _, _ = pool(2)
    busy = [made.take(), made.take()]
    told: list[object] = []

    def wants_one() -> None:
        try:
            made.take()
        except BackendError as error:
            told.append(error.message)

    threads = [threading.Thread(target=wants_one, daemon=True)]
    threads[0].start()
    waiters(made, 1)
    threads.append(threading.Thread(target=lambda: told.append(made.close()), daemon=True))
    threads[1].start()
    threads[0].join(LONG)
    assert told == ["the detector is closed"]
    waiters(made, 1)  # close, for the two lanes
    made.give_back(busy[0])
    assert told == ["the detector is closed"]
    made.give_back(busy[1])
    threads[1].join(LONG)
    assert told == ["the detector is closed", True]
    assert made.close() is False
    for take in (made.take, made.take_idle, made.check_usable):
        with pytest.raises(BackendError, match="closed"):
            take()


def test_a_lost_context_is_told_to_all_and_other_errors_to_nobody() -> None:
    made, _, device = pool(1)
    for error in (
        None,
        ValueError("mine"),
        DriverError("cuX", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    ):
        made.give_back(made.take(), error)
    made.give_back(made.take(), DriverError("cuX", 719, "CUDA_ERROR_LAUNCH_FAILED", "launch failure"))
    for _ in range(2):
        with pytest.raises(CudaError, match="the GPU failed before: cuX failed") as caught:
            made.take()
        assert "start a new process" in caught.value.hint
    assert made.close()
    made, _, device = pool(1)
    device.usable = False
    with pytest.raises(CudaError, match="the GPU is closed"):
        made.take()
