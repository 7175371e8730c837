"""PyCuda: the driver binding of the package PyCUDA."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from typing_extensions import override  # a dependency of pydantic; in typing from Python 3.12 on

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Binding, Dimensions, DriverError, Handle
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings

_INSTALL = "install it by `make gpu` in a checkout of the repository, or use binding='cuda-bindings'"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_HOST_BYTE = ctypes.c_char


class PyCuda(Binding):
    """Driver calls by PyCUDA."""

    name = "pycuda"

    def __init__(self) -> None:
        """Import the package and initialise the driver.

        Raises:
            CudaError: the package cannot be imported, or there is no driver or device.
        """
        try:
            from pycuda import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs
        except ImportError as error:
            raise CudaError(f"PyCUDA cannot be imported: {error}", _INSTALL) from error
        self._cu: Any = driver
        self._other = CudaBindings()
        self._codes = self._other.codes_by_meaning()
        self._call("cuInit", driver.init)
        self._thread = threading.local()  # .contexts: stack of the contexts pushed by this thread
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except self._cu.Error as error:
            failed = self._translated(name, error)
        # The traceback keeps this frame alive, and by it driver objects beyond their `close()`.
        del function, arguments, named
        raise failed

    def _translated(self, call: str, error: Exception) -> CudaError:
        """Convert PyCUDA's "cuMemAlloc failed: out of memory"; the code is found by the description."""
        text = str(error)
        said, separator, meaning = text.partition(" failed: ")
        found = self._codes.get(meaning.split(" - ")[0].strip())
        if not separator or found is None:
            return CudaError(f"{call} failed: {text}")
        return DriverError(said, found[0], found[1], meaning.removesuffix(" - "))

    @override
    def retain(self, index: int) -> Handle:
        device = self._call("cuDeviceGet", self._cu.Device, index)
        return _Context(self._call("cuDevicePrimaryCtxRetain", device.retain_primary_context))

    @override
    def release(self, index: int, context: Handle) -> None:
        # PyCUDA releases a context only while it is current, and leaves it current.
        self._call("cuCtxPushCurrent", context.held.push)
        try:
            self._call("cuDevicePrimaryCtxRelease", context.held.detach)
        finally:
            self._other.pop()

    @override
    def push(self, context: Handle) -> None:
        self._other.push_handle(context.handle)
        contexts = getattr(self._thread, "contexts", None)
        if contexts is None:
            contexts = self._thread.contexts = []
        contexts.append(context)

    @override
    def pop(self) -> None:
        self._thread.contexts.pop()
        self._other.pop()

    @contextmanager
    def _known_to_pycuda(self) -> Iterator[None]:
        """Push the current context on PyCUDA's own stack, for calls that look there."""
        self._call("cuCtxPushCurrent", self._thread.contexts[-1].held.push)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent", self._cu.Context.pop)

    def _make(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make a call that creates or frees a driver object."""
        with self._known_to_pycuda():
            try:
                return self._call(name, function, *arguments)
            finally:
                del function, arguments  # as in `_call`

    @override
    def allocate(self, nbytes: int) -> int:
        made = self._make("cuMemAlloc", self._cu.mem_alloc, nbytes)
        self._memory[int(made)] = made
        return int(made)

    @override
    def free(self, address: int) -> None:
        self._make("cuMemFree", self._memory.pop(address).free)

    @override
    def allocate_pinned(self, nbytes: int) -> int:
        made = self._make("cuMemHostAlloc", self._cu.pagelocked_empty, nbytes, np.uint8)
        address = int(made.ctypes.data)
        self._pinned[address] = made.base  # the array's base owns the memory
        return address

    @override
    def free_pinned(self, address: int) -> None:
        self._make("cuMemFreeHost", self._pinned.pop(address).free)

    @override
    def free_memory(self) -> int:
        return int(self._call("cuMemGetInfo", self._cu.mem_get_info)[0])

    @override
    def create_stream(self) -> tuple[Handle, int]:
        made = _Box(self._make("cuStreamCreate", self._cu.Stream, _NON_BLOCKING))
        return made, int(made.held.handle)

    @override
    def destroy_stream(self, stream: Handle) -> None:
        with self._known_to_pycuda():
            stream.held = None

    @override
    def synchronize(self, stream: Handle) -> None:
        self._call("cuStreamSynchronize", stream.held.synchronize)

    @override
    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        host = (_HOST_BYTE * nbytes).from_address(source)
        self._call("cuMemcpyHtoDAsync", self._cu.memcpy_htod_async, target, host, stream.held)

    @override
    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        host = (_HOST_BYTE * nbytes).from_address(target)
        self._call("cuMemcpyDtoHAsync", self._cu.memcpy_dtoh_async, host, source, stream.held)

    @override
    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        self._call("cuMemsetD8Async", self._cu.memset_d8_async, address, value, nbytes, stream.held)

    @override
    def create_event(self, timing: bool, spin: bool) -> Handle:
        flags = self._cu.event_flags
        wanted = (0 if spin else flags.BLOCKING_SYNC) | (0 if timing else flags.DISABLE_TIMING)
        return _Box(self._make("cuEventCreate", self._cu.Event, wanted))

    @override
    def destroy_event(self, event: Handle) -> None:
        with self._known_to_pycuda():
            event.held = None

    @override
    def record(self, event: Handle, stream: Handle) -> None:
        self._call("cuEventRecord", event.held.record, stream.held)

    @override
    def wait_event(self, stream: Handle, event: Handle) -> None:
        self._call("cuStreamWaitEvent", stream.held.wait_for_event, event.held)

    @override
    def synchronize_event(self, event: Handle) -> None:
        self._call("cuEventSynchronize", event.held.synchronize)

    @override
    def event_done(self, event: Handle) -> bool:
        return bool(self._call("cuEventQuery", event.held.query))

    @override
    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        return float(self._call("cuEventElapsedTime", after.held.time_since, before.held))

    @override
    def load_module(self, cubin: bytes) -> Handle:
        return _Module(self._make("cuModuleLoadData", self._cu.module_from_buffer, cubin))

    @override
    def unload_module(self, module: Handle) -> None:
        with self._known_to_pycuda():
            module.functions.clear()  # each keeps the module loaded
            module.held = None

    @override
    def function(self, module: Handle, name: str) -> Handle:
        module.functions[name] = self._make("cuModuleGetFunction", module.held.get_function, name)
        return module, name

    @override
    def launch(
        self,
        function: Handle,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        params: Any,
        stream: Handle,
    ) -> None:
        packed = np.frombuffer(bytes(params), dtype=np.uint8)
        named = {"grid": grid, "block": block, "shared": shared_bytes, "stream": stream.held}
        module, name = function
        self._call("cuLaunchKernel", module.functions[name], packed, **named)


class _Box:
    """Holds PyCUDA's object; dropping the object destroys it."""

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
