"""The interface of a CUDA driver binding, and the errors of the driver."""

import logging
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from centernet_trt.errors import CudaError

BindingName = Literal["auto", "pycuda", "cuda-bindings"]
Handle = Any  # a binding's own object
Dimensions = tuple[int, int, int]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceInfo:
    """A GPU: its number among the visible ones, name, UUID as nvidia-smi writes it, and size.

    `capability`: compute capability, such as (9, 0). `memory`: bytes. `driver_version`: of CUDA, 1000 * major + 10 * minor.
    """

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    driver_version: int


class Binding(Protocol):
    """The calls. All but the first three need a current context. Each raises DriverError when the driver refuses."""

    name: str

    def retain(self, index: int) -> Handle:
        """The primary context of a device."""

    def release(self, index: int, context: Handle) -> None:
        """Give the primary context back."""

    def push(self, context: Handle) -> None:
        """Make a context current in this thread."""

    def pop(self) -> None:
        """Make the one before it current again."""

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory."""
        ...

    def free(self, address: int) -> None:
        """Free it."""

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of new page-locked host memory."""
        ...

    def free_pinned(self, address: int) -> None:
        """Free it."""

    def free_memory(self) -> int:
        """Bytes of device memory that nobody uses."""
        ...

    def create_stream(self) -> tuple[Handle, int]:
        """A non-blocking stream and its number, as other libraries take it."""
        ...

    def destroy_stream(self, stream: Handle) -> None:
        """Destroy it."""

    def synchronize(self, stream: Handle) -> None:
        """Wait for all work of a stream."""

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy from pinned memory, asynchronously."""

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy to pinned memory, asynchronously."""

    def fill(self, address: int, value: int, nbytes: int, stream: Handle) -> None:
        """Set every byte, asynchronously."""

    def create_event(self, timing: bool, spin: bool) -> Handle:
        """An event; without `spin` those who wait for it sleep."""

    def destroy_event(self, event: Handle) -> None:
        """Destroy it."""

    def record(self, event: Handle, stream: Handle) -> None:
        """Let the event mark this point of the stream."""

    def wait_event(self, stream: Handle, event: Handle) -> None:
        """Let later work of the stream wait for the event."""

    def synchronize_event(self, event: Handle) -> None:
        """Wait for the event in this thread."""

    def event_done(self, event: Handle) -> bool:
        """Whether it has happened."""
        ...

    def elapsed_ms(self, before: Handle, after: Handle) -> float:
        """Milliseconds between two events."""
        ...

    def load_module(self, cubin: bytes) -> Handle:
        """Load device code."""

    def unload_module(self, module: Handle) -> None:
        """Unload it."""

    def function(self, module: Handle, name: str) -> Handle:
        """An entry point of a module."""

    def launch(
        self,
        function: Handle,
        grid: Dimensions,
        block: Dimensions,
        shared_bytes: int,
        params: Any,
        stream: Handle,
    ) -> None:
        """Launch a kernel whose one parameter is `params`, a ctypes structure that is copied."""


_MEMORY = "free GPU memory, or load with fewer streams, a smaller max_batch, or a smaller max_pixels"
_INSTALL = "install NVIDIA's driver, and see what `nvidia-smi` says"
_LOST = (
    "the GPU's context is lost to this process: start a new one, and run it under `compute-sanitizer` to find the "
    "kernel that failed; `dmesg | grep -i xid` tells of failing hardware"
)
_OURS = "this is a fault of the product: report it with this text"
_CAPTURE = "load with cuda_graph=False to go on without CUDA graphs, and report this text"

# Codes of CUresult that a user can do something about.
_HINTS = {
    2: _MEMORY,
    3: _INSTALL,
    34: "this is a stub library of the CUDA toolkit, not the driver: take it off LD_LIBRARY_PATH",
    46: "another process holds the GPU in exclusive mode: `nvidia-smi -q -d COMPUTE` names it",
    100: "no GPU is visible: see `nvidia-smi` and CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all",
    101: "choose one of the devices that `nvidia-smi -L` lists",
    200: _OURS,
    209: "the kernels were compiled for another GPU: empty the cache folder, and see the supported architectures",
    218: _OURS,
    222: "install a newer NVIDIA driver",
    701: _OURS,
    801: "this GPU or driver cannot do it: install a newer NVIDIA driver",
    802: "NVIDIA's system services are not ready: see `systemctl status nvidia-fabricmanager`",
    803: "the driver's kernel module and its library differ: restart the machine after a driver update",
    804: "the CUDA compatibility package does not go with this GPU: take it off LD_LIBRARY_PATH",
}
_OUT_OF_MEMORY = 2
# After these every later call of the process fails on the same context.
_CONTEXT_LOST = frozenset({4, 201, 214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719})
_CAPTURE_CODES = range(900, 910)


class DriverError(CudaError):
    """A call of the CUDA driver failed.

    `call`: its name. `code`: the number of its CUresult. `context_lost`: no call can succeed any more in this process.
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
    """What to do about a code of CUresult."""
    if code in _CONTEXT_LOST:
        return _LOST
    if code in _CAPTURE_CODES:
        return _CAPTURE
    return _HINTS.get(code, "see the code in NVIDIA's documentation of the CUDA driver API")
