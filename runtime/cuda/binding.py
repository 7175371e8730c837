"""Binding: the interface of a CUDA driver binding; DriverError and its hints."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from centernet_trt.errors import CudaError

BindingName = Literal["auto", "pycuda", "cuda-bindings"]
Handle = Any  # a binding's own object
Dimensions = tuple[int, int, int]


@dataclass(frozen=True)
class DeviceInfo:
    """Properties of a GPU.

    Attributes:
        index: among the visible devices.
        name: of the model.
        uuid: as `nvidia-smi` writes it.
        capability: compute capability, such as (9, 0).
        multiprocessors: streaming multiprocessors (SMs).
        memory: total device memory in bytes.
        driver_version: CUDA version that the driver supports, 1000 * major + 10 * minor.
    """

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    driver_version: int


class Binding(ABC):
    """Driver calls of one Python package. Each raises DriverError if the driver fails.

    All but `retain`, `release` and `push` need a current context.
    """

    name: ClassVar[str]

    @abstractmethod
    def retain(self, index: int) -> Handle:
        """Retain the primary context of a device."""

    @abstractmethod
    def release(self, index: int, context: Handle) -> None:
        """Release the primary context."""

    @abstractmethod
    def push(self, context: Handle) -> None:
        """Make a context current in this thread."""

    @abstractmethod
    def pop(self) -> None:
        """Restore the context that was current before the last `push`."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Free device memory."""

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> int:
        """Allocate pinned (page-locked) host memory and return its address."""

    @abstractmethod
    def free_pinned(self, address: int) -> None:
        """Free pinned host memory."""

    @abstractmethod
    def free_memory(self) -> int:
        """Return the free device memory in bytes."""

    @abstractmethod
    def create_stream(self) -> tuple[Handle, int]:
        """Create a non-blocking stream; return it and its CUstream as an integer, for other libraries."""

    @abstractmethod
    def destroy_stream(self, stream: Handle) -> None:
        """Destroy a stream."""

    @abstractmethod
    def synchronize(self, stream: Handle) -> None:
        """Block this thread until all work of a stream is done."""

    @abstractmethod
    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy from pinned memory, asynchronously."""

    @abstractmethod
    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy to pinned memory, asynchronously."""

    @abstractmethod
    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        """Set every byte of device memory, asynchronously."""

    @abstractmethod
    def create_event(self, timing: bool, spin: bool) -> Handle:
        """Create an event; `spin=False` lets threads that synchronise with it sleep."""

    @abstractmethod
    def destroy_event(self, event: Handle) -> None:
        """Destroy an event."""

    @abstractmethod
    def record(self, event: Handle, stream: Handle) -> None:
        """Record an event after the work enqueued on a stream."""

    @abstractmethod
    def wait_event(self, stream: Handle, event: Handle) -> None:
        """Make later work of a stream wait for an event."""

    @abstractmethod
    def synchronize_event(self, event: Handle) -> None:
        """Block this thread until an event has completed."""

    @abstractmethod
    def event_done(self, event: Handle) -> bool:
        """Return whether an event has completed."""

    @abstractmethod
    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        """Return the milliseconds between two events."""

    @abstractmethod
    def load_module(self, cubin: bytes) -> Handle:
        """Load device code."""

    @abstractmethod
    def unload_module(self, module: Handle) -> None:
        """Unload device code."""

    @abstractmethod
    def function(self, module: Handle, name: str) -> Handle:
        """Return an entry point of a module."""

    @abstractmethod
    def launch(
        self,
        function: Handle,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        params: Any,
        stream: Handle,
    ) -> None:
        """Launch a kernel with one parameter: `params`, a ctypes structure, which is copied."""


_MEMORY = "free GPU memory, or load with fewer streams, a smaller max_batch, or a smaller max_pixels"
_INSTALL = "install NVIDIA's driver and check `nvidia-smi`"
_LOST = (
    "the CUDA context of this process is lost: start a new process, under `compute-sanitizer` to find the kernel "
    "that failed; `dmesg | grep -i xid` shows hardware errors"
)
_INTERNAL = "this is a bug of centernet-trt: report it with this message"
_CAPTURE = "load with cuda_graph=False to run without CUDA graphs, and report this message"

# CUresult codes that a user can act on.
_HINTS = {
    2: _MEMORY,
    3: _INSTALL,
    34: "this is a stub library of the CUDA toolkit, not the driver: remove it from LD_LIBRARY_PATH",
    46: "another process holds the GPU in exclusive mode: see `nvidia-smi -q -d COMPUTE`",
    100: "no GPU is visible: check `nvidia-smi` and CUDA_VISIBLE_DEVICES; start containers with --gpus all",
    101: "choose one of the devices listed by `nvidia-smi -L`",
    200: _INTERNAL,
    209: "the kernels were compiled for another GPU: empty the cache folder and check the supported architectures",
    218: _INTERNAL,
    222: "install a newer NVIDIA driver",
    701: _INTERNAL,
    801: "not supported by this GPU or driver: install a newer NVIDIA driver",
    802: "NVIDIA's system services are not ready: see `systemctl status nvidia-fabricmanager`",
    803: "the driver's kernel module and library differ: reboot after a driver update",
    804: "the CUDA compatibility package does not support this GPU: remove it from LD_LIBRARY_PATH",
}
_OUT_OF_MEMORY = 2
# After these codes every later call on the context fails.
_CONTEXT_LOST = frozenset({4, 201, 214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
_CAPTURE_CODES = range(900, 910)


class DriverError(CudaError):
    """A call of the CUDA driver failed.

    Attributes:
        call: name of the driver function.
        code: value of its CUresult.
        name: name of its CUresult.
        meaning: the driver's description of it.
    """

    def __init__(self, call: str, code: int, name: str, meaning: str) -> None:
        self.call, self.code, self.name, self.meaning = call, code, name, meaning
        super().__init__(f"{call} failed: {name} ({code}), {meaning}", hint_for(code))

    @property
    def context_lost(self) -> bool:
        """Whether every later call on this context fails too."""
        return self.code in _CONTEXT_LOST

    @property
    def out_of_memory(self) -> bool:
        """Whether device or pinned memory ran out."""
        return self.code == _OUT_OF_MEMORY

    def __reduce__(self) -> tuple[type["DriverError"], tuple[str, int, str, str]]:  # type: ignore[override]
        return type(self), (self.call, self.code, self.name, self.meaning)


def hint_for(code: int) -> str:
    """Return what a user can do about a CUresult code."""
    if code in _CONTEXT_LOST:
        return _LOST
    if code in _CAPTURE_CODES:
        return _CAPTURE
    return _HINTS.get(code, "see this code in NVIDIA's documentation of the CUDA driver API")
