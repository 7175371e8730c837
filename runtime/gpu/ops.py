"""GpuOps: the two kernels on the caller's own arrays."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.kernels.launch import DecodeLayout, plan_decode, plan_preprocess
from centernet_trt.runtime.backend import InferenceRequest, LoadedImage
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.interop import (
    DeviceArray,
    DeviceImage,
    device_array,
    device_image,
    is_device_array,
    stream_number,
)
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.gpu.buffers import (
    StreamBuffers,
    StreamMemory,
    aligned,
    decode_bytes,
    descriptor_bytes,
)
from centernet_trt.runtime.gpu.kernels import (
    Kernels,
    decode_params,
    extra_columns,
    preprocess_params,
    rows_to_detections,
)
from centernet_trt.runtime.gpu.pinned import PinnedImages
from centernet_trt.runtime.host.decode import check_heads
from centernet_trt.runtime.host.preprocess import level_table
from centernet_trt.runtime.images import ImageSource, as_bgr
from centernet_trt.runtime.spec import ModelSpec

_LEVEL_BYTES = 4 * 3 * 256


class GpuOps:
    """The two kernels for one spec on one GPU, with the buffers that they need. A context manager; calls take turns."""

    def __init__(
        self,
        spec: ModelSpec,
        device: int | str = 0,
        *,
        max_batch: int = 8,
        max_pixels: int = 4096 * 3072,
        binding: BindingName = "auto",
    ) -> None:
        """Compile and load the kernels, and allocate everything.

        Args:
            spec: what the network's input and heads mean.
            device: the GPU, by number or UUID; the arrays must lie there.
            max_batch: most images in a call.
            max_pixels: of all images of a call that come from the host.
            binding: Python package for the driver.

        Raises:
            CudaError: no driver, no such GPU, no compiler, or out of memory.
        """
        self._spec, self._max_batch = spec, max_batch
        self._turn = threading.Lock()
        self._device = Device.open(device, binding)
        try:
            self._kernels = Kernels(self._device)
            self._levels = self._device.allocate(_LEVEL_BYTES)
            self._buffers = StreamBuffers(
                self._device,
                self._plan(max_pixels),
                spec,
                self._levels.address,
                0,
                True,
                PinnedImages(self._device),
            )
            self._buffers.write(self._levels.address, level_table(spec.input))
        except BaseException:
            self._device.close()
            raise

    def _plan(self, max_pixels: int) -> StreamMemory:
        batch = self._max_batch
        columns = extra_columns(self._spec.heads)
        counters, keys, output = decode_bytes(batch, columns, self._device.info.multiprocessors)
        staging = descriptor_bytes(batch) + 3 * max_pixels + batch * aligned(1)
        return StreamMemory(staging, {}, 0, counters, keys, output)

    def preprocess(self, images: Sequence[ImageSource], out: Any, stream: Any = None) -> list[Placement]:
        """Fill the network's input from images; asynchronous where a stream is given.

        Args:
            images: N images, on the host (see `images.as_bgr`) or uint8 arrays in GPU memory, of any sizes.
            out: CUDA array (N, 3, height, width), float32 or float16, C-contiguous.
            stream: later work on it sees the filled array, and what is enqueued there is waited for. None waits here.

        Returns:
            Where each image lies in the input; `decode` wants it.

        Raises:
            InputError: an image whose network input has another size than `out`, or an array of another kind.
        """
        target = device_array(out)
        batch, height, width = self._check_input(target, len(images))
        requests = []
        for source in images:
            picture: LoadedImage = device_image(source) if is_device_array(source) else as_bgr(source)
            placement = place(self._spec.input, picture.shape[1], picture.shape[0])
            if (placement.height, placement.width) != (height, width):
                raise InputError(
                    f"an image of {picture.shape[1]}x{picture.shape[0]} pixels needs a network input of "
                    f"{placement.width}x{placement.height}, the array is for {width}x{height}"
                )
            requests.append(InferenceRequest(picture, placement))
        if not self._fits(requests):
            raise InputError(
                "the images do not fit into the upload buffer", "make GpuOps with a larger max_pixels"
            )
        plan = plan_preprocess(batch, height, width, half=target.dtype == "float16")
        staging = self._buffers.device_staging.address
        params = preprocess_params(
            self._spec.input, height, width, staging, self._levels.address, target.address
        )
        with self._turn, self._device.current:
            self._begin(stream, [target])
            self._buffers.upload(batch, requests)
            self._kernels.preprocess(self._buffers.stream, plan, params)
            self._end(stream)
        return [request.placement for request in requests]

    def decode(
        self,
        heads: Mapping[str, Any],
        placements: Sequence[Placement],
        threshold: float | None = None,
        top_k: int | None = None,
        stream: Any = None,
    ) -> list[Detections]:
        """Detections of a batch, on the host.

        Args:
            heads: CUDA arrays (N, C, H, W) by tensor name, float32 or float16, C-contiguous.
            placements: where each of the N images lies in the network input, from `preprocess`.
            threshold: lowest score wanted, 0..1; None for the spec's.
            top_k: at most so many an image; None for the spec's.
            stream: that the heads are computed on; None: as the arrays say, or they are ready.

        Raises:
            ModelError: a head is missing, or its shape does not fit the spec.
            InputError: an array of another kind.
        """
        spec, arrays = (
            self._spec,
            {name: device_array(heads[name]) for name in self._spec.heads.tensors if name in heads},
        )
        check_heads({name: array.shape for name, array in arrays.items()}, spec)
        batch, classes, height, width = arrays[spec.heads.heatmap.tensor].shape
        self._check_heads(arrays, batch, len(placements))
        rows = top_k or spec.top_k
        typed = {name: (array.address, array.dtype == "float16") for name, array in arrays.items()}
        layout = DecodeLayout(batch, rows, extra_columns(spec.heads))
        buffers, sms = self._buffers, self._device.info.multiprocessors
        half = typed[spec.heads.heatmap.tensor][1]
        plan = plan_decode(batch, classes, height, width, rows, half, sms)
        params = decode_params(
            spec,
            plan,
            (classes, height, width),
            typed,
            buffers.device_staging.address,
            buffers.counters.address,
            buffers.keys.address,
            buffers.output.address,
            layout,
        )
        # The descriptors alone: decode looks at no pixel.
        nothing = np.zeros((0, 0, 3), np.uint8)
        requests = [InferenceRequest(nothing, placement, threshold, top_k) for placement in placements]
        with self._turn, self._device.current:
            self._begin(stream, list(arrays.values()))
            buffers.upload(batch, requests)
            self._kernels.decode(buffers.stream, plan, params)
            buffers.stream.copy_to_host(buffers.pinned_output.address, buffers.output.address, layout.nbytes)
            buffers.stream.synchronize()
            return [rows_to_detections(buffers.rows(layout), row, spec) for row in range(batch)]

    def _check_input(self, target: DeviceArray, count: int) -> tuple[int, int, int]:
        shape = target.shape
        good = (
            target.contiguous and target.dtype in ("float16", "float32") and len(shape) == 4 and shape[1] == 3
        )
        if not good or shape[0] != count or not 1 <= count <= self._max_batch:
            raise InputError(
                f"an array of {target.dtype} and shape {shape} was given for {count} images, a C-contiguous float16 or "
                f"float32 one of shape ({count}, 3, height, width) was expected, for at most {self._max_batch} images"
            )
        return shape[0], shape[2], shape[3]

    def _fits(self, requests: Sequence[InferenceRequest]) -> bool:
        """Whether the images that come from the host can be uploaded together."""
        images = [request.image for request in requests if not isinstance(request.image, DeviceImage)]
        taken = sum(aligned(image.nbytes) for image in images)
        return descriptor_bytes(len(requests)) + taken <= self._buffers.pinned_staging.nbytes

    def _check_heads(self, arrays: Mapping[str, DeviceArray], batch: int, placements: int) -> None:
        for name, array in arrays.items():
            if array.dtype not in ("float16", "float32") or not array.contiguous or array.shape[0] != batch:
                raise InputError(
                    f"the head {name!r} is {array.dtype} of shape {array.shape}, C-contiguous float16 or float32 arrays of "
                    f"{batch} images were expected"
                )
        if placements != batch or not 1 <= batch <= self._max_batch:
            raise InputError(
                f"heads of {batch} images and {placements} placements were given, as many of both were expected, at most "
                f"{self._max_batch}"
            )

    def _begin(self, stream: Any, arrays: Sequence[DeviceArray]) -> None:
        """Wait for the last call's upload, which still reads the pinned buffer, and order our stream after the others."""
        own = self._buffers.stream
        own.synchronize()
        others = {array.stream for array in arrays if array.stream is not None}
        if stream is not None:
            others = {stream_number(stream)}
        for number in others:
            own.wait(number)

    def _end(self, stream: Any) -> None:
        if stream is None:
            self._buffers.stream.synchronize()
        else:
            self._buffers.stream.make_wait(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything. May be called twice."""
        self._device.close()
