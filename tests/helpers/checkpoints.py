"""Checkpoints to write, and what reading them must give."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from centernet_trt.builder.export.files.checkpoint import open_checkpoint
from centernet_trt.builder.export.network import Network
from centernet_trt.builder.export.select import select_tensors
from centernet_trt.errors import ModelError
from helpers.pth_writer import Part, tensor, write_legacy, write_pth

Array = NDArray[Any]
Write = Callable[[Path, Any], Path]


def weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bn.bias": rng.normal(size=4).astype(np.float32),
        "bn.num_batches_tracked": np.array(7, np.int64),
    }


def parts(values: dict[str, Array], prefix: str = "") -> dict[str, Part]:
    return {prefix + name: tensor(value) for name, value in values.items()}


def equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].shape == value.shape, name


@dataclass
class Read:
    """What a checkpoint with one set of tensors has; `folder` is the dictionary that they are in."""

    tensors: dict[str, Array]
    format: str
    folder: str


def read_checkpoint(path: Path) -> Read:
    """All tensors, which are in one dictionary."""
    with open_checkpoint(path) as checkpoint:
        entries = {name: entry for name, entry in checkpoint.tensors.items() if not entry.is_object}
        (folder,) = {entry.folder for entry in entries.values()}
        tensors = {name.removeprefix(folder): entry.read() for name, entry in entries.items()}
    for name, entry in entries.items():
        assert entry.problem or tensors[name.removeprefix(folder)].shape == entry.shape, name
    return Read(tensors, checkpoint.format, folder)


@dataclass
class Selected:
    """What a network takes from a checkpoint."""

    tensors: dict[str, Array]
    prefix: str
    summary: str


def select(path: Path, wanted: dict[str, Array], **options: Any) -> Selected:
    """Take the tensors of a network that has parameters of these names and shapes."""
    network = Network()
    network._parameters.update({name: value.shape for name, value in wanted.items()})
    with open_checkpoint(path) as checkpoint:
        found = select_tensors(checkpoint, network, "tiny", **options)
        tensors = {name: entry.read() for name, entry in found.tensors.items()}
    return Selected(tensors, found.prefix, "\n".join(found.summary))


def bf16(value: Array) -> Array:
    return (value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


BOTH = pytest.mark.parametrize("write", [write_pth, write_legacy])


def save_safetensors(path: Path, values: dict[str, tuple[str, Array]], **table: Any) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (kind, value) in values.items():
        begin = len(data)
        data += value.tobytes()
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, len(data)]}
    header.update(table)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def refused(path: Path, *said: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    for words in said:
        assert words in str(caught.value)
    assert caught.value.hint
    return caught.value
