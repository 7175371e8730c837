"""Read checkpoints: formats, wrappers and prefixes of names."""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from centernet_trt.builder.export.pickle_reader import Opaque, PersistentId
from centernet_trt.builder.export.torch_file import StoredTensor, TorchFile, open_torch, open_zip
from centernet_trt.errors import ModelError

__all__ = ["Checkpoint", "looks_like_safetensors", "read_checkpoint", "read_safetensors"]

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
    """Read all tensors of a safetensors file.

    Args:
        path: the file. It is read whole, so that a header cannot claim more than there is.

    Returns:
        Tensors by name; bfloat16 as float32.

    Raises:
        ModelError: truncated, a header that does not fit the file, or a type that numpy does not have.
    """
    try:
        # Raw bytes rather than safetensors.numpy, which has no bfloat16.
        entries: list[tuple[str, dict[str, Any]]] = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing: ")
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {reason}", "download it again"
        ) from None
    return {name: _tensor(path, name, entry) for name, entry in entries}


def _tensor(path: Path, name: str, entry: Mapping[str, Any]) -> Array:
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise ModelError(
            f"{path}: tensor {name!r} has type {kind}, expected one of {', '.join(_DTYPES)}",
            "convert the weights to F32 before saving",
        )
    flat = np.frombuffer(entry["data"], _DTYPES[kind])
    if kind == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    try:
        return flat.reshape(entry["shape"])
    except (ValueError, OverflowError) as error:  # no elements, but sides or a number of axes beyond numpy's
        raise ModelError(
            f"{path} is damaged: tensor {name!r} of shape {entry['shape']}: {error}", "download it again"
        ) from None


# Where training codes keep the weights, best first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "params", "module")
# What wrappers around the network put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_DEPTH = 3  # wrappers within wrappers
# numpy compresses weights by little; an archive that would grow more than this is a bomb.
_LARGEST_GROWTH = 50
_HINT = "give a .pth file of torch.save, a .safetensors or an .npz file with the tensors of a state_dict"
_LOOKS_LIKE = (
    (b"\x08", "an ONNX model", "it is exported already: give it to `centernet-trt build`"),
    (b"\x89HDF", "an HDF5 file, such as Keras weights", _HINT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"<", "an HTML or XML document, such as the page of a failed download", "download the file again"),
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, prefixes of wrappers removed.

    Attributes:
        tensors: contiguous numpy arrays; float16 and float64 as stored, bfloat16 as float32.
        format: `torch`, `safetensors` or `npz`.
        found_at: keys that led to the tensors within the file, such as ("state_dict",).
    """

    tensors: dict[str, Array]
    format: str
    found_at: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: PyTorch (.pth of any age, a state_dict or a dictionary around one), safetensors, or npz.

    Raises:
        ModelError: no file, another format, truncated, damaged, without tensors, or refused because it would unpack
            to any size or asks Python to call something.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            f"there is no file {path}" if not path.exists() else f"{path} is a folder", "check the path"
        )
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelError(f"{path} is empty (0 bytes)", "copy or download the file again")
    if looks_like_safetensors(path):
        return _unprefixed(read_safetensors(path), "safetensors")
    if head[:4] == b"PK\x03\x04" and _is_npz(path):
        return _unprefixed(_read_npz(path), "npz")
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        with open_torch(path) as opened:
            return _from_torch(path, opened)
    for magic, what, hint in _LOOKS_LIKE:
        if head.startswith(magic):
            raise ModelError(f"{path} is no checkpoint: it looks like {what}", hint)
    raise ModelError(f"{path} is of no known checkpoint format; it begins with {head[:8]!r}", _HINT)


def _is_npz(path: Path) -> bool:
    with open_zip(path) as archive:
        names = archive.namelist()
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
            f"{path} is damaged, or holds Python objects: {error}", "store plain arrays with numpy.savez"
        ) from error


def _from_torch(path: Path, file: TorchFile) -> Checkpoint:
    value = file.value
    found_at: tuple[str, ...] = ()
    while not _tensors(value):
        inner = _wrapped(value) if len(found_at) < _DEPTH else None
        if inner is None:
            raise _no_tensors(path, value, found_at)
        found_at = (*found_at, inner)
        value = value[inner]
    tensors = {name: file.read(tensor) for name, tensor in _tensors(value).items()}
    return _unprefixed(tensors, "torch", found_at)


def _tensors(value: Any) -> dict[str, StoredTensor]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, StoredTensor)}


def _wrapped(value: Any) -> str | None:
    """The key of a known name that has a dictionary behind it."""
    known = [key for key in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), dict)]
    return known[0] if known else None


def _no_tensors(path: Path, value: Any, found_at: tuple[str, ...]) -> ModelError:
    where = f"{path}" + "".join(f"[{key!r}]" for key in found_at)
    objects = [
        v for v in (value, *(value.values() if isinstance(value, dict) else ())) if isinstance(v, Opaque)
    ]
    if objects:
        kind = objects[0].made_by
        if isinstance(kind, PersistentId) and isinstance(kind.value, tuple):
            kind = kind.value[1]  # ("module", class, file, source): how the old format wrote modules
        return ModelError(
            f"{where} holds a Python object of {kind}, not a state_dict; objects are not read, since "
            "that would run their code",
            "save model.state_dict() where the model's code is installed",
        )
    keys = ", ".join(map(str, list(value)[:10])) if isinstance(value, dict) else type(value).__name__
    return ModelError(f"{where} holds no tensors; it holds {keys or 'nothing'}", _HINT)


def _unprefixed(tensors: Mapping[str, Array], kind: str, found_at: tuple[str, ...] = ()) -> Checkpoint:
    """Remove what stands before every single name, again and again (`module.model.`)."""
    names = {name: name for name in tensors}
    while prefix := next(
        (p for p in _PREFIXES if names and all(n.startswith(p) for n in names.values())), ""
    ):
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    return Checkpoint({names[name]: value for name, value in tensors.items()}, kind, found_at)
