"""Reads the weights of a network from a checkpoint file of any common format, running no code from it."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.builder.checkpoint_pickle import Opaque, PersistentId
from centernet_trt.builder.checkpoint_safetensors import looks_like_safetensors, read_safetensors
from centernet_trt.builder.checkpoint_tensors import StoredTensor
from centernet_trt.builder.checkpoint_torch import TorchFile, open_torch, open_zip
from centernet_trt.errors import ModelError

__all__ = ["Checkpoint", "read_checkpoint"]

Array = NDArray[Any]

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
