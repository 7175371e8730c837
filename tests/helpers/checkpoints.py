"""Checkpoints to write, and what reading them must give."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from centernet_trt.builder.export.checkpoint import read_checkpoint
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
