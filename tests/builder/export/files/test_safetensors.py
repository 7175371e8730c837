"""Safetensors: every type, and headers that lie."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import bf16, equal, read_checkpoint, refused, save_safetensors, select, weights


def test_safetensors(tmp_path: Path) -> None:
    values = weights()
    kinds = {"float32": "F32", "int64": "I64"}
    stored = {f"module.{name}": (kinds[value.dtype.name], value) for name, value in values.items()}
    path = save_safetensors(tmp_path / "a.safetensors", stored)
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors.keys() == stored.keys()
    equal(select(path, values).tensors, values)
    assert checkpoint.format == "safetensors"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *[("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("I64", "i8"), ("I32", "i4"), ("I16", "i2")],
        *[("I8", "i1"), ("U8", "u1"), ("BOOL", "?")],
    ],
)
def test_types_of_safetensors(tmp_path: Path, kind: str, dtype: str) -> None:
    values = {
        "w": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0, 2), dtype),
    }
    path = save_safetensors(
        tmp_path / "a.safetensors", {name: (kind, value) for name, value in values.items()}
    )
    found = read_checkpoint(path).tensors
    equal(found, values)
    assert {value.dtype for value in found.values()} == {np.dtype(dtype)}


def test_bfloat16_of_safetensors_becomes_float32(tmp_path: Path) -> None:
    value = weights()["conv.weight"]
    path = save_safetensors(tmp_path / "a.safetensors", {"w": ("BF16", bf16(value))})
    found = read_checkpoint(path).tensors["w"]
    assert found.dtype == np.float32
    assert found.shape == value.shape
    np.testing.assert_array_equal(found.view(np.uint32), value.view(np.uint32) & 0xFFFF0000)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = save_safetensors(tmp_path / "a.safetensors", {"w": ("F32", weights()["conv.weight"])})
    data = path.read_bytes()
    for length in range(9, len(data), 13):
        path.write_bytes(data[:length])
        refused(path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "invalid shape, data type, or offset"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "integer `-1`"),
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}, "not fully covered"),
        ({"dtype": "F32", "shape": [1 << 63, 8], "data_offsets": [0, 0]}, "overflow"),
        ({"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}, "tensor 'w' of shape"),
        ({"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]}, "tensor 'w' of shape"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "invalid offset for tensor `w`"),
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "'w' (type F8_E4M3)"),
        ({"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}, "'w' (type F4)"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, "'w' (type C64)"),
        ({"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}, "unknown variant `F31`"),
        ({"dtype": "F32", "shape": [1]}, "missing field `data_offsets`"),
        ([], "invalid length 0"),
    ],
)
def test_wrong_safetensors_headers(tmp_path: Path, entry: Any, said: str) -> None:
    end = entry["data_offsets"][1] if "data_offsets" in entry else 0
    path = save_safetensors(tmp_path / "a.safetensors", {}, w=entry)
    with path.open("ab") as file:
        file.write(bytes(min(end, 8)))
    refused(path, str(path), said)


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([0, 16], "invalid offset"),  # the bytes of the other tensor
        ([8, 24], "invalid offset"),  # half of them
        ([20, 36], "invalid offset"),  # a gap before it
        ([16, 32], ""),  # where it belongs
    ],
)
def test_overlapping_safetensors(tmp_path: Path, offsets: list[int], said: str) -> None:
    value = np.arange(4, dtype=np.float32)
    other = {"dtype": "F32", "shape": [4], "data_offsets": offsets}
    path = save_safetensors(tmp_path / "a.safetensors", {"v": ("F32", value)}, w=other)
    with path.open("ab") as file:
        file.write(bytes(offsets[1] - 16))
    if said:
        refused(path, said)
    else:
        equal(read_checkpoint(path).tensors, {"v": value, "w": value * 0})


def test_safetensors_with_bytes_of_no_tensor_are_refused(tmp_path: Path) -> None:
    path = save_safetensors(tmp_path / "a.safetensors", {"w": ("F32", np.ones(4, np.float32))})
    path.write_bytes(path.read_bytes() + b"PK")
    refused(path, "not fully covered")


@pytest.mark.parametrize(
    ("header", "length", "said"),
    [
        (b'{"a":' * 100_000, None, "recursion limit"),
        (b'{"w":', None, "invalid JSON"),
        (b"{\xff}", None, "invalid UTF-8"),
        (b"{}", 3, "invalid header length"),
        (b"{}", 100 << 20, "header too large"),
        (b"{}", 1 << 63, "has no known checkpoint format"),
        (b"{}", 0, "header"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path: Path, header: bytes, length: int | None, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    refused(path, said)


def test_a_safetensors_name_given_twice_is_read_once(tmp_path: Path) -> None:
    first, second = (
        json.dumps({"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}) for n in (1, 2)
    )
    header = (first[:-1] + "," + second[1:]).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + np.ones(2, np.float32).tobytes())
    equal(read_checkpoint(path).tensors, {"w": np.ones(2, np.float32)})
