"""Device: a GPU's primary context, and finding GPUs."""

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
    """One GPU, by its primary context. A context manager; close it, or everything it holds stays until the process ends."""

    def __init__(self, binding: Binding, graphs: CudaBindings, info: DeviceInfo) -> None:
        """Use `Device.open`."""
        self.binding = binding
        self.graphs = graphs  # PyCUDA has none; its streams go with those of cuda-bindings
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
            device: its number among the visible ones, or its UUID (or the beginning of it) as `nvidia-smi -L` writes it.
            binding: the Python package to reach the driver by; `auto` takes PyCUDA where it is installed.

        Raises:
            CudaError: no such device, no driver, or the binding cannot be used.
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
        """Raise CudaError when the device is closed, or was opened by the process that this one was forked from."""
        if self._context is None:
            raise CudaError("the GPU is closed", "open it again: Device.open(...), or Detector.load(...)")
        if self.foreign_process:
            raise CudaError(
                f"the GPU was opened by process {self._process} and cannot be used in its fork {os.getpid()}",
                "load the detector in each process, after the fork, or start processes by 'spawn'",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def allocate(self, nbytes: int) -> DeviceBuffer:
        """Device memory, aligned to 256 bytes, of any content."""
        return DeviceBuffer(self, nbytes)

    def allocate_pinned(self, nbytes: int) -> PinnedBuffer:
        """Page-locked host memory, of any content."""
        return PinnedBuffer(self, nbytes)

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        return Stream(self)

    def event(self, timing: bool = False, spin: bool = True) -> Event:
        """An event; `spin=False` lets those who wait for it sleep, at some microseconds of latency."""
        return Event(self, timing, spin)

    def load_module(self, cubin: bytes) -> Module:
        """Load a cubin."""
        return Module(self, cubin)

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        with self.current:
            return self.binding.free_memory()

    def close(self) -> None:
        """Free everything that was made in the context, youngest first, then the context. May be called twice.

        In a fork of the process this does nothing: what there is to free belongs to the parent.
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
            _log.warning("the GPU's context could not be given back: %s", error.message)

    def register(self, resource: Resource) -> None:
        """Have a resource closed with the device."""
        with self._lock:
            self._resources[id(resource)] = resource

    def unregister(self, resource: Resource) -> None:
        """The resource has been closed."""
        with self._lock:
            self._resources.pop(id(resource), None)

    @property
    def open_resources(self) -> int:
        """How many buffers, streams, events, modules and graphs are open."""
        return len(self._resources)


class Current:
    """`with device.current:` makes the context current in this thread; it nests at no cost."""

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
    """Close one after the other, whatever fails; the failures are logged as one warning."""
    failures: Counter[str] = Counter()
    for resource in resources:
        try:
            resource.close()
        except Exception as error:  # noqa: BLE001 - teardown goes on, whatever it was
            failures[getattr(error, "message", None) or repr(error)] += 1
    if failures:
        listed = "; ".join(f"{text} ({count} times)" for text, count in failures.items())
        _log.warning("%d of %d could not be freed: %s", failures.total(), len(resources), listed)


def find_device(graphs: CudaBindings, wanted: int | str) -> DeviceInfo:
    """The device of this number or UUID.

    Raises:
        CudaError: there is no such device; the message lists those that there are.
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
    raise CudaError(f"{problem}; there are: {listed}", "name one of these by its number or its whole UUID")


def _plain_uuid(text: str) -> str:
    return text.lower().removeprefix("gpu-").replace("-", "")


def load_binding(name: BindingName = "auto") -> Binding:
    """The binding of this name; `auto` takes PyCUDA where it is installed, else cuda-bindings.

    Raises:
        CudaError: the package is not installed or does not load, or there is no NVIDIA driver.
    """
    # Heavy packages: each is imported where it is used.
    if name == "cuda-bindings":
        from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings

        return CudaBindings()
    if name == "pycuda":
        from centernet_trt.runtime.cuda.pycuda import PyCuda

        return PyCuda()
    if name != "auto":
        raise CudaError(f"there is no driver binding {name!r}", "bindings are: auto, pycuda, cuda-bindings")
    if importlib.util.find_spec("pycuda") is not None:
        try:
            return load_binding("pycuda")
        except CudaError as error:
            _log.warning("PyCUDA is installed and cannot be used, cuda-bindings is taken: %s", error.message)
    return load_binding("cuda-bindings")


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver shows; 0 without a driver, and whatever else is wrong."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def first_gpu() -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the first visible GPU, the one that full TensorRT builds for; None without one."""
    if gpu_count() == 0:
        return None
    driver = ctypes.CDLL("libcuda.so.1")
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    numbers = ctypes.c_int(), ctypes.c_int()
    statuses = [driver.cuDeviceGet(ctypes.byref(device), 0), driver.cuDeviceGetName(name, 256, device)]
    for number, which in zip(numbers, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        statuses.append(driver.cuDeviceGetAttribute(ctypes.byref(number), which, device))
    if any(statuses):
        return None
    return name.value.decode(errors="replace"), (numbers[0].value, numbers[1].value)
