"""A driver, kernels and a network that do nothing, and a tracer of exclusive times: what `host_overhead.py` measures with.

Memory is the host's, so that addresses are valid; nothing is ever computed or copied. With a real driver (`open_device`)
kernels and graphs run, and only the network does nothing.
"""

import ctypes
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

from centernet_trt.kernels.launch import DecodePlan, PreprocessPlan
from centernet_trt.kernels.structs import DecodeParams, PreprocessParams
from centernet_trt.runtime.backend import GpuOptions
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName, DeviceInfo
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.gpu.kernels import Kernels
from centernet_trt.runtime.manifest import Manifest, PlanRecord
from centernet_trt.runtime.trt.context import TensorRTEngine

DRIVER = "driver "
"""What the names of the driver's functions begin with."""
_NULL_INFO = DeviceInfo(0, "null", "GPU-0", (9, 0), 132, 1 << 36, 13000)
_ALIGNMENT = 256


class NullDriver:
    """Both a binding and the maker of graphs; `calls` counts what was asked of it, by name."""

    name = "null"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._memory: dict[int, Any] = {}

    def retain(self, index: int) -> object:
        """A context: anything but None."""
        return self

    def allocate(self, nbytes: int) -> int:
        """Zeros on the host, aligned as the driver's memory is."""
        block = (ctypes.c_uint8 * (nbytes + _ALIGNMENT))()
        address = -(-ctypes.addressof(block) // _ALIGNMENT) * _ALIGNMENT
        self._memory[address] = block
        return address

    allocate_pinned = allocate

    def free(self, address: int) -> None:
        """Free it."""
        del self._memory[address]

    free_pinned = free

    def create_stream(self) -> tuple[None, int]:
        """A handle and a number."""
        return None, 0

    def is_pinned(self, address: int) -> bool:
        """None is."""
        self.calls["is_pinned"] += 1
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        calls = self.calls

        def nothing(*_: Any, **__: Any) -> None:
            calls[name] += 1

        setattr(self, name, nothing)  # looked up once
        return nothing


class NullKernels:
    """In the place of `Kernels`: launches that are counted."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def preprocess(self, stream: Stream, plan: PreprocessPlan, params: PreprocessParams) -> None:
        """Launch nothing."""
        shape = plan.shape
        stream.launch(plan.kernel, shape.grid, shape.block, shape.shared_bytes, params)

    def decode(self, stream: Stream, plan: DecodePlan, params: DecodeParams) -> None:
        """Launch nothing."""
        shape = plan.shape
        stream.launch(plan.kernel, shape.grid, shape.block, shape.shared_bytes, params)

    def close(self) -> None:
        """Nothing is loaded."""


class NullNetwork:
    """In the place of `TensorRTEngine` and of its contexts: it leaves the heads as they are."""

    workspace_bytes = _ALIGNMENT

    def __init__(self, manifest: Manifest, device: Device) -> None:
        self.manifest, self.device = manifest, device
        self.plan = PlanRecord(
            file="none",
            sha256="0" * 64,
            bytes=0,
            flavour="rtx",
            version="0",
            target="portable",
            tf32=False,
            seconds=0,
        )

    def context(
        self, shape: Any, addresses: Mapping[str, int], workspace: int, stream: Stream
    ) -> "NullNetwork":
        """Bound to everything alike."""
        return self

    def enqueue(self, stream: Stream) -> None:
        """Enqueue nothing."""

    def capturable(self, stream: Stream) -> bool:
        """Nothing can always be recorded."""
        return True

    def save_kernels(self) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is loaded."""


def null_backend(bundle: EngineBundle, options: GpuOptions, device: Device) -> GpuBackend:
    """The backend as it is, around a network that does nothing; on the null device the kernels do nothing either."""
    null_driver = isinstance(device.binding, NullDriver)
    kernels = cast(Kernels, NullKernels(device)) if null_driver else None
    return GpuBackend(
        bundle, options, device, kernels, cast(TensorRTEngine, NullNetwork(bundle.manifest, device))
    )


def open_device(driver: BindingName | None) -> Device:
    """The null device, or GPU 0 through a binding.

    Raises:
        CudaError: the binding cannot be had, or there is no GPU.
    """
    if driver is not None:
        return Device.open(0, driver)
    null: Any = NullDriver()
    return Device(null, null, _NULL_INFO)


class Watch:
    """Exclusive times of functions: what is spent in another watched function is that one's."""

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns) -> None:
        """Watch by a clock of nanoseconds."""
        self._now = now
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._within: list[int] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched under this name."""

        def watched(*arguments: Any, **named: Any) -> Any:
            within = self._within
            within.append(0)
            start = self._now()
            try:
                return function(*arguments, **named)
            finally:
                taken = self._now() - start
                self.spent[name] += taken - within.pop()
                self.calls[name] += 1
                if within:
                    within[-1] += taken

        return watched


class WatchedDriver:
    """A binding, or a maker of graphs, whose every call is watched as `driver NAME`."""

    def __init__(self, real: Any, watch: Watch) -> None:
        self._real, self._watch = real, watch

    def __getattr__(self, name: str) -> Any:
        found = self._watch.wrap(DRIVER + name, getattr(self._real, name))
        setattr(self, name, found)
        return found
