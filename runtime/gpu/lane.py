"""A lane: one stream with its buffers and its captured program for each shape."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import CenterNetError
from centernet_trt.kernels.launch import DecodeLayout, plan_decode, plan_preprocess
from centernet_trt.runtime.backend import Heads, InferenceRequest, Mark, ignore_mark
from centernet_trt.runtime.cuda.binding import DriverError
from centernet_trt.runtime.cuda.device import close_all
from centernet_trt.runtime.cuda.resources import Graph
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.gpu.buffers import StreamBuffers
from centernet_trt.runtime.gpu.kernels import (
    Kernels,
    decode_params,
    extra_columns,
    preprocess_params,
    rows_to_detections,
)
from centernet_trt.runtime.host.onnxruntime import allocate_heads
from centernet_trt.runtime.profiles import batch_to_run
from centernet_trt.runtime.spec import MAX_TOP_K, ModelSpec
from centernet_trt.runtime.trt.context import TensorRTEngine

STAGES = ("upload", "preprocess", "network", "decode", "download")

ProgramKey = tuple[int, int, int, int]
"""(batch, network height, network width, output rows an image)."""


class Program:
    """The work of one input shape on one stream's buffers, independent of the images' sizes and the thresholds."""

    def __init__(
        self, key: ProgramKey, executor: TensorRTEngine, kernels: Kernels, buffers: StreamBuffers
    ) -> None:
        """Bind the network to the shape.

        Raises:
            BackendError: TensorRT refuses the shape.
        """
        batch, height, width, rows = key
        manifest, spec = executor.manifest, executor.manifest.spec
        self._kernels, self._buffers = kernels, buffers
        self.graph: Graph | None = None
        self.refused: str | None = None
        images, tensors = buffers.device_staging.address, buffers.addresses
        self.layout = DecodeLayout(batch, rows, extra_columns(spec.heads))
        # Made once: a view of the pinned buffer costs as much as everything else that a call does in Python.
        self.rows = self.layout.view(buffers.pinned_output.array[: self.layout.nbytes])
        self._preprocess = plan_preprocess(batch, height, width, half=manifest.input.dtype == "float16")
        self._preprocess_params = preprocess_params(
            spec.input, height, width, images, buffers.levels, tensors[manifest.input.name]
        )
        grid = (buffers.classes, height // spec.stride, width // spec.stride)
        heads = {head.name: (tensors[head.name], head.dtype == "float16") for head in manifest.heads}
        half = heads[spec.heads.heatmap.tensor][1]
        self._decode = plan_decode(
            batch, *grid, rows, half, multiprocessors=executor.device.info.multiprocessors
        )
        self._decode_params = decode_params(
            spec,
            self._decode,
            grid,
            heads,
            images,
            buffers.counters.address,
            buffers.keys.address,
            buffers.output.address,
            self.layout,
        )
        self.network = executor.context(
            (batch, height, width), tensors, buffers.workspace.address, buffers.stream
        )

    @property
    def captured(self) -> bool:
        """Whether it runs as a graph."""
        return self.graph is not None

    def enqueue(self, mark: Mark = ignore_mark) -> None:
        """Enqueue it launch by launch, whether there is a graph or not.

        Args:
            mark: called after what each stage enqueues on the stream.

        Raises:
            BackendError: TensorRT refused.
            DriverError: the driver did.
        """
        buffers, stream = self._buffers, self._buffers.stream
        self._kernels.preprocess(stream, self._preprocess, self._preprocess_params)
        mark("preprocess")
        self.network.enqueue(stream)
        mark("network")
        self._kernels.decode(stream, self._decode, self._decode_params)
        mark("decode")
        stream.copy_to_host(buffers.pinned_output.address, buffers.output.address, self.layout.nbytes)
        mark("download")

    def capture(self) -> None:
        """Record it as a graph, after it has run once; after a refusal, kept in `refused`, it runs launch by launch.

        Raises:
            DriverError: the GPU's context is lost.
        """
        stream = self._buffers.stream
        if not self.network.capturable(stream):
            self.refused = "TensorRT says that this network cannot be recorded"
            return
        try:
            stream.begin_capture()
            try:
                self.enqueue()
            except BaseException:
                # A partial recording would replay as if it were complete.
                stream.abandon_capture()
                raise
            self.graph = stream.end_capture()
        except CenterNetError as error:
            if isinstance(error, DriverError) and error.context_lost:
                raise
            self.refused = error.message

    def close(self) -> None:
        """Free the graph, then the network's context; the stream is idle."""
        graph, self.graph = self.graph, None
        close_all([part for part in (graph, self.network) if part is not None])


_NOTHING: AbstractContextManager[Any] = nullcontext()


@cache
def _annotate() -> Any:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.annotate


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A range of this name around a `with` block, in the domain `centernet-trt`."""
    annotate = _annotate()
    return _NOTHING if annotate is None else annotate(name, domain="centernet-trt")


_log = logging.getLogger(__name__)
_REMEMBERED = 256  # shapes; beyond it all are dropped


class Lane:
    """A stream, its buffers and its programs. One batch at a time: `start`, then `finish`."""

    def __init__(
        self,
        executor: TensorRTEngine,
        kernels: Kernels,
        buffers: StreamBuffers,
        cuda_graph: bool,
        max_graphs: int,
    ) -> None:
        """Use `GpuBackend.load`."""
        self.buffers = buffers
        self._executor, self._kernels, self._device = executor, kernels, executor.device
        self._cuda_graph, self._max_graphs = cuda_graph, max_graphs
        self._spec: ModelSpec = executor.manifest.spec
        self._programs: OrderedDict[ProgramKey, Program] = OrderedDict()
        self._running: tuple[Program, Sequence[InferenceRequest]] | None = None
        self._batches: dict[tuple[int, int, int], int] = {}

    def start(self, requests: Sequence[InferenceRequest], mark: Mark | None = None) -> None:
        """Enqueue a batch whose placements share one network size. After an error the lane is idle again.

        Args:
            requests: the batch.
            mark: called after what each stage enqueues. A CUDA graph is one launch, which cannot be marked inside, so
                a marked batch runs launch by launch: the same kernels and the same network.

        Raises:
            BackendError: TensorRT refused.
            DriverError: the driver did.
        """
        try:
            with self._device.current, nvtx_range("start"):
                program = self._program(self._key(requests))
                self.buffers.upload(program.layout.batch, requests)
                if mark is not None:
                    mark("upload")
                    program.enqueue(mark)
                elif program.graph is not None:
                    program.graph.launch(self.buffers.stream)
                else:
                    program.enqueue()
                self._device.binding.record(self.buffers.done.handle, self.buffers.stream.handle)
        except BaseException:
            self._recover()
            raise
        self._running = program, requests  # keeps the images alive, which the upload may still read

    def finish(self) -> list[Detections]:
        """Wait for the started batch -> its detections. After an error the lane is idle again.

        Raises:
            DriverError: the work failed.
        """
        assert self._running is not None, "finish() without start()"
        (program, requests), self._running = self._running, None
        try:
            with nvtx_range("wait"):
                self.buffers.done.synchronize()
            found = [rows_to_detections(program.rows, row, self._spec) for row in range(len(requests))]
            if self._cuda_graph and not program.captured and program.refused is None:
                self._capture(program)
        except BaseException:
            self._recover()
            raise
        return found

    def heads(self, tensor: npt.NDArray[np.floating]) -> Heads:
        """The network alone: head tensors of an input tensor, both on the host. Slow, and one batch at most.

        Raises:
            BackendError: TensorRT refused.
            DriverError: the driver did.
        """
        manifest, buffers = self._executor.manifest, self.buffers
        height, width = tensor.shape[2:]
        count, batch = len(tensor), batch_to_run(manifest.profiles, len(tensor), height, width)
        found = allocate_heads(manifest, batch, height, width)
        try:
            with self._device.current:
                program = self._program((batch, height, width, self._spec.top_k))
                buffers.write(buffers.addresses[manifest.input.name], tensor)
                program.network.enqueue(buffers.stream)
                for name, array in found.items():
                    buffers.read(buffers.addresses[name], array)
        except BaseException:
            self._recover()
            raise
        return {name: array[:count] for name, array in found.items()}

    def _key(self, requests: Sequence[InferenceRequest]) -> ProgramKey:
        placement = requests[0].placement
        shape = len(requests), placement.height, placement.width
        batch = self._batches.get(shape)
        if batch is None:
            # Searching the profiles in every call is too slow.
            batch = batch_to_run(self._executor.manifest.profiles, *shape)
            if len(self._batches) >= _REMEMBERED:
                self._batches.clear()
            self._batches[shape] = batch
        rows = self._spec.top_k
        for request in requests:
            if request.top_k is not None and request.top_k > rows:
                rows = MAX_TOP_K
        return batch, placement.height, placement.width, rows

    def _program(self, key: ProgramKey) -> Program:
        """The program of this shape, created when it is new; the least recently used one is closed when there are too many."""
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
            return program
        while len(self._programs) >= self._max_graphs:
            _, oldest = self._programs.popitem(last=False)
            oldest.close()
        program = Program(key, self._executor, self._kernels, self.buffers)
        self._programs[key] = program
        return program

    def _capture(self, program: Program) -> None:
        program.capture()
        if program.refused is not None:
            _log.warning(
                "this detector runs without CUDA graphs, at some tens of microseconds a batch: %s",
                program.refused,
            )
            self._cuda_graph = False

    def _recover(self) -> None:
        """Reset the lane after a failure: nothing running, counters zero, programs created again when needed."""
        self._running = None
        try:
            self.buffers.reset()
        except CenterNetError as error:
            _log.debug("the stream could not be reset: %s", error)
        self._close_programs()

    def _close_programs(self) -> None:
        programs = list(self._programs.values())
        self._programs.clear()
        close_all(programs)

    @property
    def programs(self) -> dict[ProgramKey, bool]:
        """The shapes kept -> whether each runs as a graph."""
        return {key: program.captured for key, program in self._programs.items()}

    def close(self) -> None:
        """Wait for the stream, then free everything. May be called twice."""
        if not self.buffers.stream.closed:
            try:
                self.buffers.stream.synchronize()
            except DriverError as error:
                _log.debug("the stream failed before it was closed: %s", error)
        self._close_programs()
        self.buffers.close()
