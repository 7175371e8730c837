"""Open checkpoints of any format (`open_checkpoint`); their tensors are read on demand."""

import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from centernet_trt.builder.export.files.entries import Checkpoint, Entry, array_entries, unreadable
from centernet_trt.builder.export.files.other_formats import HINT, name_archive, name_format
from centernet_trt.builder.export.files.pickle_reader import Opaque, PersistentId
from centernet_trt.builder.export.files.shards import open_shards
from centernet_trt.builder.export.files.torch_file import (
    StoredTensor,
    TorchFile,
    can_read,
    open_torch,
    open_zip,
)
from centernet_trt.errors import ModelError

__all__ = ["looks_like_safetensors", "open_checkpoint", "read_safetensors"]

Array = NDArray[Any]

_LARGEST_HEADER = 100 << 20  # the format's own limit
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U8": "u1", "BOOL": "?",
}  # fmt: skip


def looks_like_safetensors(path: Path) -> bool:
    """Recognise the format by its first nine bytes: the length of the header and its opening brace."""
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) < 9 or head[8:] != b"{":
        return False
    return int(struct.unpack("<Q", head[:8])[0]) <= _LARGEST_HEADER


def read_safetensors(path: Path) -> dict[str, Entry]:
    """Read a safetensors file.

    Args:
        path: the file. It is read whole, so that a header cannot claim more than there is.

    Returns:
        Tensors by name; bfloat16 as float32. A type that numpy does not have is the tensor's `problem`.

    Raises:
        ModelError: truncated, or a header that does not fit the file.
    """
    try:
        # Raw bytes rather than safetensors.numpy, which has no bfloat16.
        entries: list[tuple[str, dict[str, Any]]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {reason}",
            "download the file again",
        ) from None
    return {
        name: Entry(
            tuple(entry["shape"]),
            partial(_tensor, path, name, entry),
            problem="" if entry["dtype"] in _DTYPES else f"type {entry['dtype']}",
        )
        for name, entry in entries
    }


def _tensor(path: Path, name: str, entry: Mapping[str, Any]) -> Array:
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise unreadable(str(path), {name: f"type {kind}"})
    flat = np.frombuffer(entry["data"], _DTYPES[kind])
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    try:
        return flat.reshape(entry["shape"])
    except (ValueError, OverflowError) as error:  # no elements, but sides or a number of axes beyond numpy's
        raise ModelError(
            f"{path} is damaged: tensor {name!r} of shape {entry['shape']}: {error}",
            "download the file again",
        ) from None


# Dictionaries and lists within each other; optimisers nest deepest: optimizer, state, parameter, moment.
_DEPTH = 8
# Values of a pickle; containers that share their contents could nest to any number.
_MOST_VALUES = 5_000_000
# Trained weights hardly compress; an archive that unpacks to more than this many times its size is a bomb.
_LARGEST_GROWTH = 50
# Keys of a checkpoint that mmcv 1 or mmengine wrote.
_MM_KEYS = ("message_hub", "mmengine_version", "mmcv_version", "mmdet_version")
_SETTINGS = ("args", "cfg", "config", "optimizer", "scheduler", "hyper_parameters", "meta")


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a checkpoint; nothing in it is executed.

    Args:
        path: PyTorch (.pth of any version, a state_dict or dictionaries and lists with some inside), safetensors, npz,
            or the index of a checkpoint in shards (`model.safetensors.index.json`).

    Raises:
        ModelError: no file, another format, truncated, damaged, without tensors, or refused, because it could unpack
            to any size or asks Python to call something.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"there is no file {path}" if not path.exists() else f"{path} is a folder", _hint_of_path(path)
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not looks_like_safetensors(path) and head.lstrip().startswith(b"{"):
        with open_shards(path, _open_file) as checkpoint:
            yield checkpoint
    else:
        with _open_file(path) as checkpoint:
            yield checkpoint


def _hint_of_path(path: Path) -> str:
    indices = sorted(path.glob("*.index.json")) if path.is_dir() else []
    if indices:
        return f"give the index of the shards: {indices[0]}"
    if (path / "saved_model.pb").is_file():
        return name_format(path, b"\x08\x01\x12").hint
    return "check the path"


@contextmanager
def _open_file(path: Path) -> Iterator[Checkpoint]:
    """Open one file of tensors."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelError(f"{path} is empty (0 bytes)", "copy or download the file again")
    if looks_like_safetensors(path):
        yield Checkpoint(path, "safetensors", read_safetensors(path))
    elif head[:4] == b"PK\x03\x04" and _is_npz(path):
        yield Checkpoint(path, "npz", array_entries(_read_npz(path)))
    elif head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        with open_torch(path) as opened:
            yield _from_torch(path, opened)
    else:
        raise name_format(path, head)


def _is_npz(path: Path) -> bool:
    with open_zip(path) as archive:
        foreign = name_archive(path, archive.infolist())
        names = archive.namelist()
    if foreign is not None:
        raise foreign
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(path: Path) -> dict[str, Array]:
    with open_zip(path) as archive:
        total = sum(info.file_size for info in archive.infolist())
    if total > _LARGEST_GROWTH * path.stat().st_size:
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) would unpack to {total} bytes: refused",
            "weights do not compress like that; store them with numpy.savez",
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        ValueError,
        OSError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        MemoryError,
    ) as error:
        raise ModelError(
            f"{path} is damaged or has Python objects: {error}", "store plain arrays with numpy.savez"
        ) from error


def _from_torch(path: Path, file: TorchFile) -> Checkpoint:
    tensors: dict[str, Entry] = {}
    objects: dict[str, str] = {}
    found = 0
    for keys, value in _leaves(path, file.value):
        name, folder = ".".join(keys), "".join(f"{key}." for key in keys[:-1])
        if name in tensors:
            raise ModelError(f"{path} has two tensors {name!r}", "save only the state_dict of the network")
        if isinstance(value, StoredTensor):
            found += 1
            tensors[name] = _stored_entry(path, file, name, folder, value)
            continue
        problem = _describe(value)
        tensors[name] = Entry((), partial(_refuse, path, name, problem), folder, problem)
        if len(keys) < 2 and name not in _SETTINGS and _could_be_a_network(problem):
            objects[name] = problem
    checkpoint = Checkpoint(path, "torch", tensors, objects, _is_of_mm(file.value))
    if not found:
        raise _no_tensors(checkpoint, file.value)
    return checkpoint


def _leaves(path: Path, root: Any) -> Iterator[tuple[tuple[str, ...], StoredTensor | Opaque]]:
    """Tensors and objects in nested dictionaries and lists, with the keys that lead to them."""
    count = 0

    def walk(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], StoredTensor | Opaque]]:
        nonlocal count
        count += 1
        if count > _MOST_VALUES:
            raise ModelError(
                f"{path} has more than {_MOST_VALUES} values: refused",
                "save only the state_dict of the network",
            )
        if isinstance(value, (StoredTensor, Opaque)):
            yield keys, value
        elif isinstance(value, (dict, list, tuple)) and len(keys) < _DEPTH:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                if isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 63):
                    yield from walk(inner, (*keys, str(key)))

    return walk(root, ())


def _stored_entry(path: Path, file: TorchFile, name: str, folder: str, tensor: StoredTensor) -> Entry:
    if not can_read(tensor.dtype):
        problem = f"type {tensor.dtype or 'unknown'}"
        return Entry(tensor.shape, partial(_refuse, path, name, problem), folder, problem)
    return Entry(tensor.shape, partial(file.read, tensor), folder)


def _refuse(path: Path, name: str, problem: str) -> Array:
    raise unreadable(str(path), {name: problem})


def _describe(value: Opaque) -> str:
    """What an object is, from the name that would make it."""
    kind = value.made_by
    if isinstance(kind, PersistentId) and isinstance(kind.value, tuple):
        kind = kind.value[1]  # ("module", class, file, source): a module in the legacy format
    name = str(kind)
    if "_rebuild_sparse" in name:
        return "sparse"
    if "_rebuild_qtensor" in name:
        return "quantised"
    return "a NumPy array" if name.startswith("numpy") else f"a Python object of {name}"


def _could_be_a_network(problem: str) -> bool:
    root = problem.removeprefix("a Python object of ").partition(".")[0]
    return problem != "a NumPy array" and root not in sys.stdlib_module_names


def _is_of_mm(value: Any) -> bool:
    meta = value.get("meta") if isinstance(value, dict) else None
    found = [*(value if isinstance(value, dict) else ()), *(meta if isinstance(meta, dict) else ())]
    return any(key in _MM_KEYS for key in found)


def _no_tensors(checkpoint: Checkpoint, value: Any) -> ModelError:
    if checkpoint.objects:
        return object_error(checkpoint)
    if arrays := {name: e.problem for name, e in checkpoint.tensors.items() if e.problem == "a NumPy array"}:
        return unreadable(str(checkpoint.path), arrays)
    if isinstance(value, dict):
        empty = [key for key, inner in value.items() if isinstance(inner, (dict, list)) and not inner]
        keys = ", ".join(f"{key} (empty)" if key in empty else str(key) for key in list(value)[:10])
    else:
        keys = type(value).__name__
    return ModelError(f"{checkpoint.path}: expected tensors, got {keys or 'nothing'}", HINT)


def object_error(checkpoint: Checkpoint) -> ModelError:
    """The error for a checkpoint whose network is a pickled object."""
    key, kind = next(iter(checkpoint.objects.items()))
    where = f"{checkpoint.path}[{key!r}]" if key else f"{checkpoint.path}"
    return ModelError(
        f"{where}: expected a state_dict, got {kind}; objects are not read, since that would execute their code",
        "save model.state_dict() where the model's code is installed",
    )
