"""Checkpoints of every format: what is read, and what is refused."""

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import (
    BOTH,
    Array,
    Write,
    equal,
    parts,
    read_checkpoint,
    refused,
    save_safetensors,
    select,
    weights,
)
from helpers.pth_writer import call, write_legacy, write_pth

from centernet_trt.errors import ModelError


@BOTH
def test_a_state_dict(tmp_path: Path, write: Write) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "a.pth", parts(weights())))
    equal(checkpoint.tensors, weights())
    assert checkpoint.format == "torch"
    assert checkpoint.folder == ""


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
    selected = select(write(tmp_path / "a.pth", value), weights())
    equal(selected.tensors, weights())
    assert selected.prefix == f"{wrapper}.{prefix}"


def test_a_prefix_of_some_names_is_part_of_them(tmp_path: Path) -> None:
    values = {"module.a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    selected = select(write_pth(tmp_path / "a.pth", parts(values)), values)
    equal(selected.tensors, values)
    assert selected.prefix == ""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **weights())
    checkpoint = read_checkpoint(tmp_path / "a.npz")
    equal(checkpoint.tensors, weights())
    assert checkpoint.format == "npz"


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = {"w": np.zeros(4 << 20, np.float32)}
    refused(write_pth_compressed(tmp_path / "a.pth", zeros), "compressed", "refused")
    np.savez_compressed(tmp_path / "a.npz", **zeros)
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    refused(tmp_path / "a.npz", "would unpack to 16777", "refused")


def write_pth_compressed(path: Path, values: dict[str, Array]) -> Path:
    return write_pth(path, parts(values), compress=True)


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


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"\x08\x09\x12\x07pytorch", "ONNX"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x08\x01\x12\x07saved", "TensorFlow SavedModel"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"model_checkpoint_path: 'x'", "TensorFlow checkpoint"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x93NUMPY\x01", "one NumPy array"),
        (b"BZh9", "bzip2"),
        (b'{"a": 1}', "without a weight_map"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"what is this, then", "has no known checkpoint format"),
        (pickle.dumps({"a": 1}, 2), "not one of torch.save"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    refused(path, said)


def test_no_file_a_folder_and_another_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    refused(path, "there is no file")
    refused(tmp_path, "is a folder")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no model")
    refused(path, "with 0 data.pkl, expected one")


@BOTH
def test_files_without_tensors(tmp_path: Path, write: Write) -> None:
    refused(write(tmp_path / "a.pth", {"epoch": 3, "loss": 0.5}), "expected tensors, got epoch, loss")
    module = call("models.networks.resnet", "PoseResNet")
    refused(
        write(tmp_path / "b.pth", module),
        "expected a state_dict, got a Python object of models.networks.resnet.PoseResNet",
    )
    refused(write(tmp_path / "c.pth", {"state_dict": {}}), "c.pth: expected tensors, got state_dict (empty)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.pdiparams", "Paddle weights of an exported network"),
        ("a.pdmodel", "a Paddle network"),
        ("a.ckpt.index", "the index of a TensorFlow checkpoint"),
        ("a.ckpt.data-00000-of-00001", "the data of a TensorFlow checkpoint"),
        ("frozen.pb", "a TensorFlow graph"),
    ],
)
def test_formats_without_a_beginning_of_their_own(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(64))
    assert "ONNX" in refused(path, said).hint


@pytest.mark.parametrize(
    ("members", "said", "hint"),
    [
        (
            ["a/data.pkl", "a/code/__torch__.py", "a/constants.pkl", "a/data/0"],
            "TorchScript",
            "torch.jit.load",
        ),
        (["a/archive_format", "a/models/model.json"], "torch.export", "torch.export.load"),
        (["config.json", "metadata.json", "model.weights.h5"], "Keras", "tf2onnx"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_other_tools(
    tmp_path: Path, members: list[str], said: str, hint: str, method: int
) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", method) as archive:
        for member in members:
            archive.writestr(member, b"x" * 1000)
    assert hint in refused(path, said).hint


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {"conv.weight": np.ones(3, np.float32)}
    for name, value, said, hint in (
        ("a.pdparams", arrays, "Paddle weights", "paddle2onnx"),
        ("a.pkl", {**arrays, "StructuredToParameterName@@": {}}, "Paddle weights", "paddle2onnx"),
        ("b.pkl", {"model": arrays}, "a Python pickle of NumPy arrays", "numpy.savez"),
    ):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(value, protocol))
        assert hint in refused(path, said).hint


def test_a_tensorflow_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    assert "tf2onnx" in refused(tmp_path, "is a folder").hint
