"""What a bundle's times are held beside, in the same run: the network alone, the source graph, PyTorch's decode."""

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError
from centernet_trt.evaluation.bench.host_stages import Heads, HostPipeline, Picture
from centernet_trt.evaluation.bench.timing import WHOLE, Now, Sample, Subject
from centernet_trt.runtime.host.decode import find_peaks, to_score
from centernet_trt.runtime.host.onnxruntime import open_session

SOURCE_GRAPH = "source graph, plain ONNX Runtime"
TORCH_EAGER = "official peaks and top K, PyTorch eager"
TORCH_COMPILE = "official peaks and top K, torch.compile"
K = 100


def official_decode(torch: Any, heat: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Scores and flat indices of the best K, by the steps of the official code: sigmoid, 3x3 max-pool, two top-Ks."""
    heat = heat.sigmoid()
    pooled = torch.nn.functional.max_pool2d(heat, 3, stride=1, padding=1)
    heat = heat * (pooled == heat).float()
    classes, cells = heat.shape[1], heat.shape[2] * heat.shape[3]
    scores, index = torch.topk(heat.view(1, classes, -1), min(K, cells))
    best, place_of = torch.topk(scores.view(1, -1), K)
    label = torch.div(place_of, scores.shape[2], rounding_mode="floor")
    flat = label * cells + index.view(1, -1).gather(1, place_of)
    return best[0].numpy(), flat[0].numpy()


def rotating(functions: Sequence[Callable[[], object]], now: Now = time.perf_counter) -> Subject:
    """Functions called in turn, as one subject."""
    turn = count()

    def call() -> Sample:
        function = functions[next(turn) % len(functions)]
        start = now()
        function()
        return {WHOLE: now() - start}

    return Subject(call, len(functions))


def network_alone(pipeline: HostPipeline, pictures: Sequence[Picture]) -> Subject:
    """The bundle's network and nothing else, on prepared tensors: what trtexec would time."""
    buffers = [pipeline.network_buffers(picture) for picture in pictures]

    def runner(inputs: Heads, heads: Heads) -> Callable[[], object]:
        return lambda: pipeline.executor.run(inputs, heads)

    return rotating([runner(*pair) for pair in buffers])


def source_graph(model: bytes, pipeline: HostPipeline, pictures: Sequence[Picture]) -> Subject:
    """The graph that the bundle was built from, in ONNX Runtime with its own defaults, on the same tensors.

    Args:
        model: the source graph, serialised, with heads and free sizes as the bundle has them.
        pipeline: of the bundle.
        pictures: rotated over.

    Raises:
        BackendError: ONNX Runtime refuses the graph or the tensor.
    """
    session = open_session(model)
    heads = list(pipeline.bundle.manifest.spec.heads.tensors)
    (wanted,) = session.get_inputs()

    def runner(inputs: Heads) -> Callable[[], object]:
        (tensor,) = inputs.values()
        feed = {wanted.name: tensor.astype(np.float32)}
        return lambda: session.run(heads, feed)

    functions = [runner(pipeline.network_buffers(picture)[0]) for picture in pictures]
    try:
        functions[0]()
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BackendError(f"the source graph does not run in ONNX Runtime: {error}") from error
    return rotating(functions)


def torch_decodes(
    pipeline: HostPipeline, pictures: Sequence[Picture], cores: int
) -> tuple[dict[str, Subject], list[str]]:
    """The official decode in PyTorch on the heatmaps that the decode stage meets; and notes on what could not run.

    It stops at scores and indices: boxes, landmarks and the way back to the image are left out, in its favour.

    Raises:
        BackendError: its scores are not ours.
    """
    try:
        import torch
    except ImportError:
        return {}, ["PyTorch is not installed: no PyTorch baseline"]
    torch.set_num_threads(cores)
    maps = [torch.from_numpy(_heatmap(pipeline, picture)[None]) for picture in pictures]
    if pipeline.bundle.manifest.spec.heads.heatmap.activation == "logits":
        _check(official_decode(torch, maps[0])[0], maps[0][0].numpy())
    found = {TORCH_EAGER: rotating([_decoder(official_decode, torch, heat) for heat in maps])}
    try:
        compiled = torch.compile(official_decode)
        for heat in maps:
            compiled(torch, heat)
    except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, mostly
        return found, [f"torch.compile does not work here: {' '.join(str(error).split())[:200]}"]
    return found | {TORCH_COMPILE: rotating([_decoder(compiled, torch, heat) for heat in maps])}, []


def _decoder(function: Callable[[Any, Any], object], torch: Any, heat: Any) -> Callable[[], object]:
    return lambda: function(torch, heat)


def _heatmap(pipeline: HostPipeline, picture: Picture) -> npt.NDArray[np.float32]:
    inputs, heads = pipeline.network_buffers(picture)
    pipeline.executor.run(inputs, heads)
    heat = heads[pipeline.bundle.manifest.spec.heads.heatmap.tensor][0]
    return np.asarray(heat, dtype=np.float32)


def _check(theirs: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> None:
    ours = to_score(find_peaks(heat, K).value, "logits")
    # The official code fills up with non-peaks, at 0, where there are fewer than K peaks.
    if not np.allclose(theirs[: len(ours)], ours, rtol=0, atol=1e-6):
        raise BackendError("the official decode in PyTorch finds other scores than the decode that is timed")
