"""What the product needs of the CUDA driver, and which Python package gives it.

A binding is thin: addresses and streams go in, errors come out as DriverError. `driver.Device` builds on it, and is
what the rest of the runtime uses.
"""

import importlib.util
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


def load_binding(name: BindingName = "auto") -> Binding:
    """The binding of this name; `auto` takes PyCUDA where it is installed, else cuda-bindings.

    Raises:
        CudaError: the package is not installed or does not load, or there is no NVIDIA driver.
    """
    # Heavy packages: each is imported where it is used.
    if name == "cuda-bindings":
        from centernet_trt.runtime.driver_cuda_bindings import CudaBindings

        return CudaBindings()
    if name == "pycuda":
        from centernet_trt.runtime.driver_pycuda import PyCuda

        return PyCuda()
    if name != "auto":
        raise CudaError(f"there is no driver binding {name!r}", "bindings are: auto, pycuda, cuda-bindings")
    if importlib.util.find_spec("pycuda") is not None:
        try:
            return load_binding("pycuda")
        except CudaError as error:
            _log.warning("PyCUDA is installed and cannot be used, cuda-bindings is taken: %s", error.message)
    return load_binding("cuda-bindings")
