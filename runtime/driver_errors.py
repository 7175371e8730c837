"""Errors of the CUDA driver: the call, what its code means, and what to do about it."""

from centernet_trt.errors import CudaError

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
