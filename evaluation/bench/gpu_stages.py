"""The runtime's own pipeline on a GPU, stage by stage, and its network alone: what CUDA events see.

Events cannot look into a CUDA graph, so the stages are timed without it, in a series of their own: the kernels and the
network are the same, launched one by one behind a hold (`timer`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from centernet_trt.errors import CenterNetError
from centernet_trt.evaluation.bench.gpu_timer import CacheState, DeviceTensor, EventClock, GpuTimer
from centernet_trt.evaluation.bench.host_stages import Picture
from centernet_trt.evaluation.bench.timing import WHOLE, Sample, StageClock, Subject
from centernet_trt.runtime.backend import GpuOptions, InferenceRequest
from centernet_trt.runtime.backend import LoadedImage as RuntimePicture
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import close_all
from centernet_trt.runtime.cuda.interop import device_image, is_device_array
from centernet_trt.runtime.cuda.resources import Graph, Stream
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.gpu.lane import STAGES
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.trt.context import NetworkContext

InputKind = Literal["pageable", "pinned", "device"]


class StagedPipeline:
    """One image at a time through `GpuBackend` without its CUDA graph, with an event after each stage. Close it."""

    stages = STAGES
    note = ""

    def __init__(self, bundle: EngineBundle, options: GpuOptions) -> None:
        """Load the bundle.

        Raises:
            BundleError, BackendError, CudaError: as `GpuBackend.load`.
        """
        self.bundle = bundle
        self.pipeline = GpuBackend.load(bundle, replace(options, streams=1, cuda_graph=False))
        try:
            self.timer = GpuTimer(self.pipeline.device, *self.pipeline.streams)
        except BaseException:
            self.pipeline.close()
            raise

    def clock(self, cache: CacheState) -> EventClock:
        """A clock for `run`."""
        return EventClock(self.timer, cache)

    def run(self, picture: Picture, clock: StageClock) -> Detections:
        """Detect in one image, with the spec's threshold and top K."""
        source: Any = picture.pixels
        image: RuntimePicture = device_image(source) if is_device_array(source) else source
        placement = place(self.bundle.manifest.spec.input, image.shape[1], image.shape[0])

        def mark(stage: str) -> None:
            clock.mark(stage)
            if stage == STAGES[-1] and isinstance(clock, EventClock):
                clock.seal()

        clock.start()
        return self.pipeline.run([[InferenceRequest(image, placement)]], mark)[0][0]

    def close(self) -> None:
        """Free everything."""
        self.timer.close()
        self.pipeline.close()


class NetworkAlone:
    """The engine and nothing else, on a real input: what trtexec times. A context manager, or close it."""

    def __init__(self, staged: StagedPipeline, pictures: Sequence[Picture], batch: int, graph: bool) -> None:
        """Bind the network for every input size of the pictures, each with `batch` copies of its first picture.

        Args:
            staged: whose engine, device and timer are used.
            pictures: on the host.
            batch: images at once.
            graph: record it as a CUDA graph, where TensorRT lets it be recorded.

        Raises:
            InputError: the batch is outside of what the engine was built for.
            BackendError: TensorRT refuses.
            CudaError: out of memory.
        """
        self._timer = staged.timer
        self._made: list[Any] = []
        self._runs: list[NetworkContext | Graph] = []
        self.graph = graph
        manifest = staged.bundle.manifest
        try:
            for placement, picture in _by_size(staged.bundle, pictures).items():
                pixels = np.asarray(picture.pixels)
                dtype = np.dtype(manifest.input.dtype)
                tensor = preprocess([pixels] * batch, [placement] * batch, manifest.spec.input, dtype)
                self._runs.append(self._bind(staged, tensor))
        except BaseException:
            self.close()
            raise

    def _bind(self, staged: StagedPipeline, tensor: Any) -> NetworkContext | Graph:
        executor, device, stream = staged.pipeline.executor, self._timer.device, self._timer.stream
        manifest = staged.bundle.manifest
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
        if not (self.graph and context.capturable(stream)):
            self.graph = False
            return context
        try:
            graph: Graph = self._keep(self._timer.recorded(partial(context.enqueue, stream)))
        except CenterNetError:  # refused while it was recorded
            self.graph = False
            return context
        return graph

    def _keep(self, part: Any) -> Any:
        self._made.append(part)
        return part

    def enqueue(self, row: int) -> None:
        """Enqueue it for one of the input sizes, in turn."""
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


def _by_size(bundle: EngineBundle, pictures: Sequence[Picture]) -> dict[Placement, Picture]:
    """The first picture of every size of the network's input, with where it lies in it."""
    found: dict[tuple[int, int], tuple[Placement, Picture]] = {}
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        placement = place(bundle.manifest.spec.input, width, height)
        found.setdefault((placement.height, placement.width), (placement, picture))
    return dict(found.values())


def given_as(
    kind: InputKind, pictures: Sequence[Picture], pipeline: Any, stream: Stream
) -> tuple[list[Picture], list[Any]]:
    """The pictures with their pixels where they are to come from; and what must be closed afterwards.

    Args:
        kind: `pageable` leaves them; `pinned` copies them to memory of `pinned_image`; `device` to GPU memory.
        pictures: on the host.
        pipeline: the Detector or GpuBackend that will be asked.
        stream: for the copies to GPU memory.
    """
    if kind == "pageable":
        return list(pictures), []
    found, made = [], []
    for picture in pictures:
        pixels: Any
        if kind == "pinned":
            pixels = pipeline.pinned_image(*picture.pixels.shape[:2])
            pixels[...] = picture.pixels
        else:
            pixels = DeviceTensor.of(stream.device, picture.pixels, stream)
            made.append(pixels)
        found.append(replace(picture, pixels=pixels))
    return found, made
