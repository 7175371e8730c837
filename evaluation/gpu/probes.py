"""Two small kernels for measurements: one that does nothing, and one that keeps a stream busy for a while."""

import ctypes

from centernet_trt.kernels.compatibility import architecture_of
from centernet_trt.kernels.toolchain import find_toolchain
from centernet_trt.runtime.driver import Device
from centernet_trt.runtime.driver_objects import Stream

# `occupy` touches no memory: a copy would keep a stream busy as well, and empty the L2 cache meanwhile.
_SOURCE = """
extern "C" __global__ void nothing(unsigned long long) {}
extern "C" __global__ void occupy(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""


class _Number(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint64),)


class ProbeKernels:
    """Both kernels on one device. Close it."""

    def __init__(self, device: Device) -> None:
        """Compile and load them.

        Raises:
            CudaError: no compiler, or the driver refuses its code.
        """
        architecture = architecture_of(*device.info.capability)
        made = find_toolchain().compile("probes.cu", {"probes.cu": _SOURCE}, architecture, "cubin")
        self._module = device.load_module(made.code)
        self._nothing = self._module.function("nothing")
        self._occupy = self._module.function("occupy")
        self._number = _Number(0)

    def nothing(self, stream: Stream) -> None:
        """Enqueue a kernel that does nothing: one block of 32 threads."""
        stream.launch(self._nothing, (1, 1, 1), (32, 1, 1), 0, self._number)

    def occupy(self, stream: Stream, seconds: float) -> None:
        """Keep the stream busy for so long, with one thread and no memory."""
        stream.launch(self._occupy, (1, 1, 1), (1, 1, 1), 0, _Number(round(seconds * 1e9)))

    def close(self) -> None:
        """Unload them. May be called twice."""
        self._module.close()
