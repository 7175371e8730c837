"""The network alone (HostNetwork, GpuNetwork) and baselines: the source graph, and the official decode in PyTorch."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError, CenterNetError
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor, GpuTimer
from centernet_trt.evaluation.bench.timing import WHOLE, CacheState, Now, Sample, Subject
from centernet_trt.runtime.backend import Heads
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import close_all
from centernet_trt.runtime.cuda.resources import Graph
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.host.backend import HostBackend
from centernet_trt.runtime.host.decode import find_peaks, to_score
from centernet_trt.runtime.host.onnxruntime import allocate_heads, open_session
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.trt.context import NetworkContext

SOURCE_GRAPH = "source graph, plain ONNX Runtime"
TORCH_EAGER = "official peaks and top K, PyTorch eager"
TORCH_COMPILE = "official peaks and top K, torch.compile"
K = 100


def rotating(functions: Sequence[Callable[[], object]], now: Now = time.perf_counter) -> Subject:
    """Functions called one after the other, as one subject."""
    turn = count()

    def call() -> Sample:
        function = functions[next(turn) % len(functions)]
        start = now()
        function()
        return {WHOLE: now() - start}

    return Subject(call, len(functions))


def input_tensor(manifest: Manifest, image: BgrImage, batch: int = 1) -> npt.NDArray[Any]:
    """The network's input (batch, 3, height, width) of an image on the host, repeated `batch` times."""
    placement = place(manifest.spec.input, image.shape[1], image.shape[0])
    dtype = np.dtype(manifest.input.dtype)
    return preprocess([image] * batch, [placement] * batch, manifest.spec.input, dtype)


class GpuNetwork:
    """The engine and nothing else, on a real input: what trtexec times. A context manager, or close it."""

    def __init__(
        self, backend: GpuBackend, timer: GpuTimer, images: Sequence[BgrImage], batch: int, graph: bool
    ) -> None:
        """Bind the network for every input size of the images, each with `batch` copies of its first image.

        Args:
            backend: whose engine is used.
            timer: on whose stream it runs.
            images: on the host.
            batch: images at once.
            graph: record it as a CUDA graph, where TensorRT allows that.

        Raises:
            InputError: the batch is outside of what the engine was built for.
            BackendError: TensorRT refuses.
            CudaError: out of memory.
        """
        self._executor, self._timer = backend.executor, timer
        self._made: list[Any] = []
        self._runs: list[NetworkContext | Graph] = []
        self.graph = graph
        manifest = self._executor.manifest
        rule = manifest.spec.input.size
        try:
            for image in {rule.network_size(i.shape[1], i.shape[0]): i for i in reversed(images)}.values():
                self._runs.append(self._bind(input_tensor(manifest, image, batch)))
        except BaseException:
            self.close()
            raise

    def _bind(self, tensor: npt.NDArray[Any]) -> NetworkContext | Graph:
        executor, device, stream = self._executor, self._timer.device, self._timer.stream
        manifest = executor.manifest
        batch, _, height, width = tensor.shape
        tensors = {manifest.input.name: self._keep(DeviceTensor.of(device, tensor, stream))}
        shapes = executor.output_shapes(batch, height, width)
        for head in manifest.heads:
            tensors[head.name] = self._keep(DeviceTensor(device, shapes[head.name], head.dtype, stream))
        workspace = self._keep(device.allocate(executor.workspace_bytes))
        addresses = {name: made.address for name, made in tensors.items()}
        context: NetworkContext = self._keep(
            executor.context((batch, height, width), addresses, workspace.address, stream)
        )
        context.enqueue(stream)  # compiles what is not compiled yet
        stream.synchronize()
        if self.graph and context.capturable(stream):
            try:
                graph: Graph = self._keep(self._timer.recorded(partial(context.enqueue, stream)))
            except CenterNetError:  # refused while it was recorded
                pass
            else:
                return graph
        self.graph = False
        return context

    def _keep(self, part: Any) -> Any:
        self._made.append(part)
        return part

    def enqueue(self, row: int) -> None:
        """Enqueue it for one of the input sizes, one after the other."""
        run = self._runs[row % len(self._runs)]
        if isinstance(run, Graph):
            run.launch(self._timer.stream)
        else:
            run.enqueue(self._timer.stream)

    def subject(self, cache: CacheState) -> Subject:
        """As a subject of `timing.measure`."""
        turn = count()

        def call() -> Sample:
            return {WHOLE: self._timer.seconds(partial(self.enqueue, next(turn)), cache)}

        return Subject(call, len(self._runs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait, then free everything, youngest first. May be called twice."""
        made, self._made, self._runs = self._made, [], []
        if made:
            self._timer.stream.synchronize()
        close_all(list(reversed(made)))


class HostNetwork:
    """The bundle's network in ONNX Runtime on prepared tensors, and baselines on the same tensors."""

    def __init__(self, bundle: EngineBundle, backend: HostBackend, images: Sequence[BgrImage]) -> None:
        """Prepare the input tensor of every image."""
        self._manifest, self._executor = bundle.manifest, backend.executor
        self._tensors = [input_tensor(bundle.manifest, image) for image in images]

    def _run(self, tensor: npt.NDArray[Any], heads: Heads) -> Heads:
        self._executor.run({self._manifest.input.name: tensor}, heads)
        return heads

    def _heads(self, tensor: npt.NDArray[Any]) -> Heads:
        return allocate_heads(self._manifest, 1, *tensor.shape[2:])

    def alone(self) -> Subject:
        """The network and nothing else: what trtexec would time."""
        return rotating([partial(self._run, tensor, self._heads(tensor)) for tensor in self._tensors])

    def source_graph(self, model: bytes) -> Subject:
        """The graph that the bundle was built from, in ONNX Runtime with its own defaults.

        Args:
            model: the source graph, serialised, with heads and free sizes as the bundle has them.

        Raises:
            BackendError: ONNX Runtime refuses the graph or the tensor.
        """
        session = open_session(model)
        heads = list(self._manifest.spec.heads.tensors)
        (wanted,) = session.get_inputs()
        functions = [
            partial(session.run, heads, {wanted.name: tensor.astype(np.float32)}) for tensor in self._tensors
        ]
        try:
            functions[0]()
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BackendError(f"the source graph does not run in ONNX Runtime: {error}") from error
        return rotating(functions)

    def torch_decodes(self, cores: int) -> tuple[dict[str, Subject], list[str]]:
        """The official decode in PyTorch on the heatmaps that the decode stage gets; and notes on what could not run.

        It stops at scores and indices: boxes, landmarks and the mapping back to the image are left out, in its favour.

        Raises:
            BackendError: its scores differ from this project's decode.
        """
        try:
            import torch
        except ImportError:
            return {}, ["PyTorch is not installed: no PyTorch baseline"]
        torch.set_num_threads(cores)
        heatmap = self._manifest.spec.heads.heatmap
        heads = [self._run(tensor, self._heads(tensor)) for tensor in self._tensors]
        maps = [torch.from_numpy(np.asarray(found[heatmap.tensor], dtype=np.float32)) for found in heads]
        if heatmap.activation == "logits":
            _check_scores(official_decode(torch, maps[0])[0], maps[0][0].numpy())
        found = {TORCH_EAGER: rotating([partial(official_decode, torch, heat) for heat in maps])}
        try:
            compiled = torch.compile(official_decode)
            for heat in maps:
                compiled(torch, heat)
        except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, mostly
            return found, [f"torch.compile does not work here: {' '.join(str(error).split())[:200]}"]
        return found | {TORCH_COMPILE: rotating([partial(compiled, torch, heat) for heat in maps])}, []


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


def _check_scores(theirs: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> None:
    ours = to_score(find_peaks(heat, K).value, "logits")
    # The official code pads with non-peaks of score 0 where there are fewer than K peaks.
    if not np.allclose(theirs[: len(ours)], ours, rtol=0, atol=1e-6):
        raise BackendError("the official decode in PyTorch finds other scores than the decode that is timed")
