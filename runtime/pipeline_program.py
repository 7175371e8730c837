"""What runs for one (batch, input shape, rows): preprocess, network, decode and the download, as launches or as a graph."""

from centernet_trt.errors import CenterNetError
from centernet_trt.kernels.launch import plan_decode, plan_preprocess
from centernet_trt.kernels.outputs import DecodeLayout
from centernet_trt.runtime.driver import close_all
from centernet_trt.runtime.driver_errors import DriverError
from centernet_trt.runtime.driver_objects import Graph
from centernet_trt.runtime.gpu_kernels import Kernels
from centernet_trt.runtime.kernel_params import decode_params, extra_columns, preprocess_params
from centernet_trt.runtime.pipeline_buffers import StreamBuffers
from centernet_trt.runtime.tensorrt_executor import TensorRTExecutor

ProgramKey = tuple[int, int, int, int]
"""(batch, network height, network width, output rows an image)."""


class Program:
    """The work of one shape on one stream's buffers; nothing in it depends on the images' sizes or the thresholds."""

    def __init__(
        self, key: ProgramKey, executor: TensorRTExecutor, kernels: Kernels, buffers: StreamBuffers
    ) -> None:
        """Bind the network to the shape.

        Raises:
            BackendError: TensorRT refuses the shape.
        """
        batch, height, width, rows = key
        manifest, spec = executor.manifest, executor.manifest.spec
        self._kernels, self._buffers = kernels, buffers
        self._graph: Graph | None = None
        self.refused: str | None = None
        images, tensors = buffers.device_staging.address, buffers.addresses
        self.layout = DecodeLayout(batch, rows, extra_columns(spec.heads))
        # Made once: a view of the pinned buffer costs as much as all else that a call does in Python.
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
        return self._graph is not None

    def launch(self) -> None:
        """Enqueue it: one graph launch, or launch by launch.

        Raises:
            BackendError: TensorRT refused.
            DriverError: the driver did.
        """
        if self._graph is not None:
            self._graph.launch(self._buffers.stream)
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        buffers, stream = self._buffers, self._buffers.stream
        self._kernels.preprocess(stream, self._preprocess, self._preprocess_params)
        self.network.enqueue(stream)
        self._kernels.decode(stream, self._decode, self._decode_params)
        stream.copy_to_host(buffers.pinned_output.address, buffers.output.address, self.layout.nbytes)

    def capture(self) -> None:
        """Record it as a graph, after it has run once; a refusal is kept in `refused`, and launches go on one by one.

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
                self._enqueue()
            except BaseException:
                # What was recorded so far would replay as if it were whole.
                stream.abandon_capture()
                raise
            self._graph = stream.end_capture()
        except CenterNetError as error:
            if isinstance(error, DriverError) and error.context_lost:
                raise
            self.refused = error.message

    def close(self) -> None:
        """Free the graph, then the network's context; the stream is idle."""
        graph, self._graph = self._graph, None
        close_all([part for part in (graph, self.network) if part is not None])
