"""DeviceArray and DeviceImage: arrays of other libraries by DLPack or `__cuda_array_interface__`; their streams."""

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any

from centernet_trt.errors import InputError

_CUDA_KINDS = (2, 13)  # kDLCUDA, kDLCUDAManaged
_LEGACY_STREAM = 1  # the number of the default stream in both protocols
_KINDS = {"u": "uint", "i": "int", "f": "float", "b": "bool"}
_DLPACK_CODES = {0: "int", 1: "uint", 2: "float"}


@dataclass(frozen=True)
class DeviceArray:
    """An array in GPU memory.

    Attributes:
        address: device address of the first element.
        shape: in elements.
        strides: in bytes.
        dtype: NumPy's name, such as `uint8`.
        stream: number of the stream that produces the content; None if the content is ready.
        owner: object that keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    stream: int | None
    owner: Any

    @property
    def itemsize(self) -> int:
        """Size of an element in bytes."""
        return _item_bytes(self.dtype)

    @property
    def contiguous(self) -> bool:
        """Whether the array is C-contiguous."""
        return self.strides == _packed(self.shape, self.itemsize)

    @property
    def nbytes(self) -> int:
        """Size of all elements in bytes."""
        return prod(self.shape) * self.itemsize


def is_device_array(source: object) -> bool:
    """Return whether an object is an array in GPU memory."""
    dlpack_device = getattr(source, "__dlpack_device__", None)
    if dlpack_device is not None:
        return int(dlpack_device()[0]) in _CUDA_KINDS
    return hasattr(source, "__cuda_array_interface__")


def device_array(source: Any) -> DeviceArray:
    """Return the DeviceArray of an object, by DLPack if possible, because it synchronises with the producer.

    Raises:
        InputError: not an array in GPU memory, or its export fails.
    """
    if isinstance(source, DeviceArray):
        return source
    if not is_device_array(source):
        raise InputError(
            f"expected an array in GPU memory, got {type(source).__name__}",
            "pass a CuPy array, a CUDA tensor of PyTorch, or anything with __cuda_array_interface__ or DLPack",
        )
    if hasattr(source, "__dlpack__"):
        try:
            return _from_capsule(source.__dlpack__(stream=_LEGACY_STREAM), source)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the array cannot be exported by DLPack: {error}") from error
    return _from_interface(source.__cuda_array_interface__, source)


def _from_interface(interface: dict[str, Any], owner: Any) -> DeviceArray:
    typestr = str(interface["typestr"])
    if typestr[:1] == ">" or typestr[1:2] not in _KINDS:
        raise InputError(f"expected an array of little-endian numbers, got element type {typestr}")
    bits = 8 * int(typestr[2:])
    kind = _KINDS[typestr[1]]
    dtype = kind if kind == "bool" else f"{kind}{bits}"
    shape = tuple(int(side) for side in interface["shape"])
    strides = interface.get("strides")
    if interface.get("mask") is not None:
        raise InputError("expected an array without a mask, got a masked array")
    stream = interface.get("stream")
    if stream == 0:
        raise InputError("the array names stream 0, which __cuda_array_interface__ forbids")
    return DeviceArray(
        address=int(interface["data"][0] or 0),
        shape=shape,
        strides=_packed(shape, bits // 8) if strides is None else tuple(int(step) for step in strides),
        dtype=dtype,
        stream=None if stream is None else int(stream),
        owner=owner,
    )


class _DLTensor(ctypes.Structure):
    """DLTensor, the first member of an unversioned DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_capsule(capsule: Any, source: Any) -> DeviceArray:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    if tensor.code not in _DLPACK_CODES or tensor.lanes != 1:
        raise InputError(
            f"expected an array of numbers, got DLPack type {tensor.code} with {tensor.lanes} lanes"
        )
    dtype = f"{_DLPACK_CODES[tensor.code]}{tensor.bits}"
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    item = tensor.bits // 8
    strides = _packed(shape, item)
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * item for axis in range(tensor.ndim))
    # The capsule is not consumed: freeing it with this object releases the tensor.
    return DeviceArray(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        strides=strides,
        dtype=dtype,
        stream=_LEGACY_STREAM,
        owner=(capsule, source),
    )


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for side in reversed(shape):
        strides.append(step)
        step *= side
    return tuple(reversed(strides))


def _item_bytes(dtype: str) -> int:
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) // 8 if digits else 1


@dataclass(frozen=True)
class DeviceImage:
    """A uint8 image in GPU memory.

    Attributes:
        array: (height, width) or (height, width, channels).
        height: in pixels.
        width: in pixels.
        channels: 1 (grey), 3 (BGR) or 4 (BGRA).
        pitch: bytes from one row to the next.
    """

    array: DeviceArray
    height: int
    width: int
    channels: int
    pitch: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


def device_image(source: Any) -> DeviceImage:
    """Return the DeviceImage of an array in GPU memory, without a copy.

    Raises:
        InputError: not a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with packed pixels.
    """
    array = device_array(source)
    shape = array.shape if len(array.shape) == 3 else (*array.shape, 1)
    strides = array.strides if len(array.strides) == 3 else (*array.strides, 1)
    if array.dtype != "uint8" or len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        raise InputError(
            "expected a GPU image of uint8 and shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got "
            f"{array.dtype} and shape {array.shape}"
        )
    height, width, channels = shape
    if (channels > 1 and strides[2] != 1) or strides[1] != channels or strides[0] < width * channels:
        raise InputError(
            f"expected a GPU image with packed pixels, got strides {array.strides} for shape {array.shape}",
            "make it contiguous; only rows may be padded",
        )
    return DeviceImage(array, height, width, channels, strides[0])


def stream_number(stream: Any) -> int:
    """Return the number (CUstream as an integer) of a stream of any library.

    Args:
        stream: a number, an object with `__cuda_stream__`, or a stream of PyTorch or CuPy.

    Raises:
        InputError: not a stream.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):  # PyTorch's, CuPy's
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise InputError(
        f"expected a CUDA stream, got {type(stream).__name__}",
        "pass its number, or a stream of PyTorch or CuPy",
    )
