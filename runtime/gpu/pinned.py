"""PinnedImages: images in pinned (page-locked) memory."""

import ctypes
import threading
import weakref
from typing import Any

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import RegisteredMemory
from centernet_trt.runtime.images import BgrImage

# Copying fewer bytes costs no more than querying the driver about their memory.
_MIN_QUERIED_BYTES = 1 << 16


class PinnedImages:
    """The pinned images of one device. Thread-safe."""

    def __init__(self, device: Device) -> None:
        """Start without images."""
        self._device = device
        self._lock = threading.Lock()
        # By id() of the array that is the base of all views of an image, which lives as long as any of them.
        self._memories: dict[int, tuple[weakref.ref[np.ndarray], RegisteredMemory]] = {}

    def make(self, height: int, width: int) -> BgrImage:
        """Return a new, uninitialised (height, width, 3) uint8 image. A later call frees its memory once no view is left.

        Raises:
            InputError: a size below 1.
            CudaError: the driver cannot pin more memory.
        """
        if height < 1 or width < 1:
            raise InputError(f"expected an image of at least 1x1 pixels, got {width}x{height}")
        self._free_unused()
        memory = RegisteredMemory(self._device, 3 * height * width)
        root = memory.view()
        with self._lock:
            self._memories[id(root)] = (weakref.ref(root), memory)
        return root.reshape(height, width, 3)

    def _free_unused(self) -> None:
        """Free images without views: here and not in a finalizer, since finalizers may run on any thread."""
        with self._lock:
            unused = [key for key, (root, _) in self._memories.items() if root() is None]
            memories = [self._memories.pop(key)[1] for key in unused]
        for memory in memories:
            memory.close()

    def pinned_address(self, image: BgrImage) -> int | None:
        """Return the address of a C-contiguous image in pinned memory, None if it is pageable. Needs the current context.

        Raises:
            DriverError: the driver reports an earlier failure.
        """
        found = self._memories.get(id(image.base))
        if found is not None and found[0]() is image.base:
            return None if found[1].closed else _address(image)
        if image.nbytes < _MIN_QUERIED_BYTES:
            return None
        address = _address(image)
        ends = (address, address + image.nbytes - 1)
        return address if all(map(self._device.graphs.is_pinned, ends)) else None

    @property
    def nbytes(self) -> int:
        """Size in bytes of all images made here that are still pinned."""
        with self._lock:
            return sum(memory.nbytes for _, memory in self._memories.values() if not memory.closed)


def _address(image: BgrImage) -> int:
    """Return `image.ctypes.data`, in a fifth of its time if the array is writeable."""
    if image.flags.writeable:
        buffer: Any = image
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return int(image.ctypes.data)
