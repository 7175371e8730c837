"""DriverMachine: run the kernels through cuda-bindings, on a real GPU or the stand-in driver."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.cache import cache_dir
from centernet_trt.kernels.compile import PROGRAMS, compile_module, sm_name
from centernet_trt.kernels.launch import LaunchShape


def checked(result: tuple[Any, ...]) -> Any:
    """The values of a cuda-bindings call whose status must be success."""
    status, *values = result
    assert int(status) == 0, status
    return values[0] if len(values) == 1 else values


def why_no_gpu() -> str | None:
    """Why there is no device; None when there is one."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return "cuda-bindings is not installed (extra gpu)"
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:  # or a type of the binding's own, when there is no libcuda
        return f"there is no NVIDIA driver: {error}"
    if int(status) != 0:
        return f"the NVIDIA driver finds no device: {status.name}"
    return None


class DriverMachine:
    """Memory and launches of device 0, on a non-blocking stream in the primary context."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.cu: Any = driver
        checked(driver.cuInit(0))
        self.device = checked(driver.cuDeviceGet(0))
        self.context = checked(driver.cuDevicePrimaryCtxRetain(self.device))
        checked(driver.cuCtxPushCurrent(self.context))
        self.stream = checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.architecture = sm_name(
            self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        )
        self._modules, self._functions = [], {}
        for program in PROGRAMS:
            compiled = compile_module(program, self.architecture, cache_dir() / "kernels")
            module = checked(driver.cuModuleLoadData(compiled.cubin))
            self._modules.append(module)
            for entry in (f"{program}_half", f"{program}_float"):
                self._functions[entry] = checked(driver.cuModuleGetFunction(module, entry.encode()))
        self._memory: list[int] = []
        self._garbage = np.random.default_rng(0)

    def reset(self) -> None:
        for address in self._memory:
            checked(self.cu.cuMemFree(address))
        self._memory.clear()

    def allocate(self, nbytes: int, zero: bool = False) -> int:
        content = bytes(nbytes) if zero else self._garbage.integers(0, 256, nbytes, dtype=np.uint8).tobytes()
        return self.upload(content)

    def upload(self, data: npt.NDArray[Any] | bytes, pointers: bool = False) -> int:
        raw = data if isinstance(data, bytes) else data.tobytes()
        address = int(checked(self.cu.cuMemAlloc(max(len(raw), 1))))
        self._memory.append(address)
        self.write(address, raw)
        return address

    def write(self, address: int, data: bytes) -> None:
        if data:
            checked(self.cu.cuMemcpyHtoD(address, data, len(data)))

    def download(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        host = np.empty(nbytes, dtype=np.uint8)
        checked(self.cu.cuMemcpyDtoH(host.ctypes.data, address, nbytes))
        return host

    def enqueue(self, kernel: str, shape: LaunchShape, params: ctypes.Structure) -> None:
        """Launch on the stream, without waiting."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        checked(
            self.cu.cuLaunchKernel(
                self._functions[kernel],
                *shape.grid,
                *shape.block,
                shape.shared_bytes,
                self.stream,
                ctypes.addressof(pointers),
                0,
            )
        )

    def launch(self, kernel: str, shape: LaunchShape, params: ctypes.Structure) -> None:
        self.enqueue(kernel, shape, params)
        checked(self.cu.cuStreamSynchronize(self.stream))

    def close(self) -> None:
        self.reset()
        for module in self._modules:
            checked(self.cu.cuModuleUnload(module))
        checked(self.cu.cuStreamDestroy(self.stream))
        checked(self.cu.cuCtxPopCurrent())
        checked(self.cu.cuDevicePrimaryCtxRelease(self.device))

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.cu.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(checked(self.cu.cuDeviceGetAttribute(attribute, self.device)))
