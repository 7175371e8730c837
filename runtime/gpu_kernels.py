"""The product's kernels, compiled for a device and loaded onto it."""

from typing import Any

from centernet_trt.cache import cache_dir
from centernet_trt.kernels.compatibility import architecture_of, check_driver
from centernet_trt.kernels.compiler import PROGRAMS, compile_module
from centernet_trt.kernels.launch import DecodePlan, PreprocessPlan
from centernet_trt.kernels.structs import DecodeParams, PreprocessParams
from centernet_trt.kernels.toolchain import find_toolchain
from centernet_trt.runtime.driver import Device, close_all
from centernet_trt.runtime.driver_objects import Module, Stream

_ENTRIES = ("half", "float")


class Kernels:
    """`preprocess` and `decode` on one device."""

    def __init__(self, device: Device) -> None:
        """Compile the kernels, or take them from the user's cache folder, and load them.

        Raises:
            CudaError: no compiler, or one whose code this driver or GPU does not take.
        """
        toolchain = find_toolchain()
        check_driver(device.info.driver_version, toolchain.cuda_major)
        architecture = architecture_of(*device.info.capability)
        self._modules: list[Module] = []
        self._functions: dict[str, Any] = {}
        try:
            for program in PROGRAMS:
                compiled = compile_module(program, architecture, cache_dir() / "kernels", toolchain)
                module = device.load_module(compiled.cubin)
                self._modules.append(module)
                for entry in _ENTRIES:
                    name = f"{program}_{entry}"
                    self._functions[name] = module.function(name)
        except BaseException:
            self.close()
            raise

    def preprocess(self, stream: Stream, plan: PreprocessPlan, params: PreprocessParams) -> None:
        """Enqueue `preprocess`."""
        shape = plan.shape
        stream.launch(self._functions[plan.kernel], shape.grid, shape.block, shape.shared_bytes, params)

    def decode(self, stream: Stream, plan: DecodePlan, params: DecodeParams) -> None:
        """Enqueue `decode`."""
        shape = plan.shape
        stream.launch(self._functions[plan.kernel], shape.grid, shape.block, shape.shared_bytes, params)

    def close(self) -> None:
        """Unload them. May be called twice."""
        modules, self._modules = self._modules, []
        self._functions.clear()
        close_all(list(modules))
