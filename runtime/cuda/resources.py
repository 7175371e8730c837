"""Streams, events, buffers, pinned buffers, modules and graphs."""

import ctypes
import mmap
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Dimensions, Handle

if TYPE_CHECKING:
    from centernet_trt.runtime.cuda.device import Device


class Resource:
    """Base: something of the driver's, freed by `close()` and by nothing else. A context manager."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        self._open = True
        self._closing = threading.Lock()
        device.register(self)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return not self._open

    def close(self) -> None:
        """Free it. May be called twice, from any thread; in a fork of the process it does nothing."""
        with self._closing:
            if not self._open or self.device.foreign_process:
                return
            self._open = False
        self.device.unregister(self)
        with self.device.current:
            self._free()

    def _free(self) -> None:
        raise NotImplementedError

    def _check_open(self) -> None:
        if not self._open:
            raise CudaError(f"the {type(self).__name__} is closed", "make another")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceBuffer(Resource):
    """Device memory: `address`, aligned to 256 bytes, and `nbytes`. Other libraries see it as a uint8 array."""

    def __init__(self, device: "Device", nbytes: int) -> None:
        with device.current:
            self.address = device.binding.allocate(max(nbytes, 1))
        self.nbytes = nbytes
        super().__init__(device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._check_open()
        return {
            "shape": (self.nbytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
            "strides": None,
        }

    def _free(self) -> None:
        self.device.binding.free(self.address)


class PinnedBuffer(Resource):
    """Page-locked host memory: `address`, `nbytes`, and `array`, (nbytes,) uint8, which is gone after `close()`."""

    def __init__(self, device: "Device", nbytes: int) -> None:
        with device.current:
            self.address = device.binding.allocate_pinned(max(nbytes, 1))
        self.nbytes = nbytes
        self._array: npt.NDArray[np.uint8] | None = _view(self.address, nbytes)
        super().__init__(device)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory as (nbytes,) uint8. Keep no view of it beyond `close()`."""
        self._check_open()
        assert self._array is not None
        return self._array

    def _free(self) -> None:
        self._array = None
        self.device.binding.free_pinned(self.address)


class RegisteredMemory(Resource):
    """Host memory that Python owns, page-locked until `close()`. Arrays in it stay good after that, as ordinary memory."""

    def __init__(self, device: "Device", nbytes: int) -> None:
        # Pages of its own, since two locked ranges must not share one; a shared mapping, which a fork does not copy on write.
        self._pages = mmap.mmap(-1, max(nbytes, 1))
        self.nbytes = nbytes
        self.address = int(self.view().ctypes.data)
        with device.current:
            device.graphs.lock_host_memory(self.address, max(nbytes, 1))
        super().__init__(device)

    def view(self) -> npt.NDArray[np.uint8]:
        """The memory as (nbytes,) uint8; it keeps the pages."""
        return np.frombuffer(self._pages, np.uint8, self.nbytes)

    def _free(self) -> None:
        self.device.graphs.unlock_host_memory(self.address)


def _view(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class Event(Resource):
    """A point of a stream to wait for, or to measure from."""

    def __init__(self, device: "Device", timing: bool, spin: bool) -> None:
        with device.current:
            self.handle: Handle = device.binding.create_event(timing, spin)
        super().__init__(device)

    def synchronize(self) -> None:
        """Wait for it in this thread."""
        with self.device.current:
            self.device.binding.synchronize_event(self.handle)

    @property
    def done(self) -> bool:
        """Whether it has happened; true before it was ever recorded."""
        with self.device.current:
            return self.device.binding.event_done(self.handle)

    def elapsed_ms(self, before: "Event") -> float:
        """Milliseconds from another event to this one; both made with `timing`, and done."""
        with self.device.current:
            return self.device.binding.elapsed_ms(before.handle, self.handle)

    def _free(self) -> None:
        self.device.binding.destroy_event(self.handle)


class Module(Resource):
    """Loaded device code."""

    def __init__(self, device: "Device", cubin: bytes) -> None:
        with device.current:
            self.handle: Handle = device.binding.load_module(cubin)
        super().__init__(device)

    def function(self, name: str) -> Handle:
        """An entry point; good until the module is closed."""
        self._check_open()
        with self.device.current:
            return self.device.binding.function(self.handle, name)

    def _free(self) -> None:
        self.device.binding.unload_module(self.handle)


class Graph(Resource):
    """Recorded work, launched as a whole; made by `Stream.end_capture`."""

    def __init__(self, device: "Device", executable: Handle) -> None:
        self.handle = executable
        super().__init__(device)

    def launch(self, stream: "Stream") -> None:
        """Enqueue it; pointers and shapes are those of the recording."""
        with self.device.current:
            self.device.graphs.launch_graph(self.handle, stream.number)

    def _free(self) -> None:
        self.device.graphs.destroy_executable(self.handle)


class Stream(Resource):
    """A queue of work for the GPU. `number` is its handle as other libraries take it; `__cuda_stream__` gives it."""

    def __init__(self, device: "Device") -> None:
        with device.current:
            self.handle, self.number = device.binding.create_stream()
        super().__init__(device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.number

    def synchronize(self) -> None:
        """Wait in this thread for all of its work."""
        with self.device.current:
            self.device.binding.synchronize(self.handle)

    def copy_to_device(self, target: int, source: int, nbytes: int) -> None:
        """Copy from pinned memory to device memory, by addresses."""
        with self.device.current:
            self.device.binding.copy_to_device(target, source, nbytes, self.handle)

    def copy_to_host(self, target: int, source: int, nbytes: int) -> None:
        """Copy from device memory to pinned memory, by addresses."""
        with self.device.current:
            self.device.binding.copy_to_host(target, source, nbytes, self.handle)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        """Set every byte of device memory."""
        with self.device.current:
            self.device.binding.fill(address, value, nbytes, self.handle)

    def launch(
        self,
        function: Handle,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        params: ctypes.Structure,
    ) -> None:
        """Launch a kernel whose one parameter is `params`, which is copied at once."""
        with self.device.current:
            self.device.binding.launch(function, grid, block, shared_bytes, params, self.handle)

    def record(self, event: Event) -> None:
        """Let the event mark the end of what is enqueued."""
        with self.device.current:
            self.device.binding.record(event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on wait for the event."""
        with self.device.current:
            self.device.binding.wait_event(self.handle, event.handle)

    def wait_for(self, other: int) -> None:
        """Let what is enqueued from now on wait for all work of a stream of another library, by its number."""
        order(self.device, other, self.number)

    def hold_up(self, other: int) -> None:
        """Let later work of another library's stream, by its number, wait for what is enqueued here."""
        order(self.device, self.number, other)

    def begin_capture(self) -> None:
        """Record what this thread enqueues instead of doing it, until `end_capture` or `abandon_capture`."""
        with self.device.current:
            self.device.graphs.begin_capture(self.number)

    def end_capture(self) -> Graph:
        """The recorded work as a graph.

        Raises:
            DriverError: something was done meanwhile that cannot be recorded; the stream is usable again.
        """
        graphs, graph = self.device.graphs, None
        with self.device.current:
            recorded = graphs.end_capture(self.number)
            try:
                try:
                    graph = Graph(self.device, graphs.instantiate(recorded))
                finally:
                    graphs.destroy_graph(recorded)
                graphs.upload_graph(graph.handle, self.number)
            except CudaError:
                with suppress(CudaError):
                    if graph is not None:
                        graph.close()
                raise
            return graph

    def abandon_capture(self) -> None:
        """End a recording and throw it away; the stream is usable again."""
        graphs = self.device.graphs
        # A recording that was lost already is an error, and ended as well.
        with self.device.current, suppress(CudaError):
            graphs.destroy_graph(graphs.end_capture(self.number))

    def _free(self) -> None:
        self.device.binding.destroy_stream(self.handle)


def order(device: "Device", first: int, then: int) -> None:
    """Let later work of the stream `then` wait for the work of the stream `first`, both by number."""
    graphs = device.graphs
    with device.current:
        event = graphs.create_event(timing=False, spin=True)
        try:
            graphs.record(event, first)
            graphs.wait_event(then, event)
        finally:
            graphs.destroy_event(event)  # the driver keeps it until the wait is over
