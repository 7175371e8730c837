"""The driver binding over PyCUDA."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Dimensions, DriverError, Handle
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings

_INSTALL = "install it: make gpu in a checkout of the repository; or use binding='cuda-bindings'"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_HOST_BYTE = ctypes.c_char


class PyCuda:
    """See `driver_binding.Binding`."""

    name = "pycuda"

    def __init__(self) -> None:
        """Load the package and start the driver.

        Raises:
            CudaError: there is no such package, it does not load, or there is no device.
        """
        try:
            from pycuda import driver
        except ImportError as error:
            raise CudaError(f"PyCUDA cannot be imported: {error}", _INSTALL) from error
        self._cu: Any = driver
        self._other = CudaBindings()
        self._codes = self._other.codes_by_meaning()
        self._call("cuInit", driver.init)
        self._thread = (
            threading.local()
        )  # `contexts`: those that are current in this thread, the innermost last
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except self._cu.Error as error:
            failed = self._translated(name, error)
        # The traceback keeps this frame: what it refers to would be freed when the exception goes, not when it is closed.
        del function, arguments, named
        raise failed

    def _translated(self, call: str, error: Exception) -> CudaError:
        """PyCUDA's errors say "cuMemAlloc failed: out of memory"; the number is found by the meaning."""
        text = str(error)
        said, separator, meaning = text.partition(" failed: ")
        found = self._codes.get(meaning.split(" - ")[0].strip())
        if not separator or found is None:
            return CudaError(f"{call} failed: {text}")
        return DriverError(said, found[0], found[1], meaning.removesuffix(" - "))

    def retain(self, index: int) -> Handle:
        """The primary context of a device."""
        device = self._call("cuDeviceGet", self._cu.Device, index)
        return _Context(self._call("cuDevicePrimaryCtxRetain", device.retain_primary_context))

    def release(self, index: int, context: Handle) -> None:
        """Give the primary context back."""
        # PyCUDA gives it back only where it is current, and leaves it current then.
        self._call("cuCtxPushCurrent", context.held.push)
        try:
            self._call("cuDevicePrimaryCtxRelease", context.held.detach)
        finally:
            self._other.pop()

    def push(self, context: Handle) -> None:
        """Make a context current in this thread."""
        self._other.push_handle(context.handle)
        contexts = getattr(self._thread, "contexts", None)
        if contexts is None:
            contexts = self._thread.contexts = []
        contexts.append(context)

    def pop(self) -> None:
        """Make the one before it current again."""
        self._thread.contexts.pop()
        self._other.pop()

    @contextmanager
    def _known_to_pycuda(self) -> Iterator[None]:
        """The current context on PyCUDA's own stack, for calls that look there."""
        self._call("cuCtxPushCurrent", self._thread.contexts[-1].held.push)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent", self._cu.Context.pop)

    def _make(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call that makes or frees something."""
        with self._known_to_pycuda():
            try:
                return self._call(name, function, *arguments)
            finally:
                del function, arguments  # as in `_call`

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory."""
        made = self._make("cuMemAlloc", self._cu.mem_alloc, nbytes)
        self._memory[int(made)] = made
        return int(made)

    def free(self, address: int) -> None:
        """Free it."""
        self._make("cuMemFree", self._memory.pop(address).free)

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of new page-locked host memory."""
        made = self._make("cuMemHostAlloc", self._cu.pagelocked_empty, nbytes, np.uint8)
        address = int(made.ctypes.data)
        self._pinned[address] = made.base  # the array's base owns the memory
        return address

    def free_pinned(self, address: int) -> None:
        """Free it."""
        self._make("cuMemFreeHost", self._pinned.pop(address).free)

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        return int(self._call("cuMemGetInfo", self._cu.mem_get_info)[0])

    def create_stream(self) -> tuple[Handle, int]:
        """A non-blocking stream and its number."""
        made = _Box(self._make("cuStreamCreate", self._cu.Stream, _NON_BLOCKING))
        return made, int(made.held.handle)

    def destroy_stream(self, stream: Handle) -> None:
        """Destroy it."""
        with self._known_to_pycuda():
            stream.held = None

    def synchronize(self, stream: Handle) -> None:
        """Wait for all work of a stream."""
        self._call("cuStreamSynchronize", stream.held.synchronize)

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy from pinned memory, asynchronously."""
        host = (_HOST_BYTE * nbytes).from_address(source)
        self._call("cuMemcpyHtoDAsync", self._cu.memcpy_htod_async, target, host, stream.held)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy to pinned memory, asynchronously."""
        host = (_HOST_BYTE * nbytes).from_address(target)
        self._call("cuMemcpyDtoHAsync", self._cu.memcpy_dtoh_async, host, source, stream.held)

    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        """Set every byte, asynchronously."""
        self._call("cuMemsetD8Async", self._cu.memset_d8_async, address, value, nbytes, stream.held)

    def create_event(self, timing: bool, spin: bool) -> Handle:
        """An event; without `spin` those who wait for it sleep."""
        flags = self._cu.event_flags
        wanted = (0 if spin else flags.BLOCKING_SYNC) | (0 if timing else flags.DISABLE_TIMING)
        return _Box(self._make("cuEventCreate", self._cu.Event, wanted))

    def destroy_event(self, event: Handle) -> None:
        """Destroy it."""
        with self._known_to_pycuda():
            event.held = None

    def record(self, event: Handle, stream: Handle) -> None:
        """Let the event mark this point of the stream."""
        self._call("cuEventRecord", event.held.record, stream.held)

    def wait_event(self, stream: Handle, event: Handle) -> None:
        """Let later work of the stream wait for the event."""
        self._call("cuStreamWaitEvent", stream.held.wait_for_event, event.held)

    def synchronize_event(self, event: Handle) -> None:
        """Wait for the event in this thread."""
        self._call("cuEventSynchronize", event.held.synchronize)

    def event_done(self, event: Handle) -> bool:
        """Whether it has happened."""
        return bool(self._call("cuEventQuery", event.held.query))

    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        """Milliseconds between two events."""
        return float(self._call("cuEventElapsedTime", after.held.time_since, before.held))

    def load_module(self, cubin: bytes) -> Handle:
        """Load device code."""
        return _Module(self._make("cuModuleLoadData", self._cu.module_from_buffer, cubin))

    def unload_module(self, module: Handle) -> None:
        """Unload it."""
        with self._known_to_pycuda():
            module.functions.clear()  # each keeps the module loaded
            module.held = None

    def function(self, module: Handle, name: str) -> Handle:
        """An entry point of a module."""
        module.functions[name] = self._make("cuModuleGetFunction", module.held.get_function, name)
        return module, name

    def launch(
        self,
        function: Handle,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        params: Any,
        stream: Handle,
    ) -> None:
        """Launch a kernel whose one parameter is `params`."""
        packed = np.frombuffer(bytes(params), dtype=np.uint8)
        named = {"grid": grid, "block": block, "shared": shared_bytes, "stream": stream.held}
        module, name = function
        self._call("cuLaunchKernel", module.functions[name], packed, **named)


class _Box:
    """Holds PyCUDA's object until it is destroyed; emptying it calls the driver."""

    def __init__(self, held: Any) -> None:
        self.held = held


class _Context(_Box):
    def __init__(self, held: Any) -> None:
        super().__init__(held)
        self.handle = int(held.handle)


class _Module(_Box):
    def __init__(self, held: Any) -> None:
        super().__init__(held)
        self.functions: dict[str, Any] = {}
