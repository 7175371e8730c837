"""GpuOps: the kernels `preprocess` and `decode` on the caller's own GPU arrays."""

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
    """CenterNet pre-processing and decoding on the caller's own GPU arrays, around any network.

    Holds the kernels for one spec on one GPU and their buffers. Thread-safe: calls run one at a time. A context
    manager; close it, or its memory stays allocated until the process ends.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: int | str = 0,
        *,
        max_batch: int = 8,
        max_pixels: int = 4096 * 3072,
        binding: BindingName = "auto",
    ) -> None:
        """Compile and load the kernels, and allocate the buffers.

        Args:
            spec: meaning of the network's input and heads.
            device: index among the visible GPUs, or UUID; all arrays of calls must be on this GPU.
            max_batch: most images in a call.
            max_pixels: sum of the pixels of all images of a call that are in host memory.
            binding: Python package for the driver; `auto` prefers PyCUDA if it is installed.

        Raises:
            CudaError: no driver, no such GPU, no compiler, or out of memory.
        """
        self._spec, self._max_batch = spec, max_batch
        self._lock = threading.Lock()
        self._device = Device.open(device, binding)
        try:
            self._kernels = Kernels(self._device)
            self._levels = self._device.allocate(_LEVEL_BYTES)
            self._buffers = StreamBuffers(
                self._device,
                self._plan(max_pixels),
                spec,
                self._levels.address,
                classes=0,
                spin=True,
                pinned_images=PinnedImages(self._device),
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
        """Resize, normalise and write images into the network input; asynchronous if a stream is given.

        Args:
            images: N images of any sizes, 1 <= N <= `max_batch`, that need the same network input size: in host
                memory (see `images.as_bgr`), or uint8 arrays in GPU memory of shape (H, W), (H, W, 1), (H, W, 3) or
                (H, W, 4), blue first, whose rows may be padded.
            out: network input to fill, a C-contiguous float32 or float16 CUDA array (DLPack or
                `__cuda_array_interface__`) of shape (N, 3, height, width), in pixels.
            stream: stream of any library, or its number. The kernel runs after the work enqueued on it, and later
                work on it after the kernel. None: the kernel runs after the arrays' own streams, and the call
                returns when `out` is filled.

        Returns:
            Placement of each image in the network input, N of them, to pass to `decode`.

        Raises:
            InputError: an image that needs another network input size than `out`, images that exceed `max_pixels`,
                an array of another shape or dtype, or not a stream.
            CudaError: the driver failed, or the device is closed.
        """
        target = device_array(out)
        batch, height, width = self._check_input(target, len(images))
        requests = []
        for source in images:
            image: LoadedImage = device_image(source) if is_device_array(source) else as_bgr(source)
            placement = place(self._spec.input, image.shape[1], image.shape[0])
            if (placement.height, placement.width) != (height, width):
                raise InputError(
                    f"an image of {image.shape[1]}x{image.shape[0]} pixels needs a network input of "
                    f"{placement.width}x{placement.height}, got an array for {width}x{height}"
                )
            requests.append(InferenceRequest(image, placement))
        if not self._fits(requests):
            raise InputError(
                "the images in host memory exceed max_pixels", "create GpuOps with a larger max_pixels"
            )
        plan = plan_preprocess(batch, height, width, half=target.dtype == "float16")
        staging = self._buffers.device_staging.address
        params = preprocess_params(
            self._spec.input, height, width, staging, self._levels.address, target.address
        )
        with self._lock, self._device.current:
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
        """Decode a batch of head tensors; synchronous.

        Args:
            heads: C-contiguous float32 or float16 CUDA arrays (DLPack or `__cuda_array_interface__`) of shape
                (N, C, H, W), in cells, by tensor name; 1 <= N <= `max_batch`.
            placements: of the N images in the network input, from `preprocess`.
            threshold: minimum score, 0..1; None for the spec's.
            top_k: maximum number of detections of an image, 1..1024; None for the spec's.
            stream: stream of any library, or its number, that the heads are computed on. None: the arrays' own
                streams, if they name any.

        Returns:
            Detections of each image, N of them, on the host, with boxes in pixels of the source image.

        Raises:
            ModelError: a head is missing, or its shape contradicts the spec.
            InputError: an array of another dtype or layout, a batch that is too large, another number of
                placements, a `top_k` out of range, or not a stream.
            CudaError: the driver failed, or the device is closed.
        """
        spec = self._spec
        arrays = {name: device_array(heads[name]) for name in spec.heads.tensors if name in heads}
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
        # Descriptors alone: decode reads no pixels.
        no_pixels = np.zeros((0, 0, 3), np.uint8)
        requests = [InferenceRequest(no_pixels, placement, threshold, top_k) for placement in placements]
        with self._lock, self._device.current:
            self._begin(stream, list(arrays.values()))
            buffers.upload(batch, requests)
            self._kernels.decode(buffers.stream, plan, params)
            buffers.stream.copy_to_host(buffers.pinned_output.address, buffers.output.address, layout.nbytes)
            buffers.stream.synchronize()
            return [rows_to_detections(buffers.rows(layout), row, spec) for row in range(batch)]

    def _check_input(self, target: DeviceArray, count: int) -> tuple[int, int, int]:
        shape = target.shape
        if not 1 <= count <= self._max_batch:
            raise InputError(
                f"expected 1 to {self._max_batch} images, got {count}",
                "create GpuOps with a larger max_batch",
            )
        good = target.contiguous and target.dtype in ("float16", "float32") and len(shape) == 4
        if not good or shape[:2] != (count, 3):
            raise InputError(
                f"expected a C-contiguous float16 or float32 array of shape ({count}, 3, height, width), got "
                f"{target.dtype} of shape {shape} and strides {target.strides}"
            )
        return shape[0], shape[2], shape[3]

    def _fits(self, requests: Sequence[InferenceRequest]) -> bool:
        """Return whether the images in host memory fit into the staging buffer."""
        images = [request.image for request in requests if not isinstance(request.image, DeviceImage)]
        size = sum(aligned(image.nbytes) for image in images)
        return descriptor_bytes(len(requests)) + size <= self._buffers.pinned_staging.nbytes

    def _check_heads(self, arrays: Mapping[str, DeviceArray], batch: int, placements: int) -> None:
        for name, array in arrays.items():
            if array.dtype not in ("float16", "float32") or not array.contiguous or array.shape[0] != batch:
                raise InputError(
                    f"expected head {name!r} as a C-contiguous float16 or float32 array of {batch} images, got "
                    f"{array.dtype} of shape {array.shape} and strides {array.strides}"
                )
        if placements != batch:
            raise InputError(f"expected a placement for each of {batch} images, got {placements}")
        if not 1 <= batch <= self._max_batch:
            raise InputError(
                f"expected heads of 1 to {self._max_batch} images, got {batch}",
                "create GpuOps with a larger max_batch",
            )

    def _begin(self, stream: Any, arrays: Sequence[DeviceArray]) -> None:
        """Wait for the last call's upload, which reads the pinned buffer; then order the own stream after the others."""
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
        """Free the kernels and all buffers. Idempotent; a no-op in a forked process."""
        self._device.close()
