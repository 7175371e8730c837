"""Read the files of torch.save without PyTorch, executing none of their code: `open_torch`."""

import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.export.files.other_formats import name_pickle
from centernet_trt.builder.export.files.pickle_reader import Global, PersistentId, Pickle, read_pickle
from centernet_trt.errors import ModelError

__all__ = ["LEGACY_MAGIC", "StoredTensor", "TorchFile", "can_read", "open_torch", "open_zip"]

Array = NDArray[Any]

# Storage class or dtype -> numpy dtype; bfloat16 is read as 16 bits and widened.
_DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bf16", "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?",
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bf16", "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?",
}  # fmt: skip
# Types that cannot be read, but that may come before others in a legacy file: bytes of an element.
_OTHER_SIZES = {"ComplexDouble": 16, "ComplexFloat": 8, "QInt32": 4, "QInt8": 1, "QUInt8": 1}


@dataclass(frozen=True)
class Storage:
    """A block of numbers outside the pickle.

    Attributes:
        key: of the storage in the file.
        dtype: numpy name, or `bf16`.
        count: number of elements.
        start: first element of a legacy view within its storage.
    """

    key: str
    dtype: str
    count: int
    start: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file describes it; `TorchFile.read` returns its numbers. Offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


def rebuild(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Interpret a call of one of PyTorch's rebuild functions; NotImplemented for all other names."""
    name = str(function)
    if name in ("collections.OrderedDict", "builtins.dict", "collections.defaultdict"):
        return {}
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return _stored_tensor(*arguments[:4])
    if name == "torch._utils._rebuild_tensor_v3":
        storage, offset, shape, stride = arguments[:4]
        return _stored_tensor(storage, offset, shape, stride, _dtype_name(arguments[6]))
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        # (function, type, arguments, state): a subclass of Tensor, whose numbers are those of an ordinary tensor.
        return rebuild(arguments[0], arguments[2]) if isinstance(arguments[0], Global) else NotImplemented
    return NotImplemented


def _stored_tensor(storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None) -> Any:
    if not isinstance(storage, PersistentId):
        raise TypeError("a tensor without a storage")
    parsed = parse_storage(storage.value)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"a tensor of offset {offset}, shape {shape}, stride {stride}")
    return StoredTensor(parsed, offset, tuple(shape), tuple(stride), dtype or parsed.dtype)


def parse_storage(value: Any) -> Storage:
    """Parse a persistent id: ("storage", class, key, location, count), followed by a view in old files.

    Raises:
        ValueError, TypeError: not such an id.
    """
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise ValueError("a persistent id that is not a storage")
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
    # An unknown type (complex, quantised) is an error only when its numbers are read.
    return _DTYPES.get(short, short)


def item_size(dtype: str) -> int:
    """Bytes of one element; ModelError for types of unknown size."""
    if dtype in _OTHER_SIZES:
        return _OTHER_SIZES[dtype]
    return 2 if dtype == "bf16" else np.dtype(_numpy_name(dtype)).itemsize


def can_read(dtype: str) -> bool:
    """Whether tensors of this type can be read."""
    return dtype in _DTYPES.values()


def _numpy_name(dtype: str) -> str:
    if not can_read(dtype):
        raise ModelError(
            f"a tensor of type {dtype or 'unknown'} cannot be read",
            "convert the weights to float32 before saving",
        )
    return dtype


def read_tensor(path: Path, tensor: StoredTensor, data: bytes, order: Literal["<", ">"]) -> Array:
    """Return the numbers of one tensor, contiguous; bfloat16 becomes float32.

    Args:
        path: of the file, for errors.
        tensor: what to read.
        data: the whole storage.
        order: byte order of the storage.

    Raises:
        ModelError: the tensor reaches beyond its storage, or its type cannot be read.
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
        # Strides of 0 repeat numbers, to any size; no trained tensor has more elements than its storage.
        raise ModelError(
            f"{path}: a tensor of shape {list(tensor.shape)} is larger than its storage of {flat.size} elements",
            "save it again",
        )
    strides = [s * dtype.itemsize for s in tensor.stride]
    view = np.lib.stride_tricks.as_strided(flat[first:], tensor.shape, strides, writeable=False)
    if wide:
        return (view.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(view).astype(dtype.newbyteorder("="), copy=False).reshape(tensor.shape)


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 256 << 20  # data.pkl of the largest public detectors has 1 MB

# Parts of the standard library that training code leaves in checkpoints beside the tensors. A file that wants to call
# any other (os, subprocess, builtins.eval) is an attack or no checkpoint, which the user should know. Safety does not
# depend on the list: nothing is ever called, whatever its name.
_HARMLESS = {
    "argparse", "collections", "copyreg", "copy_reg", "datetime", "decimal", "enum", "pathlib", "random",
    "uuid", "_codecs",
}  # fmt: skip
_HARMLESS_BUILTINS = {
    "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set", "slice", "tuple",
}  # fmt: skip


@dataclass(frozen=True)
class TorchFile:
    """The unpickled value, with a `StoredTensor` for each tensor, and a function that reads one."""

    value: Any
    read: Callable[[StoredTensor], Array]


@contextmanager
def open_torch(path: Path) -> Iterator[TorchFile]:
    """Open a file of torch.save, of the zip or the legacy format; tensors are read on demand while it is open.

    Raises:
        ModelError: neither format, truncated or damaged, compressed (possibly a zip bomb), or a pickle that asks to
            call something that no checkpoint needs. Nothing in it is executed.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    with _open_zip(path) if zipped else _open_legacy(path) as opened:
        yield opened


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive; ModelError if its directory, at the end of the file, is missing or damaged."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise ModelError(
            f"{path} begins like a zip archive but is truncated or damaged: {error}",
            "download the file again",
        ) from error


@contextmanager
def _open_zip(path: Path) -> Iterator[TorchFile]:
    with open_zip(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        _check_members(path, members)
        prefix = _prefix(path, members)
        value = _unpickle(BytesIO(_member(path, archive, f"{prefix}data.pkl")), path).value
        order: Literal["<", ">"] = "<"
        if f"{prefix}byteorder" in members and _member(path, archive, f"{prefix}byteorder") == b"big":
            order = ">"

        @lru_cache(maxsize=1)  # tensors that share a storage usually follow each other
        def numbers(key: str) -> bytes:
            return _member(path, archive, f"{prefix}data/{key}")

        yield TorchFile(value, lambda tensor: read_tensor(path, tensor, numbers(tensor.storage.key), order))


def _prefix(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """The folder inside the archive that has data.pkl."""
    pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise ModelError(
            f"{path} is a zip archive with {len(pickles)} data.pkl, expected one: not a file of torch.save",
            "save the weights with torch.save(model.state_dict(), path)",
        )
    size = members[pickles[0]].file_size
    if size > _LARGEST_PICKLE:
        raise ModelError(
            f"{path}: {pickles[0]} has {size} bytes, expected at most {_LARGEST_PICKLE}",
            "save only a state_dict",
        )
    return pickles[0].removesuffix("data.pkl")


def _check_members(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse zip bombs: torch.save does not compress, so its members are together no larger than the file."""
    packed = [info.filename for info in members.values() if info.compress_type != zipfile.ZIP_STORED]
    total = sum(info.file_size for info in members.values())
    if packed or total > path.stat().st_size:
        found = f"{packed[0]} is compressed" if packed else f"its members claim {total} bytes"
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) was not written by torch.save: {found}; refused, since such "
            "archives can unpack to any size",
            "download the original file, or save it again with torch.save",
        )


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise ModelError(f"{path} is truncated: it has no member {name}", "download the file again") from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error) as error:
        # ValueError: a name that is not text. RuntimeError: flags of encryption or of an unknown method.
        raise ModelError(f"{path} is damaged at {name}: {error}", "download the file again") from error


@contextmanager
def _open_legacy(path: Path) -> Iterator[TorchFile]:
    with path.open("rb") as file:
        first = _unpickle(file, path)
        if first.value != LEGACY_MAGIC:
            raise name_pickle(path, first.value, map(str, first.called))
        _, system, main, storages = (_unpickle(file, path) for _ in range(4))
        places = _legacy_places(path, file, storages.value, main.references)
        big = isinstance(system.value, dict) and not system.value.get("little_endian", True)

        @lru_cache(maxsize=1)
        def numbers(key: str) -> bytes:
            if key not in places:
                raise ModelError(f"{path} is damaged: it has no storage {key}", "download the file again")
            start, size = places[key]
            file.seek(start)
            return file.read(size)

        order: Literal["<", ">"] = ">" if big else "<"
        yield TorchFile(
            main.value, lambda tensor: read_tensor(path, tensor, numbers(tensor.storage.key), order)
        )


def _legacy_places(
    path: Path, file: BinaryIO, keys: Any, references: list[PersistentId]
) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of each storage. A count precedes its numbers; their type is in the pickle."""
    try:
        # Other references come from pickled modules: ("module", class, file, source).
        tuples = [r.value for r in references if isinstance(r.value, tuple)]
        storages = [parse_storage(value) for value in tuples if value[:1] == ("storage",)]
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", "download the file again") from error
    sizes = {storage.key: item_size(storage.dtype) for storage in storages}
    places: dict[str, tuple[int, int]] = {}
    place, total = file.tell(), path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        file.seek(place)
        header = file.read(8)
        count = struct.unpack("<q", header)[0] if len(header) == 8 else -1
        size = count * sizes.get(str(key), 0)
        if count < 0 or place + 8 + size > total:
            raise ModelError(
                f"{path} ({total} bytes) is truncated in storage {key}", "download the file again"
            )
        places[str(key)] = (place + 8, size)
        place += 8 + size
    return places


def _unpickle(stream: BinaryIO, path: Path) -> Pickle:
    result = read_pickle(stream, rebuild, str(path))
    strange = sorted(str(name) for name in result.called if _is_strange(name))
    if strange:
        raise ModelError(
            f"{path} asks Python to call {', '.join(strange[:5])}, which no checkpoint needs: refused; nothing in it "
            "was executed",
            "do not open this file with torch.load; get a state_dict from a source that you trust",
        )
    return result


def _is_strange(name: Global) -> bool:
    root = name.module.partition(".")[0]
    if root in ("builtins", "__builtin__"):
        return name.name not in _HARMLESS_BUILTINS
    return root in sys.stdlib_module_names and root not in _HARMLESS
