"""LanePool: the idle lanes of a GpuBackend."""

import threading
from collections.abc import Sequence

from centernet_trt.errors import BackendError, CudaError
from centernet_trt.runtime.cuda.binding import DriverError
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.gpu.lane import Lane


class LanePool:
    """The idle lanes. Safe to use from many threads."""

    def __init__(self, device: Device, lanes: Sequence[Lane]) -> None:
        """Start with all lanes idle."""
        self._device = device
        self._count = len(lanes)
        self._idle = list(lanes)
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._waiting = 0
        self._closing = False
        self._lost: DriverError | None = None

    def take(self) -> Lane:
        """Take an idle lane; waits for one. The caller must hold no other lane: two such callers could deadlock.

        Raises:
            BackendError: the backend is closed.
            CudaError: the GPU cannot be used.
        """
        self.check_usable()
        with self._lock:
            while not self._idle and not self._closing:
                self._wait()
            self._check_open()
            return self._idle.pop()  # the one used last: its graphs and caches are warm

    def take_idle(self) -> Lane | None:
        """Take an idle lane, None if there is none; raises what `take` raises."""
        self.check_usable()
        with self._lock:
            self._check_open()
            return self._idle.pop() if self._idle else None

    def give_back(self, lane: Lane, error: BaseException | None = None) -> None:
        """Return a lane, which is idle again; `error` ended its work."""
        with self._lock:
            if isinstance(error, DriverError) and error.context_lost:
                self._lost = error
            self._idle.append(lane)
            if self._waiting:
                self._change.notify_all()

    def check_usable(self) -> None:
        """Make sure that a lane can be taken, now or later.

        Raises:
            BackendError: the backend is closed.
            CudaError: this process is a fork, or the GPU's context is lost.
        """
        self._check_open()
        if self._lost is not None:
            raise CudaError(f"the GPU failed before: {self._lost.message}", self._lost.hint)
        self._device.check_usable()

    def close(self) -> bool:
        """Close the pool and wait until all lanes are idle. Returns False if it was closed before."""
        with self._lock:
            if self._closing:
                return False
            self._closing = True
            self._change.notify_all()
            while len(self._idle) < self._count:
                self._wait()
            return True

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._change.wait()
        finally:
            self._waiting -= 1

    def _check_open(self) -> None:
        if self._closing:
            raise BackendError("the detector is closed", "load the bundle again: Detector.load(...)")
