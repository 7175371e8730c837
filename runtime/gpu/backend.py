"""GpuBackend: a bundle's plan and kernels on one GPU, over several lanes."""

import atexit
import logging
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.runtime.backend import (
    Batch,
    GpuOptions,
    Heads,
    InferenceRequest,
    LoadedImage,
    Mark,
    MemoryUse,
)
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.interop import DeviceImage
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.gpu.buffers import (
    StreamBuffers,
    aligned,
    descriptor_bytes,
    memory_use,
    plan_stream,
)
from centernet_trt.runtime.gpu.kernels import Kernels
from centernet_trt.runtime.gpu.lane import STAGES, Lane
from centernet_trt.runtime.gpu.lane_pool import LanePool
from centernet_trt.runtime.gpu.pinned import PinnedImages
from centernet_trt.runtime.host.decode import check_heads
from centernet_trt.runtime.host.preprocess import level_table
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.profiles import largest_batch, largest_shapes
from centernet_trt.runtime.trt.context import TensorRTEngine

_log = logging.getLogger(__name__)
InFlight = deque[tuple[Lane, list[Detections]]]


class GpuBackend:
    """Runs a bundle's plan, between the two kernels, on one GPU. Safe to use from many threads; close it."""

    note = ""
    stages = STAGES

    def __init__(
        self,
        bundle: EngineBundle,
        options: GpuOptions,
        device: Device,
        kernels: Kernels | None = None,
        executor: TensorRTEngine | None = None,
    ) -> None:
        """Take over a device; see `GpuBackend.load`.

        Args:
            bundle: already read.
            options: see `GpuOptions`.
            device: closed with the backend.
            kernels: loaded on the device, and closed with the backend; None loads them.
            executor: of the bundle's network on the device, closed with the backend; None loads the bundle's plan.
        """
        self.options = options.within(bundle.manifest.profiles)
        self.device = device
        self._parts: list[Any] = []  # in order of creation
        self._lanes: list[Lane] = []
        self._warming = threading.Lock()  # two callers that each hold some lanes and want all would deadlock
        try:
            self._build(bundle, kernels, executor)
        except BaseException:
            self._tear_down()
            raise
        # Unless its owner closes it, it is closed before the driver unloads; the garbage collector frees nothing.
        atexit.register(self.close)

    @classmethod
    def load(cls, bundle: EngineBundle, options: GpuOptions | None = None) -> Self:
        """Load a bundle onto a GPU.

        Raises:
            CudaError: no driver, no such GPU, no compiler for the kernels, or out of memory.
            BundleError: no plan of the bundle runs here.
            BackendError: TensorRT is missing or refuses the plan.
        """
        options = options or GpuOptions()
        device = Device.open(options.device, options.binding)
        try:
            return cls(bundle, options, device)
        except BaseException:
            device.close()
            raise

    def _build(self, bundle: EngineBundle, kernels: Kernels | None, executor: TensorRTEngine | None) -> None:
        options, device, manifest = self.options, self.device, bundle.manifest
        assert options.max_batch is not None
        self._profiles = manifest.profiles
        self._most_rows = max(batch for batch, _, _ in largest_shapes(manifest.profiles, options.max_batch))
        check_heads({head.name: (1, head.channels, 1, 1) for head in manifest.heads}, manifest.spec)
        loaded: Kernels = self._keep(kernels or Kernels(device))
        self.executor: TensorRTEngine = self._keep(executor or TensorRTEngine(bundle, device))
        self._memory = plan_stream(
            manifest,
            options.max_batch,
            options.max_pixels,
            self.executor.workspace_bytes,
            device.info.multiprocessors,
        )
        levels = level_table(manifest.spec.input).tobytes()
        self._levels = self._keep(device.allocate(len(levels)))
        self._pinned_images = PinnedImages(device)
        classes = {head.name: head.channels for head in manifest.heads}[manifest.spec.heads.heatmap.tensor]
        for _ in range(options.streams):
            buffers = StreamBuffers(
                device,
                self._memory,
                manifest.spec,
                self._levels.address,
                classes,
                options.spin,
                self._pinned_images,
            )
            lane = self._keep(Lane(self.executor, loaded, buffers, options.cuda_graph, options.max_graphs))
            self._lanes.append(lane)
        self._upload_levels(levels)
        self._pool = LanePool(device, self._lanes)
        # In the upload buffer, beside the descriptors of the largest batch and of one image.
        self._room, self._largest_image = (
            self._memory.staging - descriptor_bytes(rows) for rows in (self._most_rows, 1)
        )

    def _upload_levels(self, levels: bytes) -> None:
        buffers = self._lanes[0].buffers
        buffers.pinned_staging.array[: len(levels)] = np.frombuffer(levels, dtype=np.uint8)
        buffers.stream.copy_to_device(self._levels.address, buffers.pinned_staging.address, len(levels))
        buffers.stream.synchronize()

    def _keep(self, part: Any) -> Any:
        self._parts.append(part)
        return part

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The CUDA streams that batches run on, for events and copies of the caller's."""
        return tuple(lane.buffers.stream for lane in self._lanes)

    @property
    def recorded(self) -> bool:
        """Whether every shape that has run so far, and is kept, runs as a CUDA graph."""
        return all(recorded for lane in self._lanes for recorded in lane.programs.values())

    @property
    def memory(self) -> MemoryUse:
        """Bytes allocated, by purpose."""
        use = memory_use(self.options.streams, self._memory, self.executor.plan.bytes, self._levels.nbytes)
        made = self._pinned_images.nbytes
        return replace(use, pinned=use.pinned | {"images of pinned_image()": made}) if made else use

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """An uninitialised image (height, width, 3) uint8 in pinned memory; see `PinnedImages.make`."""
        self._pool.check_usable()
        return self._pinned_images.make(height, width)

    @property
    def max_batch(self) -> int:
        """Images that run at once."""
        return self.options.max_batch or 1

    def check_image(self, image: LoadedImage) -> None:
        """Raise InputError for an image on the host that does not fit into the upload buffer."""
        if not isinstance(image, DeviceImage) and image.nbytes > self._largest_image:
            height, width = image.shape[:2]
            raise InputError(
                f"got an image of {width}x{height} pixels, but the detector was loaded for {self.options.max_pixels} "
                "pixels",
                "load it with a larger max_pixels, or scale the image down",
            )

    def run(self, batches: Iterable[Batch], mark: Mark | None = None) -> list[list[Detections]]:
        """Run batches; they overlap on as many streams as are idle.

        Args:
            batches: images each whose placements share one network size; larger ones than `max_batch`, or than the
                upload buffer, are cut.
            mark: called when each of `stages` is enqueued. Marked batches run one after the other and without their
                CUDA graphs; with one stream, events recorded on it (`streams`) measure the stages.

        Returns:
            For every batch, the detections of each of its images.

        Raises:
            BackendError: TensorRT refused, or the backend is closed.
            CudaError: the driver refused; what was in flight is given up.
        """
        batches = list(batches)
        if len(batches) == 1 and len(batches[0]) == 1:
            # Nothing overlaps with a single image: the context is made current once, from start to end.
            lane = self._pool.take()
            try:
                with self.device.current:
                    lane.start(batches[0], mark)
                    one = lane.finish()
            except BaseException as error:
                self._pool.give_back(lane, error)
                raise
            self._pool.give_back(lane)
            return [one]
        self._pool.check_usable()
        found: list[list[Detections]] = []
        in_flight: InFlight = deque()
        try:
            for batch in batches:
                results: list[Detections] = []
                found.append(results)
                for part in self._cut(batch):
                    lane = self._next_lane(in_flight)
                    self._start(lane, part, mark)
                    in_flight.append((lane, results))
                    if mark is not None:
                        self._finish(in_flight)
            while in_flight:
                self._finish(in_flight)
        finally:
            while in_flight:  # after an error: wait for the others and drop their results
                try:
                    self._finish(in_flight)
                except CenterNetError as error:
                    _log.debug("a batch in flight failed as well: %s", error)
        return found

    def _cut(self, batch: Batch) -> list[list[InferenceRequest]]:
        """Parts that fit: at most `max_batch` images, no more than a profile takes, their bytes in the upload buffer."""
        if len(batch) < 2:
            return [list(batch)] if batch else []
        side = batch[0].placement
        most = min(self.max_batch, largest_batch(self._profiles, side.height, side.width))
        parts: list[list[InferenceRequest]] = []
        room = 0
        for request in batch:
            image = request.image
            size = 0 if isinstance(image, DeviceImage) else aligned(image.nbytes)
            if not parts or len(parts[-1]) == most or size > room:
                parts.append([])
                room = self._room
            parts[-1].append(request)
            room -= size
        return parts

    def _next_lane(self, in_flight: InFlight) -> Lane:
        """An idle lane; finishes the batches in flight first where there is none, since waiting while holding could deadlock."""
        while in_flight:
            lane = self._pool.take_idle()
            if lane is not None:
                return lane
            self._finish(in_flight)
        return self._pool.take()

    def _start(self, lane: Lane, part: list[InferenceRequest], mark: Mark | None) -> None:
        try:
            lane.start(part, mark)
        except BaseException as error:
            self._pool.give_back(lane, error)
            raise

    def _finish(self, in_flight: InFlight) -> None:
        lane, results = in_flight.popleft()
        try:
            results.extend(lane.finish())
        except BaseException as error:
            self._pool.give_back(lane, error)
            raise
        self._pool.give_back(lane)

    def heads(self, tensor: npt.NDArray[np.floating]) -> Heads:
        """Head tensors (N, C, H, W) on the host of an input tensor (N, 3, height, width); not a fast path.

        Raises:
            BackendError: TensorRT refused, or the backend is closed.
            CudaError: the driver refused.
        """
        lane = self._pool.take()
        try:
            most = min(self.max_batch, largest_batch(self._profiles, *tensor.shape[2:]) or self.max_batch)
            parts = [lane.heads(tensor[row : row + most]) for row in range(0, len(tensor), most)]
        except BaseException as error:
            self._pool.give_back(lane, error)
            raise
        self._pool.give_back(lane)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def warm(self, batches: Iterable[Batch]) -> None:
        """Run each batch once on every stream, so that its shape is recorded as a graph; keep the compiled kernels."""
        with self._warming:
            lanes: list[Lane] = []
            failed: BaseException | None = None
            try:
                while len(lanes) < len(self._lanes):
                    lanes.append(self._pool.take())
                for batch in batches:
                    for lane in lanes:
                        lane.start(batch)
                        lane.finish()
            except BaseException as error:
                failed = error
                raise
            finally:
                for lane in lanes:
                    self._pool.give_back(lane, failed)
            self.executor.save_kernels()

    def close(self) -> None:
        """Wait for the batches in flight, then free everything. May be called twice; in a fork it does nothing."""
        if self.device.foreign_process:
            return
        if self._pool.close():
            atexit.unregister(self.close)
            self._tear_down()

    def _tear_down(self) -> None:
        """Free lanes, the engine, the kernels, then the context, even if one fails."""
        parts, self._parts = self._parts, []
        close_all([*reversed(parts), self.device])
