"""StreamBuffers: the memory of one stream, its plan, uploads and image descriptors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from centernet_trt.kernels.launch import (
    DECODE_BLOCKS_PER_SM,
    MAX_TOP_K,
    DecodeLayout,
    DecodeRows,
    plan_decode,
)
from centernet_trt.kernels.structs import Image
from centernet_trt.runtime.backend import InferenceRequest, MemoryUse
from centernet_trt.runtime.cuda.device import Device, close_all
from centernet_trt.runtime.cuda.interop import DeviceImage
from centernet_trt.runtime.cuda.resources import Resource
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.gpu.kernels import absent_image, extra_columns, image_descriptor
from centernet_trt.runtime.gpu.pinned import PinnedImages
from centernet_trt.runtime.manifest import Manifest, TensorRecord
from centernet_trt.runtime.profiles import largest_shapes
from centernet_trt.runtime.spec import KeepRes, ModelSpec

ALIGNMENT = 256
_IMAGE_BYTES = len(bytes(Image()))
_KEY_BYTES, _COUNTER_BYTES = 8, 8
_ITEM_BYTES = {"float32": 4, "float16": 2}
_FULL_HD = 1920 * 1080


@dataclass(frozen=True)
class StreamMemory:
    """Sizes in bytes of the buffers of one stream, for the largest batch, input and top_k.

    Attributes:
        staging: image descriptors and images; a pinned and a device buffer.
        tensors: the network's input and heads, by name.
        workspace: TensorRT's activations.
        counters: of the decode kernel.
        keys: of the decode kernel.
        output: rows of the decode kernel; a device and a pinned buffer.
    """

    staging: int
    tensors: Mapping[str, int]
    workspace: int
    counters: int
    keys: int
    output: int


def plan_stream(
    manifest: Manifest, max_batch: int, max_pixels: int, workspace: int, multiprocessors: int
) -> StreamMemory:
    """Compute the buffer sizes of one stream.

    Args:
        manifest: of the bundle: tensors, profiles, spec.
        max_batch: most images in a batch.
        max_pixels: of the largest source image in host memory.
        workspace: bytes that TensorRT needs for activations.
        multiprocessors: of the device.
    """
    # Per profile, since the largest batch and the largest size may belong to different profiles.
    shapes, stride = largest_shapes(manifest.profiles, max_batch), manifest.spec.stride
    rows = max(batch for batch, _, _ in shapes)
    tensors = {manifest.input.name: max(tensor_bytes(manifest.input, *shape) for shape in shapes)}
    for head in manifest.heads:
        tensors[head.name] = max(tensor_bytes(head, n, h // stride, w // stride) for n, h, w in shapes)
    counters, keys, output = decode_bytes(rows, extra_columns(manifest.spec.heads), multiprocessors)
    return StreamMemory(
        staging=_staging(manifest, max_batch, rows, max_pixels),
        tensors=tensors,
        workspace=workspace,
        counters=counters,
        keys=keys,
        output=output,
    )


def decode_bytes(max_batch: int, columns: int, multiprocessors: int) -> tuple[int, int, int]:
    """Return the bytes of decode's counters, keys and output, enough for any heatmap, batch and top_k.

    Args:
        max_batch: most images in a batch.
        columns: channels of all extra heads.
        multiprocessors: of the device.
    """
    # The length of a block's list depends on the rows alone, the number of blocks on the device or the batch.
    list_keys = plan_decode(1, 1, 4, 4, MAX_TOP_K, half=True, multiprocessors=multiprocessors).list_keys
    blocks = max(multiprocessors * DECODE_BLOCKS_PER_SM, max_batch)
    output = DecodeLayout(max_batch, MAX_TOP_K, columns).nbytes
    return max_batch * _COUNTER_BYTES, blocks * list_keys * _KEY_BYTES, output


def tensor_bytes(record: TensorRecord, batch: int, height: int, width: int) -> int:
    """Return the size in bytes of a tensor (batch, channels, height, width)."""
    return batch * record.channels * height * width * _ITEM_BYTES[record.dtype]


def descriptor_bytes(batch: int) -> int:
    """Return the bytes of a batch's image descriptors, padded up to the first image."""
    return aligned(batch * _IMAGE_BYTES)


def aligned(size: int) -> int:
    """Round a size up to a multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _staging(manifest: Manifest, max_batch: int, rows: int, max_pixels: int) -> int:
    """Return the bytes for a batch of Full HD images, or for one image of `max_pixels`.

    With `keep_res` no image is larger than the network input. `rows` is the largest batch, padding rows included.
    """
    usual = max(max_pixels, max_batch * min(_FULL_HD, max_pixels))
    if isinstance(manifest.spec.input.resize, KeepRes):
        usual = min(usual, max(n * h * w for n, h, w in largest_shapes(manifest.profiles, max_batch)))
    return descriptor_bytes(rows) + 3 * usual + max_batch * ALIGNMENT


def memory_use(streams: int, plan: StreamMemory, weights: int, levels: int) -> MemoryUse:
    """Sum the buffers of all streams by purpose; sizes in bytes."""
    return MemoryUse(
        device={
            "weights": weights,
            "network activations": streams * plan.workspace,
            "network input and heads": streams * sum(plan.tensors.values()),
            "images": streams * plan.staging,
            "decode": streams * (plan.counters + plan.keys + plan.output) + levels,
        },
        pinned={"images": streams * plan.staging, "detections": streams * plan.output},
    )


_MAX_CACHED = 256  # descriptors; then the cache is emptied


class ImageDescriptors:
    """Writes the image descriptors of one batch into pinned memory.

    Recent descriptors are cached: filling in the fields of one takes as long as the rest of an upload in Python.
    """

    def __init__(self, address: int, spec: ModelSpec) -> None:
        """Write descriptors at this host address."""
        self._address, self._spec = address, spec
        self._tables: dict[int, tuple[Any, int]] = {}
        self._cache: dict[tuple[int, float | None, int | None, int, int], tuple[Placement, Image]] = {}
        self._absent = absent_image()

    def get_table(self, batch: int) -> tuple[Any, int]:
        """Return the descriptors of a batch as a ctypes array, and the offset in bytes of the first image after them."""
        found = self._tables.get(batch)
        if found is None:
            table = (Image * batch).from_address(self._address)
            found = self._tables[batch] = table, descriptor_bytes(batch)
        return found

    def put(
        self, table: Any, row: int, request: InferenceRequest, pixels: int, pitch: int = 0, channels: int = 3
    ) -> None:
        """Write the descriptor of an image: its request, device address and layout."""
        placement = request.placement
        key = (id(placement), request.threshold, request.top_k, pitch, channels)
        found = self._cache.get(key)
        if found is None or found[0] is not placement:
            arguments = (placement, self._spec, request.threshold, request.top_k)
            found = placement, image_descriptor(*arguments, pitch=pitch, channels=channels)
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[key] = found
        descriptor = found[1]
        descriptor.pixels = pixels
        table[row] = descriptor  # copied

    def put_absent(self, table: Any, row: int) -> None:
        """Write the descriptor of a padding row: no image, no detections."""
        table[row] = self._absent


R = TypeVar("R", bound=Resource)


class StreamBuffers:
    """A stream and its buffers.

    Attributes:
        stream: that all work of the buffers is enqueued on.
        done: event recorded at the end of a batch.
        levels: device address of the grey-level table, shared by all streams.
        classes: channels of the heatmap.
        tensors: the network's input and heads on the device, by name.
        addresses: their device addresses, by name.
    """

    def __init__(
        self,
        device: Device,
        memory: StreamMemory,
        spec: ModelSpec,
        levels: int,
        classes: int,
        spin: bool,
        pinned_images: PinnedImages,
    ) -> None:
        """Allocate all buffers.

        Args:
            device: to allocate on.
            memory: sizes of the buffers.
            spec: of the network.
            levels: device address of the grey-level table.
            classes: channels of the heatmap.
            spin: wait for the GPU without sleeping.
            pinned_images: recognises images in pinned memory.

        Raises:
            DriverError: out of memory; what had been allocated is freed.
        """
        self._device, self._pinned_images = device, pinned_images
        self.levels, self.classes = levels, classes
        self._made: list[Resource] = []
        try:
            self.stream = self._keep(device.stream())
            self.done = self._keep(device.event(spin=spin))
            self.pinned_staging = self._keep(device.allocate_pinned(memory.staging))
            self.device_staging = self._keep(device.allocate(memory.staging))
            self.tensors = {name: self._keep(device.allocate(size)) for name, size in memory.tensors.items()}
            self.workspace = self._keep(device.allocate(memory.workspace))
            self.counters = self._keep(device.allocate(memory.counters))
            self.keys = self._keep(device.allocate(memory.keys))
            self.output = self._keep(device.allocate(memory.output))
            self.pinned_output = self._keep(device.allocate_pinned(memory.output))
            self.reset()
        except BaseException:
            self.close()
            raise
        self._staging = self.pinned_staging.array
        self._images = ImageDescriptors(self.pinned_staging.address, spec)
        self.addresses = {name: buffer.address for name, buffer in self.tensors.items()}

    def _keep(self, resource: R) -> R:
        self._made.append(resource)
        return resource

    def reset(self) -> None:
        """Wait for the stream and zero the decode kernel's counters, as every completed launch leaves them."""
        self.stream.synchronize()
        self.stream.fill(self.counters.address, 0, self.counters.nbytes)
        self.stream.synchronize()

    def upload(self, batch: int, requests: Sequence[InferenceRequest]) -> None:
        """Enqueue the copies of descriptors and images to the device; they must fit. Needs the current context.

        The descriptors and all images in pageable memory are staged and copied at once; an image in pinned memory is
        copied by itself, without staging. Images in GPU memory are used in place, after the stream has waited for their
        producers. Rows of the batch past the requests are padding.
        """
        images, device = self._images, self.device_staging.address
        table, offset = images.get_table(batch)
        pinned: list[tuple[int, int, int]] = []  # row, address, bytes
        for row, request in enumerate(requests):
            image = request.image
            if isinstance(image, DeviceImage):
                if image.array.stream is not None:
                    self.stream.wait(image.array.stream)
                images.put(table, row, request, image.array.address, image.pitch, image.channels)
            elif (address := self._pinned_images.pinned_address(image)) is not None:
                pinned.append((row, address, image.nbytes))
            else:
                target = self._staging[offset : offset + image.nbytes]
                np.copyto(target.reshape(image.shape), image)
                images.put(table, row, request, device + offset)
                offset += aligned(image.nbytes)
        for row in range(len(requests), batch):
            images.put_absent(table, row)
        copies = [(device, self.pinned_staging.address, offset)]
        for row, address, nbytes in pinned:
            images.put(table, row, requests[row], device + offset)
            copies.append((device + offset, address, nbytes))
            offset += aligned(nbytes)
        # By the binding, not by Stream: making the context current again costs as much as the call.
        copy, stream = self._device.binding.copy_to_device, self.stream.handle
        for target_address, source, nbytes in copies:
            copy(target_address, source, nbytes, stream)

    def write(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a host array to the device by the staging buffer, synchronously."""
        pinned, content = self.pinned_staging, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, content.nbytes, pinned.nbytes):
            piece = content[begin : begin + pinned.nbytes]
            pinned.array[: piece.nbytes] = piece
            self.stream.copy_to_device(address + begin, pinned.address, piece.nbytes)
            self.stream.synchronize()

    def read(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy from the device to a C-contiguous host array by the staging buffer, synchronously."""
        pinned, content = self.pinned_staging, array.reshape(-1).view(np.uint8)
        for begin in range(0, content.nbytes, pinned.nbytes):
            size = min(pinned.nbytes, content.nbytes - begin)
            self.stream.copy_to_host(pinned.address, address + begin, size)
            self.stream.synchronize()
            content[begin : begin + size] = pinned.array[:size]

    def rows(self, layout: DecodeLayout) -> DecodeRows:
        """Return decode's output rows, after the stream is done; views that the next batch overwrites."""
        return layout.view(self.pinned_output.array[: layout.nbytes])

    def close(self) -> None:
        """Free all buffers, newest first. Idempotent."""
        made, self._made = self._made, []
        self._staging = np.empty(0, np.uint8)
        close_all(list(reversed(made)))
