"""Resource and its kinds: Stream, Event, DeviceBuffer, PinnedBuffer, RegisteredMemory, Module, Graph."""

import ctypes
import mmap
import threading
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Binding, Dimensions, Handle
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings
from centernet_trt.runtime.cuda.interop import stream_number


class Owner(Protocol):
    """What a resource needs of its Device."""

    @property
    def binding(self) -> Binding:
        """Driver calls."""
        ...

    @property
    def graphs(self) -> CudaBindings:
        """Driver calls for graphs and registered memory."""
        ...

    @property
    def current(self) -> AbstractContextManager[None]:
        """Makes the device's context current in this thread."""
        ...

    @property
    def foreign_process(self) -> bool:
        """Whether this process is a fork of the one that opened the device."""
        ...

    def register(self, resource: "Resource") -> None:
        """Add a resource to those that the device frees when it is closed."""

    def unregister(self, resource: "Resource") -> None:
        """Remove a closed resource."""


class Resource:
    """Base of driver objects, freed by `close()` alone, never by a finalizer. A context manager."""

    def __init__(self, device: Owner) -> None:
        self.device = device
        self._open = True
        self._closing = threading.Lock()
        device.register(self)

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return not self._open

    def close(self) -> None:
        """Free the driver object. Idempotent and thread-safe; a no-op in a forked process."""
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
            raise CudaError(f"the {type(self).__name__} is closed", "create a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceBuffer(Resource):
    """Device memory; other libraries see it as a uint8 array of shape (nbytes,).

    Attributes:
        address: device address, aligned to 256 bytes.
        nbytes: size in bytes.
    """

    def __init__(self, device: Owner, nbytes: int) -> None:
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
    """Pinned (page-locked) host memory.

    Attributes:
        address: host address.
        nbytes: size in bytes.
    """

    def __init__(self, device: Owner, nbytes: int) -> None:
        with device.current:
            self.address = device.binding.allocate_pinned(max(nbytes, 1))
        self.nbytes = nbytes
        self._array: npt.NDArray[np.uint8] | None = _view(self.address, nbytes)
        super().__init__(device)

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The memory as (nbytes,) uint8. Views of it are invalid after `close()`."""
        self._check_open()
        assert self._array is not None
        return self._array

    def _free(self) -> None:
        self._array = None
        self.device.binding.free_pinned(self.address)


class RegisteredMemory(Resource):
    """Host memory owned by Python and pinned until `close()`; arrays in it stay valid after that, as pageable memory."""

    def __init__(self, device: Owner, nbytes: int) -> None:
        # Whole pages, since two pinned ranges must not share one; a shared mapping, which a fork does not copy on write.
        self._pages = mmap.mmap(-1, max(nbytes, 1))
        self.nbytes = nbytes
        self.address = int(self.view().ctypes.data)
        with device.current:
            device.graphs.register_host_memory(self.address, max(nbytes, 1))
        super().__init__(device)

    def view(self) -> npt.NDArray[np.uint8]:
        """Return the memory as (nbytes,) uint8; the array keeps the pages alive."""
        return np.frombuffer(self._pages, np.uint8, self.nbytes)

    def _free(self) -> None:
        self.device.graphs.unregister_host_memory(self.address)


def _view(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class Event(Resource):
    """A point in a stream's work, to wait for or to measure time from."""

    def __init__(self, device: Owner, timing: bool, spin: bool) -> None:
        with device.current:
            self.handle: Handle = device.binding.create_event(timing, spin)
        super().__init__(device)

    def synchronize(self) -> None:
        """Block this thread until the event has completed."""
        with self.device.current:
            self.device.binding.synchronize_event(self.handle)

    @property
    def done(self) -> bool:
        """Whether the event has completed; true before its first recording."""
        with self.device.current:
            return self.device.binding.event_done(self.handle)

    def elapsed_ms(self, before: "Event") -> float:
        """Return the milliseconds from another event to this one; both created with `timing` and completed."""
        with self.device.current:
            return self.device.binding.elapsed_ms(before.handle, self.handle)

    def _free(self) -> None:
        self.device.binding.destroy_event(self.handle)


class Module(Resource):
    """Loaded device code."""

    def __init__(self, device: Owner, cubin: bytes) -> None:
        with device.current:
            self.handle: Handle = device.binding.load_module(cubin)
        super().__init__(device)

    def function(self, name: str) -> Handle:
        """Return an entry point; valid until the module is closed."""
        self._check_open()
        with self.device.current:
            return self.device.binding.function(self.handle, name)

    def _free(self) -> None:
        self.device.binding.unload_module(self.handle)


class Graph(Resource):
    """An executable CUDA graph, made by `Stream.end_capture`."""

    def __init__(self, device: Owner, executable: Handle) -> None:
        self.handle = executable
        super().__init__(device)

    def launch(self, stream: "Stream") -> None:
        """Enqueue the graph, with the addresses and shapes of its capture."""
        with self.device.current:
            self.device.graphs.launch_graph(self.handle, stream.number)

    def _free(self) -> None:
        self.device.graphs.destroy_executable(self.handle)


class Stream(Resource):
    """A CUDA stream; `number` is its CUstream as an integer, for other libraries (`__cuda_stream__` returns it too)."""

    def __init__(self, device: Owner) -> None:
        with device.current:
            self.handle, self.number = device.binding.create_stream()
        super().__init__(device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.number

    def synchronize(self) -> None:
        """Block this thread until all work of the stream is done."""
        with self.device.current:
            self.device.binding.synchronize(self.handle)

    def copy_to_device(self, target: int, source: int, nbytes: int) -> None:
        """Copy from pinned memory to device memory, asynchronously; `target` and `source` are addresses."""
        with self.device.current:
            self.device.binding.copy_to_device(target, source, nbytes, self.handle)

    def copy_to_host(self, target: int, source: int, nbytes: int) -> None:
        """Copy from device memory to pinned memory, asynchronously; `target` and `source` are addresses."""
        with self.device.current:
            self.device.binding.copy_to_host(target, source, nbytes, self.handle)

    def fill(self, address: int, value: int, nbytes: int) -> None:
        """Set every byte of device memory, asynchronously."""
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
        """Launch a kernel with one parameter, `params`, which is copied by the call."""
        with self.device.current:
            self.device.binding.launch(function, grid, block, shared_bytes, params, self.handle)

    def record(self, event: Event) -> None:
        """Record the event after the work enqueued so far."""
        with self.device.current:
            self.device.binding.record(event.handle, self.handle)

    def wait(self, event_or_stream: Any) -> None:
        """Make later work of this stream wait for an event, or for the work enqueued on another stream.

        Args:
            event_or_stream: an Event, or a stream of any library or its number (see `interop.stream_number`).

        Raises:
            InputError: neither an event nor a stream.
        """
        if isinstance(event_or_stream, Event):
            with self.device.current:
                self.device.binding.wait_event(self.handle, event_or_stream.handle)
        else:
            _order(self.device, stream_number(event_or_stream), self.number)

    def make_wait(self, other: Any) -> None:
        """Make later work of another stream wait for the work enqueued on this one.

        Args:
            other: a stream of any library, or its number.

        Raises:
            InputError: not a stream.
        """
        _order(self.device, self.number, stream_number(other))

    def begin_capture(self) -> None:
        """Capture what this thread enqueues instead of running it, until `end_capture` or `abandon_capture`."""
        with self.device.current:
            self.device.graphs.begin_capture(self.number)

    def end_capture(self) -> Graph:
        """Stop capturing and return the captured work as a graph.

        Raises:
            DriverError: an operation in between cannot be captured; the stream is usable again.
        """
        graphs, graph = self.device.graphs, None
        with self.device.current:
            captured = graphs.end_capture(self.number)
            try:
                try:
                    graph = Graph(self.device, graphs.instantiate(captured))
                finally:
                    graphs.destroy_graph(captured)
                graphs.upload_graph(graph.handle, self.number)
            except CudaError:
                with suppress(CudaError):
                    if graph is not None:
                        graph.close()
                raise
            return graph

    def abandon_capture(self) -> None:
        """Stop capturing and discard what was captured; the stream is usable again."""
        graphs = self.device.graphs
        # An invalidated capture raises, but is ended too.
        with self.device.current, suppress(CudaError):
            graphs.destroy_graph(graphs.end_capture(self.number))

    def _free(self) -> None:
        self.device.binding.destroy_stream(self.handle)


def _order(device: Owner, first: int, then: int) -> None:
    """Make later work of stream number `then` wait for the work enqueued on stream number `first`."""
    graphs = device.graphs
    with device.current:
        event = graphs.create_event(timing=False, spin=True)
        try:
            graphs.record(event, first)
            graphs.wait_event(then, event)
        finally:
            graphs.destroy_event(event)  # the driver frees it after the wait
