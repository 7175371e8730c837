"""Device: the primary context of a GPU; finding GPUs and bindings."""

import ctypes
import importlib
import importlib.util
import logging
import os
import threading
from collections import Counter
from typing import Any, Self

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import Binding, BindingName, DeviceInfo
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings
from centernet_trt.runtime.cuda.resources import DeviceBuffer, Event, Module, PinnedBuffer, Resource, Stream

# Members of the driver's CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76

_log = logging.getLogger(__name__)


class Device:
    """The primary context of a GPU and the resources made in it, freed by `close` alone. A context manager."""

    def __init__(self, binding: Binding, graphs: CudaBindings, info: DeviceInfo) -> None:
        """Use `Device.open`."""
        self.binding = binding
        self.graphs = graphs  # PyCUDA has no graphs; cuda-bindings accepts its streams by number
        self.info = info
        self.current = Current(self)
        self._process = os.getpid()
        self._context: Any = binding.retain(info.index)
        self._resources: dict[int, Resource] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, device: int | str = 0, binding: BindingName = "auto") -> Self:
        """Open a GPU.

        Args:
            device: index among the visible devices, or UUID (a prefix suffices) as `nvidia-smi -L` prints it.
            binding: Python package for the driver; `auto` prefers PyCUDA if it is installed.

        Raises:
            CudaError: no such device, no driver, or the binding is unusable.
        """
        calls = load_binding(binding)
        graphs = calls if isinstance(calls, CudaBindings) else CudaBindings()
        return cls(calls, graphs, find_device(graphs, device))

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._context is None

    @property
    def foreign_process(self) -> bool:
        """Whether this process is a fork of the one that opened the device."""
        return os.getpid() != self._process

    def check_usable(self) -> None:
        """Raise CudaError if the device is closed or was opened before this process was forked."""
        if self._context is None:
            raise CudaError("the GPU is closed", "open it again: Device.open(...), or Detector.load(...)")
        if self.foreign_process:
            raise CudaError(
                f"the GPU was opened by process {self._process} and cannot be used in its fork {os.getpid()}",
                "load the detector after the fork, in each process, or start processes with 'spawn'",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Allocate device memory, uninitialised, aligned to 256 bytes."""
        return DeviceBuffer(self, nbytes)

    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        """Allocate pinned (page-locked) host memory, uninitialised."""
        return PinnedBuffer(self, nbytes)

    def stream(self) -> Stream:
        """Create a stream that does not synchronise with the default stream."""
        return Stream(self)

    def event(self, timing: bool = False, spin: bool = True) -> Event:
        """Create an event; with `spin=False` waiting threads sleep, at some microseconds of latency."""
        return Event(self, timing, spin)

    def load_module(self, cubin: bytes) -> Module:
        """Load a cubin."""
        return Module(self, cubin)

    def free_memory(self) -> int:
        """Return the free device memory in bytes."""
        with self.current:
            return self.binding.free_memory()

    def close(self) -> None:
        """Free all resources, newest first, then release the context. Idempotent.

        A no-op in a forked process, where the resources belong to the parent.
        """
        if self._context is None or self.foreign_process:
            return
        with self._lock:
            left = list(self._resources.values())
        close_all(list(reversed(left)))
        context, self._context = self._context, None
        try:
            self.binding.release(self.info.index, context)
        except CudaError as error:
            _log.warning("the CUDA context could not be released: %s", error.message)

    def register(self, resource: Resource) -> None:
        """Add a resource to those that `close` frees."""
        with self._lock:
            self._resources[id(resource)] = resource

    def unregister(self, resource: Resource) -> None:
        """Remove a closed resource."""
        with self._lock:
            self._resources.pop(id(resource), None)

    @property
    def open_resources(self) -> int:
        """Number of open buffers, streams, events, modules and graphs."""
        return len(self._resources)


class Current:
    """`with device.current:` makes the context current in this thread; only the outermost block calls the driver."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._thread = threading.local()

    def __enter__(self) -> None:
        depth = getattr(self._thread, "depth", 0)
        if depth == 0:
            self._device.check_usable()
            self._device.binding.push(self._device._context)
        self._thread.depth = depth + 1

    def __exit__(self, *_: object) -> None:
        self._thread.depth -= 1
        if self._thread.depth == 0:
            self._device.binding.pop()


def close_all(resources: list[Any]) -> None:
    """Close all resources in order; failures are logged as one warning."""
    failures: Counter[str] = Counter()
    for resource in resources:
        try:
            resource.close()
        except Exception as error:  # noqa: BLE001 - teardown continues
            failures[getattr(error, "message", None) or repr(error)] += 1
    if failures:
        listed = "; ".join(f"{text} ({count} times)" for text, count in failures.items())
        _log.warning("%d of %d resources could not be freed: %s", failures.total(), len(resources), listed)


def find_device(graphs: CudaBindings, wanted: int | str) -> DeviceInfo:
    """Return the device with this index or UUID prefix.

    Raises:
        CudaError: no device or several match; the message lists all devices.
    """
    found = [graphs.describe(index) for index in range(graphs.device_count())]
    if isinstance(wanted, str) and wanted.isdecimal():
        wanted = int(wanted)
    if isinstance(wanted, int):
        matching = [info for info in found if info.index == wanted]
    else:
        plain = _plain_uuid(wanted)
        matching = [info for info in found if plain and _plain_uuid(info.uuid).startswith(plain)]
    if len(matching) == 1:
        return matching[0]
    listed = "; ".join(f"{info.index}: {info.name} {info.uuid}" for info in found) or "none"
    problem = f"{len(matching)} GPUs match {wanted!r}" if matching else f"there is no GPU {wanted!r}"
    raise CudaError(f"{problem}; found: {listed}", "give the index or the full UUID of one of them")


def _plain_uuid(text: str) -> str:
    return text.lower().removeprefix("gpu-").replace("-", "")


def load_binding(name: BindingName = "auto") -> Binding:
    """Create a binding; `auto` prefers PyCUDA if it is installed, else uses cuda-bindings.

    Raises:
        CudaError: the package cannot be imported, or there is no NVIDIA driver.
    """
    if name == "cuda-bindings":
        return CudaBindings()
    if name == "pycuda":
        from centernet_trt.runtime.cuda.pycuda import PyCuda

        return PyCuda()
    if name != "auto":
        raise CudaError(f"there is no driver binding {name!r}", "expected auto, pycuda or cuda-bindings")
    if importlib.util.find_spec("pycuda") is not None:
        try:
            return load_binding("pycuda")
        except CudaError as error:
            _log.warning(
                "PyCUDA is installed but cannot be used; falling back to cuda-bindings: %s", error.message
            )
    return load_binding("cuda-bindings")


def gpu_count() -> int:
    """Return the number of visible GPUs; 0 if the driver is missing or fails."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def first_gpu() -> tuple[str, tuple[int, int]] | None:
    """Return name and compute capability of the first visible GPU, for which full TensorRT builds; None without a GPU."""
    if gpu_count() == 0:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    numbers = ctypes.c_int(), ctypes.c_int()
    statuses = [driver.cuDeviceGet(ctypes.byref(device), 0), driver.cuDeviceGetName(name, 256, device)]
    for number, attribute in zip(numbers, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        statuses.append(driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device))
    if any(statuses):
        return None
    return name.value.decode(errors="replace"), (numbers[0].value, numbers[1].value)
