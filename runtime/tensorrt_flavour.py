"""The flavours of TensorRT: their packages, and what differs when a plan is run. What differs in building: `builder/flavours.py`."""

import ctypes
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from centernet_trt.errors import BackendError

InstalledName = Literal["rtx", "tensorrt"]


@dataclass(frozen=True)
class RuntimeFlavour:
    """A flavour, installed or not.

    Attributes:
        module_name: of its Python package.
        install: the command that installs it.
        oldest: the oldest version whose calls are the ones that we make.
        finishes_kernels: whether kernels are compiled on the user's GPU when the plan is run. Contexts then take a
            runtime configuration (kernel specialisation, a cache of the kernels, an own CUDA graph to switch off).
    """

    name: InstalledName
    module_name: str
    install: str
    oldest: tuple[int, int]
    finishes_kernels: bool


RUNTIME_FLAVOURS: Mapping[str, RuntimeFlavour] = {
    "rtx": RuntimeFlavour(
        name="rtx",
        module_name="tensorrt_rtx",
        install="pip install 'tensorrt-rtx>=1.7,<1.8'  (Linux x86-64)",
        oldest=(1, 7),
        finishes_kernels=True,
    ),
    "tensorrt": RuntimeFlavour(
        name="tensorrt",
        module_name="tensorrt",
        install="pip install 'centernet-trt[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        oldest=(10, 1),  # the first with sizes of device memory in 64 bits
        finishes_kernels=False,
    ),
}


def import_flavour(name: str) -> ModuleType:
    """Import the package of a flavour.

    Raises:
        BackendError: it is not installed, or does not load; the hint has the line that installs it.
    """
    row = RUNTIME_FLAVOURS[name]
    try:
        module = importlib.import_module(row.module_name)
    except ModuleNotFoundError as error:
        if error.name != row.module_name:
            raise BackendError(
                f"{row.module_name} does not load: {error}", f"install it again: {row.install}"
            ) from error
        raise BackendError(f"{row.module_name} is not installed", row.install) from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"{row.module_name} does not load: {error}", f"install it again: {row.install}"
        ) from error
    if not hasattr(module, "__version__"):  # a package of type stubs leaves an empty folder of this name
        raise BackendError(f"{row.module_name} is not installed, only type stubs of it are", row.install)
    return module


def is_installed(name: InstalledName) -> bool:
    """Whether the package of a flavour is installed; it is not imported."""
    spec = importlib.util.find_spec(RUNTIME_FLAVOURS[name].module_name)
    # A folder without code, as type stubs leave it, is found as a package without a loader.
    return spec is not None and (spec.loader is not None or spec.submodule_search_locations is None)


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


# Members of the driver's CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


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
