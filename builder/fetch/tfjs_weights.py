"""Read the weights of a TensorFlow.js graph model (`read_weights`): a manifest in the JSON file, numbers in .bin files.

Source: the format's description in tensorflow/tfjs-converter: groups of files, tensors in sequence, optionally stored
as float16, or as uint8 / uint16 with a scale and a minimum.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centernet_trt.errors import ModelError

__all__ = ["read_weights"]

Array = NDArray[Any]

_STORED = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "bool": "?"}
_HINT = "get the .json file and its .bin files from the same release again"


def read_weights(manifest: object, folder: Path) -> dict[str, Array]:
    """Return every weight by name: float32, int32, uint8 or bool, in TensorFlow's layout.

    Args:
        manifest: `weightsManifest` of the JSON file.
        folder: of the files that it names.

    Raises:
        ModelError: a file is missing, too short or too long, or the manifest is not valid.
    """
    weights: dict[str, Array] = {}
    if not isinstance(manifest, list):
        raise ModelError("the graph model has no list of weights", _HINT)
    for group in manifest:
        data = b"".join(_read(folder, name) for name in _field(group, "paths"))
        place = 0
        for entry in _field(group, "weights"):
            name, shape = _field(entry, "name"), _field(entry, "shape")
            value, place = _weight(entry, data, place)
            weights[name] = value.reshape(shape)
        if place != len(data):
            raise ModelError(f"{group['paths']}: expected {place} bytes, got {len(data)}", _HINT)
    return weights


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, Mapping) or name not in entry:
        raise ModelError(f"the list of weights is damaged: no {name!r} in {entry!r:.80}", _HINT)
    return entry[name]


def _read(folder: Path, name: str) -> bytes:
    if PurePosixPath(name).name != name or name in ("", ".", ".."):
        raise ModelError(f"expected the name of a weight file in the same folder, got {name!r}", _HINT)
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {folder / name}: {error.strerror}", _HINT) from error


def _weight(entry: Mapping[str, Any], data: bytes, place: int) -> tuple[Array, int]:
    """Decode one tensor, flat; also returns the offset of the next."""
    quantised = entry.get("quantization") or {}
    stored = quantised.get("dtype", _field(entry, "dtype"))
    if stored not in _STORED:
        raise ModelError(f"weight {entry['name']!r} has the type {stored!r}, which cannot be read", _HINT)
    dtype = np.dtype(_STORED[stored])
    count = int(np.prod(_field(entry, "shape"), dtype=np.int64))
    end = place + count * dtype.itemsize
    if count < 0 or end > len(data):
        raise ModelError(
            f"weight {entry['name']!r}: expected {end} bytes in the files, got {len(data)}", _HINT
        )
    value = np.frombuffer(data, dtype, count, place)
    if stored in ("uint8", "uint16") and quantised:
        value = value.astype(np.float32) * np.float32(quantised["scale"]) + np.float32(quantised["min"])
    elif stored == "float16":
        value = value.astype(np.float32)
    return value, end
