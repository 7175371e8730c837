"""Reads safetensors files by hand: the format is a length, a JSON table and the numbers (no dependency for that).

Source: the format's published description: 8 bytes little-endian N, N bytes of JSON, then the tensors without gaps.
"""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from centernet_trt.errors import ModelError

__all__ = ["looks_like_safetensors", "read_safetensors"]

Array = NDArray[Any]

_LARGEST_HEADER = 100 << 20  # the format's own limit
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip


def looks_like_safetensors(path: Path) -> bool:
    """Tell by the first nine bytes: the length of a table that fits into the file, and its opening brace."""
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) < 9 or head[8:] != b"{":
        return False
    return int(struct.unpack("<Q", head[:8])[0]) <= _LARGEST_HEADER


def read_safetensors(path: Path) -> dict[str, Array]:
    """Read all tensors; bfloat16 as float32.

    Raises:
        ModelError: truncated, or a table that does not fit the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise ModelError(
                f"{path} ({size} bytes) is truncated: its table has {length} bytes", "download it again"
            )
        try:
            table = json.loads(file.read(length))
            if not isinstance(table, dict):
                raise TypeError("no table")
        except (ValueError, TypeError, RecursionError) as error:
            raise ModelError(
                f"{path} is damaged: its table is not JSON: {error}", "download it again"
            ) from None
        entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
        return {name: _tensor(path, file, name, entry, 8 + length, size) for name, entry in entries.items()}


def _tensor(path: Path, file: BinaryIO, name: str, entry: Any, start: int, size: int) -> Array:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ModelError(
            f"{path} is damaged: the entry of tensor {name!r} is {entry!r:.80}", "download it again"
        )
    if kind not in _DTYPES:
        raise ModelError(
            f"{path}: tensor {name!r} has type {kind!r}, which cannot be read",
            f"store it as {', '.join(_DTYPES)}",
        )
    dtype = np.dtype(_DTYPES[kind])
    count = 1
    for n in shape:
        count *= n
    if end - begin != count * dtype.itemsize or start + end > size:
        raise ModelError(
            f"{path} ({size} bytes) is truncated or damaged: tensor {name!r}, {kind} {list(shape)}, lies at bytes "
            f"{start + begin} to {start + end}",
            "download it again",
        )
    file.seek(start + begin)
    flat = np.frombuffer(file.read(end - begin), dtype)
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)
