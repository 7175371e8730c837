"""The driver binding over cuda-bindings; CUDA graphs for both bindings."""

import ctypes
from typing import Any

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import DeviceInfo, Dimensions, DriverError, Handle

_INSTALL = "install the wheels: pip install 'centernet-trt[gpu]'"


class CudaBindings:
    """See `driver_binding.Binding`."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        """Load the package and start the driver.

        Raises:
            CudaError: there is no such package, no driver, or no device.
        """
        try:
            from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs
        except ImportError as error:
            raise CudaError(f"cuda-bindings cannot be imported: {error}", _INSTALL) from error
        self._cu: Any = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # or a type of the binding's own: the library was not found
            raise CudaError(
                f"there is no NVIDIA driver: {error}",
                "install NVIDIA's driver; in a container, start it with --gpus all",
            ) from error
        self._stream_flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._capture_mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._attributes = driver.CUdevice_attribute
        self._not_ready = driver.CUresult.CUDA_ERROR_NOT_READY
        self._invalid_value = driver.CUresult.CUDA_ERROR_INVALID_VALUE
        self._memory_type = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        self._host_memory = int(driver.CUmemorytype.CU_MEMORYTYPE_HOST)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Make a call -> its one value, a list of several, or None."""
        status, *values = getattr(self._cu, name)(*arguments)
        if status:
            raise self._error(name, status)
        return values[0] if len(values) == 1 else values or None

    def _error(self, call: str, status: Any) -> DriverError:
        texts = []
        for ask in (self._cu.cuGetErrorName, self._cu.cuGetErrorString):
            found, text = ask(status)
            texts.append(text.decode(errors="replace") if not found and text else "")
        name = getattr(status, "name", None) or texts[0] or "an unknown code"
        return DriverError(
            call, int(status), texts[0] or name, texts[1] or "a code that this driver does not explain"
        )

    def codes_by_meaning(self) -> dict[str, tuple[int, str]]:
        """The driver's text of every code -> (code, name)."""
        codes = {}
        for code in self._cu.CUresult:
            known = self._error("", code)
            codes[known.meaning] = (known.code, known.name)
        return codes

    def device_count(self) -> int:
        """How many devices are visible."""
        return int(self._call("cuDeviceGetCount"))

    def describe(self, index: int) -> DeviceInfo:
        """What a device is."""
        device = self._call("cuDeviceGet", index)

        def attribute(name: str) -> int:
            wanted = getattr(self._attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._call("cuDeviceGetAttribute", wanted, device))

        digits = bytes(self._call("cuDeviceGetUuid", device).bytes).hex()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return DeviceInfo(
            index=index,
            name=self._call("cuDeviceGetName", 256, device).split(b"\0")[0].decode(errors="replace"),
            uuid="GPU-" + "-".join(parts),
            capability=(attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            memory=int(self._call("cuDeviceTotalMem", device)),
            driver_version=int(self._call("cuDriverGetVersion")),
        )

    def retain(self, index: int) -> Handle:
        """The primary context of a device."""
        device = self._call("cuDeviceGet", index)
        return device, self._call("cuDevicePrimaryCtxRetain", device)

    def release(self, index: int, context: Handle) -> None:
        """Give the primary context back."""
        self._call("cuDevicePrimaryCtxRelease", context[0])

    def push(self, context: Handle) -> None:
        """Make a context current in this thread."""
        self.push_handle(context[1])

    def push_handle(self, context: Any) -> None:
        """The same with the context alone, or its address."""
        self._call("cuCtxPushCurrent", context)

    def pop(self) -> None:
        """Make the one before it current again."""
        self._call("cuCtxPopCurrent")

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory."""
        return int(self._call("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """Free it."""
        self._call("cuMemFree", address)

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of new page-locked host memory."""
        return int(self._call("cuMemHostAlloc", nbytes, 0))

    def free_pinned(self, address: int) -> None:
        """Free it."""
        self._call("cuMemFreeHost", address)

    def lock_host_memory(self, address: int, nbytes: int) -> None:
        """Page-lock memory that the driver did not allocate, for every context."""
        portable = 1
        self._call("cuMemHostRegister", address, nbytes, portable)

    def unlock_host_memory(self, address: int) -> None:
        """Undo that."""
        self._call("cuMemHostUnregister", address)

    def is_pinned(self, address: int) -> bool:
        """Whether the driver knows this byte as page-locked memory of the host, whoever locked it."""
        status, kind = self._cu.cuPointerGetAttribute(self._memory_type, address)
        if status == self._invalid_value:  # it knows nothing of it
            return False
        if status:
            raise self._error("cuPointerGetAttribute", status)
        return int(kind) == self._host_memory

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        return int(self._call("cuMemGetInfo")[0])

    def create_stream(self) -> tuple[Handle, int]:
        """A non-blocking stream and its number."""
        stream = self._call("cuStreamCreate", self._stream_flags)
        return stream, int(stream)

    def destroy_stream(self, stream: Handle) -> None:
        """Destroy it."""
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        """Wait for all work of a stream."""
        self._call("cuStreamSynchronize", stream)

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy from pinned memory, asynchronously."""
        self._call("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy to pinned memory, asynchronously."""
        self._call("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        """Set every byte, asynchronously."""
        self._call("cuMemsetD8Async", address, value, nbytes, stream)

    def create_event(self, timing: bool, spin: bool) -> Handle:
        """An event; without `spin` those who wait for it sleep."""
        blocking_sync, disable_timing = 1, 2
        return self._call("cuEventCreate", (0 if spin else blocking_sync) | (0 if timing else disable_timing))

    def destroy_event(self, event: Handle) -> None:
        """Destroy it."""
        self._call("cuEventDestroy", event)

    def record(self, event: Handle, stream: Handle) -> None:
        """Let the event mark this point of the stream."""
        self._call("cuEventRecord", event, stream)

    def wait_event(self, stream: Handle, event: Handle) -> None:
        """Let later work of the stream wait for the event."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: Handle) -> None:
        """Wait for the event in this thread."""
        self._call("cuEventSynchronize", event)

    def event_done(self, event: Handle) -> bool:
        """Whether it has happened."""
        (status,) = self._cu.cuEventQuery(event)
        if status == self._not_ready:
            return False
        if status:
            raise self._error("cuEventQuery", status)
        return True

    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        """Milliseconds between two events."""
        return float(self._call("cuEventElapsedTime", before, after))

    def load_module(self, cubin: bytes) -> Handle:
        """Load device code."""
        return self._call("cuModuleLoadData", cubin)

    def unload_module(self, module: Handle) -> None:
        """Unload it."""
        self._call("cuModuleUnload", module)

    def function(self, module: Handle, name: str) -> Handle:
        """An entry point of a module."""
        return self._call("cuModuleGetFunction", module, name.encode())

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
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        address = ctypes.addressof(pointers)
        self._call("cuLaunchKernel", function, *grid, *block, shared_bytes, stream, address, 0)

    def begin_capture(self, stream: Handle) -> None:
        """Record the stream's work instead of doing it; this thread only is bound by a capture's rules."""
        self._call("cuStreamBeginCapture", stream, self._capture_mode)

    def end_capture(self, stream: Handle) -> Handle:
        """The recorded graph."""
        return self._call("cuStreamEndCapture", stream)

    def instantiate(self, graph: Handle) -> Handle:
        """An executable graph."""
        return self._call("cuGraphInstantiate", graph, 0)

    def upload_graph(self, executable: Handle, stream: Handle) -> None:
        """Bring it to the device now instead of at its first launch."""
        self._call("cuGraphUpload", executable, stream)

    def launch_graph(self, executable: Handle, stream: Handle) -> None:
        """Launch it."""
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Destroy what a capture gave."""
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: Handle) -> None:
        """Destroy an executable graph."""
        self._call("cuGraphExecDestroy", executable)
