"""Choose the backend, TensorRT or ONNX Runtime, and log why."""

import logging
from typing import Literal

from centernet_trt.errors import BackendError, BundleError, CudaError
from centernet_trt.runtime.backend import Backend, GpuOptions
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import gpu_count
from centernet_trt.runtime.host.backend import HostBackend
from centernet_trt.runtime.host.onnxruntime import Mode, OnnxRuntimeExecutor

BackendName = Literal["auto", "tensorrt", "onnxruntime"]

_log = logging.getLogger(__name__)


def open_backend(
    bundle: EngineBundle, backend: BackendName, mode: Mode, threads: int | None, options: GpuOptions
) -> Backend:
    """Open the backend that runs a bundle.

    Args:
        bundle: already read.
        backend: `auto` is TensorRT if there is a GPU, the packages to reach it, and a plan that runs there.
        mode: of ONNX Runtime.
        threads: of ONNX Runtime; None for its own choice.
        options: of the GPU; `max_batch` applies to both backends.

    Raises:
        BackendError: the backend is unknown or not available here.
        CudaError: the GPU fails or runs out of memory.
        InputError: `max_batch` is outside of what the bundle was built for.
    """
    if backend not in ("auto", "tensorrt", "onnxruntime"):
        raise BackendError(f"there is no backend {backend!r}", "expected auto, onnxruntime or tensorrt")
    options = options.within(bundle.manifest.profiles)
    if backend == "auto" and mode == "faithful":
        backend = "onnxruntime"  # the only one with that mode
    if backend != "onnxruntime":
        problem = why_not_tensorrt(bundle, options)
        if problem is None:
            try:
                return _load_gpu_backend(bundle, options)
            except BackendError as error:  # TensorRT itself refuses the plan
                if backend == "tensorrt":
                    raise
                problem = error
        if backend == "tensorrt":
            raise BackendError(f"TensorRT cannot run here: {problem.message}", problem.hint) from problem
        level = logging.WARNING if bundle.manifest.plans and gpu_count() else logging.INFO
        _log.log(level, "the network runs in ONNX Runtime: %s", str(problem))
    executor = OnnxRuntimeExecutor(bundle.model_path, bundle.manifest, mode, threads)
    return HostBackend(executor, bundle.manifest, options.max_batch)


def why_not_tensorrt(
    bundle: EngineBundle, options: GpuOptions
) -> CudaError | BundleError | BackendError | None:
    """Return why no plan of the bundle can run on a GPU here; None if one can."""
    if not bundle.manifest.plans:
        return BundleError("the bundle has no TensorRT plan", f"build one: {bundle.manifest.command}")
    if gpu_count() == 0:
        return CudaError(
            "there is no NVIDIA GPU", "see `nvidia-smi`; in a container, start it with --gpus all"
        )
    from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings
    from centernet_trt.runtime.cuda.device import find_device
    from centernet_trt.runtime.trt.engine import choose_plan

    try:
        choose_plan(bundle, find_device(CudaBindings(), options.device))
    except (CudaError, BundleError) as error:
        return error
    return None


def _load_gpu_backend(bundle: EngineBundle, options: GpuOptions) -> Backend:
    from centernet_trt.runtime.gpu.backend import GpuBackend

    return GpuBackend.load(bundle, options)
