"""PyTorch's descriptions of tensors: what its rebuild functions mean, and how to get the numbers out of a storage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.checkpoint_pickle import Global, PersistentId
from centernet_trt.errors import ModelError

__all__ = ["Storage", "StoredTensor", "item_size", "rebuild", "storage_of", "tensor_of"]

Array = NDArray[Any]

# Storage class or dtype -> numpy dtype; bfloat16 is read as its 16 bits and widened.
_DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bf16", "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?",
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bf16", "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """A run of numbers outside the pickle."""

    key: str
    dtype: str
    count: int
    start: int = 0  # a legacy view begins here within its storage


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file describes it; `read` brings the numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


def rebuild(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Make what PyTorch's rebuild functions describe; NotImplemented for all other names."""
    name = str(function)
    if name in ("collections.OrderedDict", "builtins.dict", "collections.defaultdict"):
        return {}
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return _described(*arguments[:4])
    if name == "torch._utils._rebuild_tensor_v3":
        storage, offset, shape, stride = arguments[:4]
        return _described(storage, offset, shape, stride, _dtype_name(arguments[6]))
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        # (function, type, arguments, state): a subclass of Tensor; its numbers are an ordinary tensor's.
        return rebuild(arguments[0], arguments[2]) if isinstance(arguments[0], Global) else NotImplemented
    return NotImplemented


def _described(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> Any:
    if not isinstance(storage, PersistentId):
        raise TypeError("a tensor without a storage")
    held = storage_of(storage.value)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"a tensor of offset {offset}, shape {shape}, stride {stride}")
    return StoredTensor(held, offset, tuple(shape), tuple(stride), dtype or held.dtype)


def storage_of(value: Any) -> Storage:
    """Read a persistent id: ("storage", class, key, location, count), in old files with a view behind.

    Raises:
        ValueError, TypeError: it is something else.
    """
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, count, *view = value
    start = 0
    if view and isinstance(view[0], tuple):
        start = int(view[0][1])  # (key of the view, offset, size)
    return Storage(str(key), _dtype_name(kind), int(count), start)


def _dtype_name(kind: Any) -> str:
    name = kind.name if isinstance(kind, Global) else ""
    short = name.removesuffix("Storage")
    if short == "Untyped":
        return "u1"
    # An unknown type (complex, quantised) matters only when its numbers are asked for.
    return _DTYPES.get(short, short)


def item_size(dtype: str) -> int:
    """Bytes of one number of a storage's type; ModelError for types that are not read."""
    return 2 if dtype == "bf16" else np.dtype(_numpy_name(dtype)).itemsize


def _numpy_name(dtype: str) -> str:
    if dtype not in _DTYPES.values():
        raise ModelError(
            f"a tensor of type {dtype or 'unknown'} cannot be read",
            "convert the weights to float32 before saving",
        )
    return dtype


def tensor_of(path: Path, tensor: StoredTensor, data: bytes, order: Literal["<", ">"]) -> Array:
    """Return the numbers of one tensor, contiguous; bfloat16 becomes float32.

    Args:
        path: named in errors.
        tensor: which part of the storage, in which order.
        data: the whole storage.
        order: of the bytes in it.

    Raises:
        ModelError: the tensor reaches beyond its storage, or is of a type that is not read.
    """
    wide = tensor.dtype == "bf16"
    dtype = np.dtype("u2" if wide else _numpy_name(tensor.dtype)).newbyteorder(order)
    flat = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    first = tensor.storage.start + tensor.offset
    last = first + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    empty = 0 in tensor.shape
    if not empty and last >= flat.size:
        raise ModelError(
            f"{path} is damaged: a tensor of shape {list(tensor.shape)} reaches element {last} of a storage of "
            f"{flat.size}",
            "download the file again",
        )
    if empty:
        return np.zeros(tensor.shape, np.float32)
    if np.prod(tensor.shape, dtype=np.float64) > flat.size:
        # Strides of 0 repeat numbers; no trained tensor has more elements than its storage.
        raise ModelError(
            f"{path}: a tensor of shape {list(tensor.shape)} is larger than its storage", "save it again"
        )
    strides = [s * dtype.itemsize for s in tensor.stride]
    view = np.lib.stride_tricks.as_strided(flat[first:], tensor.shape, strides, writeable=False)
    if wide:
        return (view.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(view).astype(dtype.newbyteorder("="), copy=False).reshape(tensor.shape)
