"""CudaBindings: the driver binding of the package cuda-bindings, and the CUDA graphs of both bindings."""

import ctypes
from typing import Any

from typing_extensions import override  # a dependency of pydantic; in typing from Python 3.12 on

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Binding, DeviceInfo, Dimensions, DriverError, Handle

_INSTALL = "install the wheels: pip install 'centernet-trt[gpu]'"


class CudaBindings(Binding):
    """Driver calls by cuda-bindings; also those that PyCUDA lacks: graphs, registered memory, device properties."""

    name = "cuda-bindings"

    def __init__(self) -> None:
        """Import the package and initialise the driver.

        Raises:
            CudaError: the package, the driver or a device is missing.
        """
        try:
            from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs
        except ImportError as error:
            raise CudaError(f"cuda-bindings cannot be imported: {error}", _INSTALL) from error
        self._cu: Any = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as error:  # or a subclass of the package: libcuda was not found
            raise CudaError(
                f"no NVIDIA driver: {error}",
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
        """Call the driver; return its value, a list of several values, or None."""
        status, *values = getattr(self._cu, name)(*arguments)
        if status:
            raise self._error(name, status)
        return values[0] if len(values) == 1 else values or None

    def _error(self, call: str, status: Any) -> DriverError:
        texts = []
        for get_text in (self._cu.cuGetErrorName, self._cu.cuGetErrorString):
            failed, text = get_text(status)
            texts.append(text.decode(errors="replace") if text and not failed else "")
        name = getattr(status, "name", None) or texts[0] or "unknown code"
        return DriverError(call, int(status), texts[0] or name, texts[1] or "no description by this driver")

    def codes_by_meaning(self) -> dict[str, tuple[int, str]]:
        """Return (code, name) of every CUresult by the driver's description of it."""
        codes = {}
        for code in self._cu.CUresult:
            known = self._error("", code)
            codes[known.meaning] = (known.code, known.name)
        return codes

    def device_count(self) -> int:
        """Return the number of visible devices."""
        return int(self._call("cuDeviceGetCount"))

    def describe(self, index: int) -> DeviceInfo:
        """Return the properties of a device."""
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

    @override
    def retain(self, index: int) -> Handle:
        device = self._call("cuDeviceGet", index)
        return device, self._call("cuDevicePrimaryCtxRetain", device)

    @override
    def release(self, index: int, context: Handle) -> None:
        self._call("cuDevicePrimaryCtxRelease", context[0])

    @override
    def push(self, context: Handle) -> None:
        self.push_handle(context[1])

    def push_handle(self, context: Any) -> None:
        """Make a CUcontext current, given as an object or an address."""
        self._call("cuCtxPushCurrent", context)

    @override
    def pop(self) -> None:
        self._call("cuCtxPopCurrent")

    @override
    def allocate(self, nbytes: int) -> int:
        return int(self._call("cuMemAlloc", nbytes))

    @override
    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    @override
    def allocate_pinned(self, nbytes: int) -> int:
        return int(self._call("cuMemHostAlloc", nbytes, 0))

    @override
    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def register_host_memory(self, address: int, nbytes: int) -> None:
        """Pin host memory that the driver did not allocate, for every context."""
        portable = 1
        self._call("cuMemHostRegister", address, nbytes, portable)

    def unregister_host_memory(self, address: int) -> None:
        """Unpin memory pinned by `register_host_memory`."""
        self._call("cuMemHostUnregister", address)

    def is_pinned(self, address: int) -> bool:
        """Return whether the address is pinned host memory, regardless of who pinned it."""
        status, kind = self._cu.cuPointerGetAttribute(self._memory_type, address)
        if status == self._invalid_value:  # pageable memory: unknown to the driver
            return False
        if status:
            raise self._error("cuPointerGetAttribute", status)
        return int(kind) == self._host_memory

    @override
    def free_memory(self) -> int:
        return int(self._call("cuMemGetInfo")[0])

    @override
    def create_stream(self) -> tuple[Handle, int]:
        stream = self._call("cuStreamCreate", self._stream_flags)
        return stream, int(stream)

    @override
    def destroy_stream(self, stream: Handle) -> None:
        self._call("cuStreamDestroy", stream)

    @override
    def synchronize(self, stream: Handle) -> None:
        self._call("cuStreamSynchronize", stream)

    @override
    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        self._call("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    @override
    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        self._call("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    @override
    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        self._call("cuMemsetD8Async", address, value, nbytes, stream)

    @override
    def create_event(self, timing: bool, spin: bool) -> Handle:
        blocking_sync, disable_timing = 1, 2
        return self._call("cuEventCreate", (0 if spin else blocking_sync) | (0 if timing else disable_timing))

    @override
    def destroy_event(self, event: Handle) -> None:
        self._call("cuEventDestroy", event)

    @override
    def record(self, event: Handle, stream: Handle) -> None:
        self._call("cuEventRecord", event, stream)

    @override
    def wait_event(self, stream: Handle, event: Handle) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    @override
    def synchronize_event(self, event: Handle) -> None:
        self._call("cuEventSynchronize", event)

    @override
    def event_done(self, event: Handle) -> bool:
        (status,) = self._cu.cuEventQuery(event)
        if status == self._not_ready:
            return False
        if status:
            raise self._error("cuEventQuery", status)
        return True

    @override
    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        return float(self._call("cuEventElapsedTime", before, after))

    @override
    def load_module(self, cubin: bytes) -> Handle:
        return self._call("cuModuleLoadData", cubin)

    @override
    def unload_module(self, module: Handle) -> None:
        self._call("cuModuleUnload", module)

    @override
    def function(self, module: Handle, name: str) -> Handle:
        return self._call("cuModuleGetFunction", module, name.encode())

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
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        address = ctypes.addressof(pointers)
        self._call("cuLaunchKernel", function, *grid, *block, shared_bytes, stream, address, 0)

    def begin_capture(self, stream: Handle) -> None:
        """Start capturing a stream; the restrictions of a capture apply to this thread alone."""
        self._call("cuStreamBeginCapture", stream, self._capture_mode)

    def end_capture(self, stream: Handle) -> Handle:
        """Stop capturing; return the captured graph."""
        return self._call("cuStreamEndCapture", stream)

    def instantiate(self, graph: Handle) -> Handle:
        """Return an executable graph."""
        return self._call("cuGraphInstantiate", graph, 0)

    def upload_graph(self, executable: Handle, stream: Handle) -> None:
        """Upload an executable graph to the device, so that its first launch need not."""
        self._call("cuGraphUpload", executable, stream)

    def launch_graph(self, executable: Handle, stream: Handle) -> None:
        """Launch an executable graph."""
        self._call("cuGraphLaunch", executable, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Destroy a captured graph."""
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: Handle) -> None:
        """Destroy an executable graph."""
        self._call("cuGraphExecDestroy", executable)
