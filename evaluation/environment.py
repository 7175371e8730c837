"""Record of the machine that a measurement ran on: `Environment`."""

import ctypes
import importlib
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from centernet_trt.errors import CudaError

if TYPE_CHECKING:
    from centernet_trt.runtime.cuda.device import Device

STANDIN_NAME = "stand-in"
"""Device name of the driver over host memory that the tests use."""
_L2_CACHE_SIZE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE

# Every package whose version can change a result or a time.
PACKAGES = (
    "centernet-trt",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "pycocotools",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "pycuda",
    "torch",
)


@dataclass(frozen=True)
class Gpu:
    """A GPU as reported by the driver.

    Attributes:
        name: of the model.
        compute_capability: (major, minor).
        memory: bytes.
    """

    name: str
    compute_capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class Driver:
    """The CUDA driver.

    Attributes:
        cuda: CUDA version that it supports as (major, minor); None without a driver.
        gpus: the GPUs that this process can see.
        problem: why it cannot be used; empty if it can.
    """

    cuda: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    problem: str = ""


@dataclass(frozen=True)
class Environment:
    """What a measurement or a bug report records about the machine.

    Attributes:
        python: version.
        system: operating system, architecture and C library.
        cpu: model name.
        cores: processor cores that this process may use.
        packages: version by package; None if it is not installed.
        driver: the CUDA driver.
    """

    python: str
    system: str
    cpu: str
    cores: int
    packages: dict[str, str | None]
    driver: Driver

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


def environment() -> Environment:
    """Record this machine, without loading a package or creating a CUDA context."""
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        cpu=_cpu_name(),
        cores=available_cores(),
        packages={name: _version(name) for name in PACKAGES},
        driver=query_driver(),
    )


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def query_driver() -> Driver:
    """Query the CUDA driver for its version and GPUs; never raises."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return Driver(None, (), "no NVIDIA driver is installed (libcuda.so.1 was not found)")
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    supported = (number.value // 1000, number.value % 1000 // 10)
    if (code := cuda.cuInit(0)) != 0:
        return Driver(supported, (), f"the driver does not start: cuInit returned error {code}")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    return Driver(supported, gpus, "" if gpus else "the driver shows no GPU (CUDA_VISIBLE_DEVICES?)")


def device_label(record: dict[str, Any]) -> str:
    """Device name for tables and headings; it cannot be mistaken for a GPU if it is none."""
    if record["name"] != STANDIN_NAME:
        return str(record["name"])
    return "STAND-IN DRIVER, no GPU: these times mean nothing"


def l2_bytes(device: "Device") -> int:
    """Size of the device's L2 cache in bytes.

    Raises:
        CudaError: the driver does not report it.
    """
    driver: Any = importlib.import_module("cuda.bindings.driver")  # compiled, without stubs
    attribute = driver.CUdevice_attribute(_L2_CACHE_SIZE)
    status, size = driver.cuDeviceGetAttribute(attribute, device.info.index)
    if int(status) != 0 or size <= 0:
        raise CudaError(
            f"expected the size of the L2 cache from the driver, got {status.name}, {size}",
            "measure with a warm L2 cache only",
        )
    return int(size)


def device_record(device: "Device") -> dict[str, Any]:
    """Record the GPU of a measurement: name, size, driver, and the binding used."""
    info = device.info
    return {
        "name": info.name,
        "real": info.name != STANDIN_NAME,
        "compute_capability": list(info.capability),
        "multiprocessors": info.multiprocessors,
        "memory": info.memory,
        "l2_bytes": l2_bytes(device),
        "driver_cuda": [info.driver_version // 1000, info.driver_version % 1000 // 10],
        "binding": device.binding.name,
    }


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
