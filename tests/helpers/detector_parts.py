"""The GPU backend behind a Detector, and what it keeps: the one place where tests look inside."""

from centernet_trt.runtime import Detector
from centernet_trt.runtime.gpu.backend import GpuBackend


def gpu_backend(detector: Detector) -> GpuBackend:
    """The backend of a detector that runs on a GPU."""
    backend = detector._backend
    assert isinstance(backend, GpuBackend)
    return backend


def programs(detector: Detector) -> list[dict[tuple[int, int, int, int], bool]]:
    """For each stream: the shapes that it keeps, and whether each runs as a graph."""
    return [lane.programs for lane in gpu_backend(detector)._lanes]
