"""What `centernet-trt bench` does on a GPU: its options, and the choice between GPU and host."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.runtime.bundle import EngineBundle

if TYPE_CHECKING:
    from centernet_trt.evaluation.gpu.bench_options import GpuBenchOptions
    from centernet_trt.evaluation.timing import TimingRules


class BackendChoice(StrEnum):
    """Where the network runs."""

    auto = "auto"
    tensorrt = "tensorrt"
    onnxruntime = "onnxruntime"


class CacheChoice(StrEnum):
    """State of the L2 cache when a call begins."""

    warm = "warm"
    cold = "cold"


class InputChoice(StrEnum):
    """Where the images come from."""

    pageable = "pageable"
    pinned = "pinned"
    device = "device"


class BindingChoice(StrEnum):
    """Python package for the CUDA driver."""

    auto = "auto"
    pycuda = "pycuda"
    cuda_bindings = "cuda-bindings"


@dataclass(frozen=True)
class GpuChoices:
    """What was asked for on the command line."""

    backend: BackendChoice = BackendChoice.auto
    device: str = "0"
    cache: CacheChoice = CacheChoice.warm
    input: InputChoice = InputChoice.pageable
    graph: bool = True
    streams: tuple[int, ...] = (1, 2)
    binding: BindingChoice = BindingChoice.auto


def runs_on_gpu(bundles: Sequence[EngineBundle], choices: GpuChoices) -> bool:
    """Whether all bundles are to run in TensorRT.

    Raises:
        BackendError: TensorRT was asked for, or some bundles can use it and others not: that is no comparison.
    """
    if choices.backend is BackendChoice.onnxruntime:
        return False
    from centernet_trt.runtime.backend_choice import why_not_tensorrt
    from centernet_trt.runtime.gpu_options import GpuOptions

    options = GpuOptions(device=_device(choices))
    problems: dict[str, CenterNetError] = {}
    for bundle in bundles:
        problem = why_not_tensorrt(bundle, options)
        if problem is not None:
            problems[bundle.manifest.name] = problem
    if not problems:
        return True
    if choices.backend is BackendChoice.auto and len(problems) == len(bundles):
        return False
    name, first = next(iter(problems.items()))
    raise BackendError(
        f"TensorRT cannot run {name} here: {first.message}",
        f"{first.hint}; or measure on the host with --backend onnxruntime",
    )


def gpu_options(
    choices: GpuChoices,
    rules: "TimingRules",
    batches: Sequence[int],
    in_flight: Sequence[int],
    images: Sequence[Path],
) -> "GpuBenchOptions":
    """The options of `run_gpu_bench`; the upload buffer is made for the largest of the images.

    Args:
        choices: of the command line.
        rules: how long.
        batches: sizes of the throughput mode; none leaves it out.
        in_flight: images under way in `submit`.
        images: files.

    Raises:
        InputError: an image that cannot be read.
    """
    from centernet_trt.evaluation.gpu.bench_options import GpuBenchOptions
    from centernet_trt.evaluation.host_pipeline import load_pictures
    from centernet_trt.runtime.gpu_options import GpuOptions

    pixels = max(p.pixels.shape[0] * p.pixels.shape[1] for p in load_pictures(images))
    gpu = GpuOptions(
        device=_device(choices),
        streams=max(choices.streams),
        cuda_graph=choices.graph,
        max_pixels=pixels,
        binding=choices.binding.value,
    )
    return GpuBenchOptions(
        gpu=gpu,
        rules=rules,
        cache=choices.cache.value,
        input=choices.input.value,
        loads=tuple((streams, batch) for streams in choices.streams for batch in batches),
        in_flight=tuple(in_flight),
    )


def _device(choices: GpuChoices) -> int | str:
    if not choices.device:
        raise InputError("--device is empty", "name a GPU by its number or UUID")
    return int(choices.device) if choices.device.isdecimal() else choices.device
