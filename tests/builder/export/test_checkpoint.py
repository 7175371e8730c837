import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pth_writer import Parameter, Part, Raw, call, tensor, write_legacy, write_pth
from numpy.typing import NDArray

from centernet_trt.builder.export.checkpoint import read_checkpoint
from centernet_trt.errors import ModelError

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


@BOTH
def test_a_state_dict(tmp_path: Path, write: Write) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "a.pth", parts(weights())))
    equal(checkpoint.tensors, weights())
    assert checkpoint.format == "torch"
    assert checkpoint.found_at == ()


@BOTH
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", ""])
def test_wrappers_and_prefixes(tmp_path: Path, write: Write, wrapper: str, prefix: str) -> None:
    settings = call("argparse", "Namespace")
    history = call("mmengine.logging.history_buffer", "HistoryBuffer", 3)
    value = {
        "epoch": 140,
        "lr": 1.25e-4,
        "none": None,
        "flags": [True, (1, 2)],
        "opt": settings,
        "meta": {"history": history},
        wrapper: parts(weights(), prefix),
    }
    checkpoint = read_checkpoint(write(tmp_path / "a.pth", value))
    equal(checkpoint.tensors, weights())
    assert checkpoint.found_at == (wrapper,)


def test_a_prefix_of_some_names_is_part_of_them(tmp_path: Path) -> None:
    values = {"module.a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    equal(read_checkpoint(write_pth(tmp_path / "a.pth", parts(values))).tensors, values)


@BOTH
def test_other_types(tmp_path: Path, write: Write) -> None:
    values = {name: value for name, value in weights().items() if value.dtype == np.float32}
    half = {f"{name}.f2": value.astype(np.float16) for name, value in values.items()}
    double = {f"{name}.f8": value.astype(np.float64) for name, value in values.items()}
    brain = {f"{name}.bf": bf16(value) for name, value in values.items()}
    found = read_checkpoint(write(tmp_path / "a.pth", parts({**half, **double, **brain}))).tensors
    for name, value in values.items():
        np.testing.assert_array_equal(found[f"{name}.f2"], value.astype(np.float16))
        np.testing.assert_array_equal(found[f"{name}.f8"], value)
        assert found[f"{name}.bf"].dtype == np.float32
        np.testing.assert_allclose(found[f"{name}.bf"], value, rtol=2**-7)


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", parts(weights()), order="big")
    equal(read_checkpoint(path).tensors, weights())


@BOTH
def test_views_strides_and_shared_storages(tmp_path: Path, write: Write) -> None:
    storage = np.arange(24, dtype=np.float32)
    value = {
        "whole": Part(storage, (24,), (1,), key="s"),
        "transposed": Part(storage, (4, 3, 2), (1, 8, 4), key="s"),
        "tail": Part(storage, (2, 3), (3, 1), offset=18, key="s"),
        "scalar": Part(storage, (), (), offset=5, key="s"),
        "empty": Part(storage, (0, 3), (3, 1), key="s"),
    }
    found = read_checkpoint(write(tmp_path / "a.pth", value)).tensors
    np.testing.assert_array_equal(found["whole"], storage)
    np.testing.assert_array_equal(found["transposed"], storage.reshape(3, 2, 4).transpose(2, 0, 1))
    np.testing.assert_array_equal(found["tail"], storage[18:].reshape(2, 3))
    assert found["scalar"] == 5
    assert found["empty"].shape == (0, 3)
    assert all(array.flags.c_contiguous for array in found.values())


@BOTH
def test_parameters(tmp_path: Path, write: Write) -> None:
    values = {"a": np.ones(3, np.float32), "b": np.arange(4, dtype=np.float32)}
    saved = {name: Parameter(tensor(value)) for name, value in values.items()}
    equal(read_checkpoint(write(tmp_path / "a.pth", saved)).tensors, values)


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


def test_safetensors(tmp_path: Path) -> None:
    values = weights()
    kinds = {"float32": "F32", "int64": "I64"}
    stored = {f"module.{name}": (kinds[value.dtype.name], value) for name, value in values.items()}
    checkpoint = read_checkpoint(save_safetensors(tmp_path / "a.safetensors", stored))
    equal(checkpoint.tensors, values)
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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **weights())
    checkpoint = read_checkpoint(tmp_path / "a.npz")
    equal(checkpoint.tensors, weights())
    assert checkpoint.format == "npz"


def refused(path: Path, *said: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    for words in said:
        assert words in str(caught.value)
    assert caught.value.hint
    return caught.value


class _WritesAFile:
    """Its pickle, loaded by Python, writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_writes_no_file(tmp_path: Path, protocol: int, zipped: bool) -> None:
    target = tmp_path / "owned"
    attack = pickle.dumps({"state_dict": _WritesAFile(target)}, protocol)
    pickle.loads(attack)
    assert target.exists()  # the attack works on Python's own unpickler
    target.unlink()
    path = tmp_path / "a.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", attack)
    else:
        path.write_bytes(attack)
    if zipped or protocol >= 2:
        refused(path, "asks Python to call", "system", "nothing of it was executed")
    else:  # torch.save never wrote protocol 0 or 1
        refused(path, "no known checkpoint format")
    assert not target.exists()


@BOTH
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        ("posix", "system"),
        ("runpy", "run_path"),
        ("shutil", "rmtree"),
    ],
)
def test_calls_of_the_standard_library_are_refused(
    tmp_path: Path, write: Write, module: str, name: str
) -> None:
    value = {"state_dict": parts(weights()), "extra": call(module, name, "1/0")}
    refused(write(tmp_path / "a.pth", value), f"{module}.{name}")


def test_names_of_installed_packages_are_not_imported(tmp_path: Path) -> None:
    module = tmp_path / "evil_on_import.py"
    module.write_text(f"open({str(tmp_path / 'owned')!r}, 'w').close()")
    sys.path.insert(0, str(tmp_path))
    try:
        value = {"state_dict": parts(weights()), "extra": call("evil_on_import", "anything")}
        equal(read_checkpoint(write_pth(tmp_path / "a.pth", value)).tensors, weights())
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "owned").exists()
    assert "evil_on_import" not in sys.modules


def test_state_given_to_a_name_changes_nothing(tmp_path: Path) -> None:
    # BUILD on a global: Python's unpickler would set attributes of the real object.
    attack = Raw(b"cos\npath\n}(X\x03\x00\x00\x00sepX\x01\x00\x00\x00!ub")
    read_checkpoint(write_pth(tmp_path / "a.pth", {"state_dict": parts(weights()), "extra": attack}))
    assert os.path.sep != "!"


def test_deep_nesting_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    deep = Raw(b"}(" + b")" + b"\x85" * 500_000 + b"Nu")  # a dictionary key: hashing it would recurse
    value = {"extra": deep, "state_dict": parts(weights())}
    equal(read_checkpoint(write_pth(tmp_path / "a.pth", value)).tensors, weights())


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = {"w": np.zeros(4 << 20, np.float32)}
    refused(write_pth_compressed(tmp_path / "a.pth", zeros), "compressed", "refused")
    np.savez_compressed(tmp_path / "a.npz", **zeros)
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    refused(tmp_path / "a.npz", "would unpack to 16777", "refused")


def write_pth_compressed(path: Path, values: dict[str, Array]) -> Path:
    return write_pth(path, parts(values), compress=True)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", parts({"w": np.zeros(1 << 16, np.float32)}))
    data = path.read_bytes()
    # Point twenty entries of the directory at the same bytes.
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("archive/data/0")
    entries = data[start:end]
    at = entries.index(b"archive/data/0") - 46
    one = entries[at : at + 46 + len("archive/data/0")]
    copies = b"".join(one.replace(b"data/0", b"data/%c" % letter) for letter in b"abcdefghijklmnopqrst")
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 24, 24, len(entries + copies), start, 0)
    path.write_bytes(data[:start] + entries + copies + tail)
    assert info.file_size * 20 > path.stat().st_size
    refused(path, "its members claim")


@BOTH
def test_truncated_files(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a.pth", parts(weights()))
    data = path.read_bytes()
    for length in range(4, len(data) - 1, 37):
        path.write_bytes(data[:length])
        refused(path)
    path.write_bytes(data)
    equal(read_checkpoint(path).tensors, weights())


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
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "'w' has type F8_E4M3"),
        ({"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}, "'w' has type F4"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}, "'w' has type C64"),
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
        (b"{}", 1 << 63, "no known checkpoint format"),
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


@pytest.mark.parametrize(
    "part",
    [
        Part(np.zeros(4, np.float32), (5,), (1,)),
        Part(np.zeros(4, np.float32), (2, 2), (4, 1)),
        Part(np.zeros(4, np.float32), (1,), (1,), offset=4),
        Part(np.zeros(4, np.float32), (1 << 20, 1 << 20), (0, 0)),
        Part(np.zeros(4, np.float32), (-1,), (1,)),
        Part(np.zeros(4, np.float32), (2,), (-1,)),
        Part(np.zeros(4, np.float32), (2, 2), (1,)),
    ],
)
@BOTH
def test_tensors_outside_their_storage(tmp_path: Path, write: Write, part: Part) -> None:
    refused(write(tmp_path / "a.pth", {"w": part}))


def test_damage_gives_a_model_error_or_a_whole_read(tmp_path: Path) -> None:
    rng = random.Random(0)
    sources = [
        write_pth(tmp_path / "z.pth", parts(weights())),
        write_legacy(tmp_path / "l.pth", parts(weights())),
    ]
    sources.append(save_safetensors(tmp_path / "s", {"w": ("F32", weights()["conv.weight"])}))
    np.savez(tmp_path / "n.npz", **weights())
    sources.append(tmp_path / "n.npz")
    outcomes = {"read": 0, "refused": 0}
    for source in sources:
        data = source.read_bytes()
        for _ in range(200):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 5)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            source.write_bytes(damaged)
            try:
                read_checkpoint(source)
                outcomes["read"] += 1
            except ModelError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    refused(path, "there is no file")
    refused(tmp_path, "is a folder")
    for data, said in (
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"\x08\x09\x12\x07pytorch", "ONNX"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"what is this, then", "no known checkpoint format"),
        (pickle.dumps({"a": 1}, 2), "not one of torch.save"),
    ):
        path.write_bytes(data)
        refused(path, said)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no model")
    refused(path, "without a single data.pkl")


@BOTH
def test_files_without_tensors(tmp_path: Path, write: Write) -> None:
    refused(write(tmp_path / "a.pth", {"epoch": 3, "loss": 0.5}), "holds no tensors", "epoch, loss")
    module = call("models.networks.resnet", "PoseResNet")
    refused(write(tmp_path / "b.pth", module), "Python object of models.networks.resnet.PoseResNet")
    refused(write(tmp_path / "c.pth", {"state_dict": {}}), "holds no tensors")


def test_files_of_torch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is no dependency")
    values = {name: torch.from_numpy(value) for name, value in weights().items()}
    strided = values["conv.weight"].permute(1, 2, 3, 0)
    expected = {
        **weights(),
        "strided": weights()["conv.weight"].transpose(1, 2, 3, 0),
        "parameter": weights()["bn.bias"],
    }
    saved = {**values, "strided": strided, "parameter": torch.nn.Parameter(values["bn.bias"])}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save({"state_dict": saved, "epoch": 1}, path, _use_new_zipfile_serialization=zipped)
        equal(read_checkpoint(path).tensors, expected)
