"""How long each layer of an engine takes, as TensorRT itself reports it."""

from dataclasses import dataclass
from typing import Any

from centernet_trt.errors import InputError
from centernet_trt.runtime.driver import close_all
from centernet_trt.runtime.gpu_memory import tensor_bytes
from centernet_trt.runtime.tensorrt_executor import TensorRTExecutor


@dataclass(frozen=True)
class LayerTime:
    """A layer by TensorRT's name, and its mean time in milliseconds."""

    name: str
    ms: float


def profile_layers(
    executor: TensorRTExecutor, batch: int, height: int, width: int, runs: int = 20
) -> list[LayerTime]:
    """Times of all layers in the order they ran, for an input of `batch` images of height x width pixels, all zero.

    TensorRT waits after every layer while it measures, so the sum is more than the network takes; compare layers, not
    totals. It allocates buffers of its own and frees them.

    Raises:
        InputError: the shape is outside the profile.
        BackendError: TensorRT refuses.
        CudaError: out of memory.
    """
    if runs < 1:
        raise InputError(f"runs is {runs}, at least 1 was expected")
    manifest, device = executor.manifest, executor.device
    stride = manifest.spec.stride
    sizes = {manifest.input.name: tensor_bytes(manifest.input, batch, height, width)}
    sizes |= {
        head.name: tensor_bytes(head, batch, height // stride, width // stride) for head in manifest.heads
    }
    made: list[Any] = []
    try:
        stream = device.stream()
        made.append(stream)
        buffers = {name: device.allocate(size) for name, size in sizes.items()}
        workspace = device.allocate(executor.workspace_bytes)
        made += [*buffers.values(), workspace]
        stream.fill(buffers[manifest.input.name].address, 0, sizes[manifest.input.name])
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        context = executor.context((batch, height, width), addresses, workspace.address, stream)
        made.append(context)
        context.enqueue(stream)  # the first run compiles and allocates
        stream.synchronize()
        times: dict[str, list[float]] = {}
        context.report_layers_to(_profiler(executor.loaded.module, times))
        for _ in range(runs):
            context.enqueue(stream)
            stream.synchronize()
    finally:
        close_all(list(reversed(made)))
    return [LayerTime(name, sum(values) / runs) for name, values in times.items()]


def _profiler(module: Any, times: dict[str, list[float]]) -> Any:
    class Profiler(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)  # as TensorRT's documents ask

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()
