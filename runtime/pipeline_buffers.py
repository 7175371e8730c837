"""The stream of a pipeline with all memory that its work uses, allocated once."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from centernet_trt.kernels.outputs import DecodeLayout, DecodeRows
from centernet_trt.runtime.backend import Request
from centernet_trt.runtime.device_arrays import DeviceImage
from centernet_trt.runtime.driver import Device, close_all
from centernet_trt.runtime.driver_objects import Resource
from centernet_trt.runtime.gpu_memory import StreamMemory, aligned
from centernet_trt.runtime.image_table import ImageTable
from centernet_trt.runtime.locked_images import LockedImages
from centernet_trt.runtime.spec import ModelSpec

R = TypeVar("R", bound=Resource)


class StreamBuffers:
    """A stream and its buffers.

    `levels` is the address of the grey-level table, `classes` the heatmap's channels, `locked` knows images in page-locked
    memory; all are those of the pipeline.
    """

    def __init__(
        self,
        device: Device,
        memory: StreamMemory,
        spec: ModelSpec,
        levels: int,
        classes: int,
        spin: bool,
        locked: LockedImages,
    ) -> None:
        """Allocate everything.

        Raises:
            DriverError: out of memory; what had been allocated is freed again.
        """
        self._device, self._locked = device, locked
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
        self._images = ImageTable(self.pinned_staging.address, spec)
        self.addresses = {name: buffer.address for name, buffer in self.tensors.items()}

    def _keep(self, resource: R) -> R:
        self._made.append(resource)
        return resource

    def reset(self) -> None:
        """Wait for the stream, and make the decode kernel's counters zero, as every launch leaves them."""
        self.stream.synchronize()
        self.stream.fill(self.counters.address, 0, self.counters.nbytes)
        self.stream.synchronize()

    def upload(self, batch: int, requests: Sequence[Request]) -> None:
        """Enqueue the copies that bring descriptors and images to the device; they must fit, and the context be current.

        One copy brings the descriptors and all images in pageable memory; each image in page-locked memory has a copy of
        its own, from where it lies. Images in GPU memory stay where they are; the stream waits for those who make them.
        Rows of the batch past the requests have no image and no detections.
        """
        images, device = self._images, self.device_staging.address
        table, offset = images.of_batch(batch)
        locked: list[tuple[int, int, int]] = []  # row, address, bytes
        for row, request in enumerate(requests):
            image = request.image
            if isinstance(image, DeviceImage):
                if image.array.stream is not None:
                    self.stream.wait_for(image.array.stream)
                images.put(table, row, request, image.array.address, image.pitch, image.channels)
            elif (address := self._locked.address_of(image)) is not None:
                locked.append((row, address, image.nbytes))
            else:
                target = self._staging[offset : offset + image.nbytes]
                np.copyto(target.reshape(image.shape), image)
                images.put(table, row, request, device + offset)
                offset += aligned(image.nbytes)
        for row in range(len(requests), batch):
            images.put_absent(table, row)
        copies = [(device, self.pinned_staging.address, offset)]
        for row, address, nbytes in locked:
            images.put(table, row, requests[row], device + offset)
            copies.append((device + offset, address, nbytes))
            offset += aligned(nbytes)
        # Through the binding, with the context current: making sure of that again costs as much as the call.
        copy, stream = self._device.binding.copy_to_device, self.stream.handle
        for target_address, source, nbytes in copies:
            copy(target_address, source, nbytes, stream)

    def write(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy a host array to the device, piece by piece through the upload buffer, and wait."""
        pinned, content = self.pinned_staging, np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, content.nbytes, pinned.nbytes):
            piece = content[begin : begin + pinned.nbytes]
            pinned.array[: piece.nbytes] = piece
            self.stream.copy_to_device(address + begin, pinned.address, piece.nbytes)
            self.stream.synchronize()

    def read(self, address: int, array: npt.NDArray[Any]) -> None:
        """Fill a contiguous host array from the device, likewise."""
        pinned, content = self.pinned_staging, array.reshape(-1).view(np.uint8)
        for begin in range(0, content.nbytes, pinned.nbytes):
            size = min(pinned.nbytes, content.nbytes - begin)
            self.stream.copy_to_host(pinned.address, address + begin, size)
            self.stream.synchronize()
            content[begin : begin + size] = pinned.array[:size]

    def rows(self, layout: DecodeLayout) -> DecodeRows:
        """What decode wrote, once the stream is done; views that the next batch overwrites."""
        return layout.view(self.pinned_output.array[: layout.nbytes])

    def close(self) -> None:
        """Free everything, youngest first. May be called twice."""
        made, self._made = self._made, []
        self._staging = np.empty(0, np.uint8)
        close_all(list(reversed(made)))
