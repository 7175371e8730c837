"""Page-locked (pinned) images."""

import ctypes
import threading
import weakref
from typing import Any

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import RegisteredMemory
from centernet_trt.runtime.images import BgrImage

# Copying fewer bytes costs no more than asking the driver about their memory does.
_WORTH_ASKING = 1 << 16


class PinnedImages:
    """The page-locked images of one device. Safe to use from many threads."""

    def __init__(self, device: Device) -> None:
        """Make none yet."""
        self._device = device
        self._lock = threading.Lock()
        # By the identity of the array that all views of an image end in, which is alive as long as one of them is.
        self._made: dict[int, tuple[weakref.ref[np.ndarray], RegisteredMemory]] = {}

    def make(self, height: int, width: int) -> BgrImage:
        """A new (height, width, 3) uint8 image of any content. Its memory is given back some time after the last view is gone.

        Raises:
            InputError: no such size.
            CudaError: the driver locks no more memory.
        """
        if height < 1 or width < 1:
            raise InputError(f"an image of {width}x{height} pixels was asked for, at least 1x1 was expected")
        self._free_unused()
        memory = RegisteredMemory(self._device, 3 * height * width)
        root = memory.view()
        with self._lock:
            self._made[id(root)] = (weakref.ref(root), memory)
        return root.reshape(height, width, 3)

    def _free_unused(self) -> None:
        """Give back what no array refers to any more: here, since the garbage collector may come in any thread's way."""
        with self._lock:
            unused = [key for key, (root, _) in self._made.items() if root() is None]
            memories = [self._made.pop(key)[1] for key in unused]
        for memory in memories:
            memory.close()

    def pinned_address(self, image: BgrImage) -> int | None:
        """Where a C-contiguous image lies if that is page-locked memory, else None; the device's context is current.

        Raises:
            DriverError: the driver failed before, and says so now.
        """
        made = self._made.get(id(image.base))
        if made is not None and made[0]() is image.base:
            return None if made[1].closed else _address(image)
        if image.nbytes < _WORTH_ASKING:
            return None
        address = _address(image)
        ends = (address, address + image.nbytes - 1)
        return address if all(map(self._device.graphs.is_pinned, ends)) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all images made here that are still locked."""
        with self._lock:
            return sum(memory.nbytes for _, memory in self._made.values() if not memory.closed)


def _address(image: BgrImage) -> int:
    """Where a C-contiguous array begins: `image.ctypes.data`, in a fifth of its time where the array can be written to."""
    if image.flags.writeable:
        buffer: Any = image
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return int(image.ctypes.data)
