"""Arrays in GPU memory for measurements: filled from NumPy, read back, and shown to other libraries."""

from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.driver import Device, close_all
from centernet_trt.runtime.driver_objects import Stream

Array = npt.NDArray[Any]


class DeviceTensor:
    """An array of fixed shape and type in GPU memory, with a pinned twin for the way there and back. Close it.

    It has `__cuda_array_interface__`; its content is ready once `write` has returned.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: npt.DTypeLike, stream: Stream) -> None:
        """Allocate it, of any content; `stream` is the one of its copies.

        Raises:
            DriverError: out of memory.
        """
        self.shape, self.dtype, self._stream = shape, np.dtype(dtype), stream
        nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self._memory = device.allocate(nbytes)
        try:
            self._pinned = device.allocate_pinned(nbytes)
        except BaseException:
            self._memory.close()
            raise

    @classmethod
    def of(cls, device: Device, array: Array, stream: Stream) -> "DeviceTensor":
        """A copy of a host array."""
        made = cls(device, array.shape, array.dtype, stream)
        made.write(array)
        return made

    @property
    def address(self) -> int:
        """Of its first element."""
        return self._memory.address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._memory.nbytes

    @property
    def host(self) -> Array:
        """The pinned twin; gone after `close`."""
        return self._pinned.array.view(self.dtype).reshape(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def write(self, array: Array) -> None:
        """Fill it, and wait.

        Raises:
            InputError: an array of another shape or type.
        """
        if array.shape != self.shape or array.dtype != self.dtype:
            raise InputError(
                f"an array of {array.dtype} and shape {array.shape} was given, {self.dtype} of shape {self.shape} was "
                "expected"
            )
        self.host[...] = array
        self.upload()
        self._stream.synchronize()

    def read(self) -> Array:
        """Its content on the host, once the work on the stream is done."""
        self.download()
        self._stream.synchronize()
        return self.host.copy()

    def upload(self) -> None:
        """Enqueue the copy of the pinned twin to the device."""
        self._stream.copy_to_device(self.address, self._pinned.address, self.nbytes)

    def download(self) -> None:
        """Enqueue the copy of the device's content to the pinned twin."""
        self._stream.copy_to_host(self._pinned.address, self.address, self.nbytes)

    def close(self) -> None:
        """Free both. May be called twice."""
        close_all([self._memory, self._pinned])
