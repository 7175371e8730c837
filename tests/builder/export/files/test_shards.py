"""Checkpoints in several files: the index, its shards, and indices that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoints import Array, equal, parts, refused, save_safetensors, select, weights
from helpers.pth_writer import write_pth

from centernet_trt.errors import ModelError

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_shards(folder: Path, prefix: str = "") -> tuple[Path, dict[str, str], dict[str, Array]]:
    """A checkpoint in two shards: its index, where each tensor is, and the tensors without their prefix."""
    values = {name: value for name, value in weights().items() if value.dtype == np.float32}
    places = {prefix + name: shard for name, shard in zip(values, NAMES, strict=True)}
    for (name, value), shard in zip(values.items(), NAMES, strict=True):
        save_safetensors(folder / shard, {prefix + name: ("F32", value)})
    return index(folder, places), places, values


def index(folder: Path, places: Any, name: str = "model.safetensors.index.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 448}, "weight_map": places}, indent=2))
    return path


@pytest.mark.parametrize("prefix", ["", "net."])
def test_the_index_gives_the_whole_checkpoint(tmp_path: Path, prefix: str) -> None:
    path, _, values = write_shards(tmp_path, prefix)
    selected = select(path, values)
    equal(selected.tensors, values)
    assert selected.prefix == prefix


def test_shards_of_torch_and_in_a_folder_below(tmp_path: Path) -> None:
    values = {name: value for name, value in weights().items() if value.dtype == np.float32}
    (tmp_path / "parts").mkdir()
    places = {}
    for number, (name, value) in enumerate(values.items()):
        write_pth(tmp_path / "parts" / f"{number}.bin", parts({name: value}))
        places[name] = f"parts/{number}.bin"
    equal(select(index(tmp_path, places, "pytorch_model.bin.index.json"), values).tensors, values)


def test_one_shard_and_the_folder_lead_to_the_index(tmp_path: Path) -> None:
    path, _, values = write_shards(tmp_path)
    assert str(path) in refused(tmp_path, "is a folder").hint
    with pytest.raises(ModelError, match="is one of 2 shards") as caught:
        select(tmp_path / NAMES[0], values)
    assert str(path) in caught.value.hint
    path.unlink()
    with pytest.raises(ModelError, match="is one of 2 shards") as caught:
        select(tmp_path / NAMES[0], values)
    assert "model.safetensors.index.json" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "a/../../model.safetensors",
        "/etc/passwd",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "..\\model.safetensors",
        "//host/share/model.safetensors",
        "",
        ".",
        "..",
        "a\0b",
    ],
)
def test_paths_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path, places, _ = write_shards(folder)
    (folder / NAMES[0]).rename(tmp_path / "model.safetensors")
    refused(
        index(folder, {tensor: name if shard == NAMES[0] else shard for tensor, shard in places.items()}),
        "refused",
    )
    assert path.is_file()


def test_every_shard_is_checked(tmp_path: Path) -> None:
    path, places, _ = write_shards(tmp_path)
    first, second = places
    refused(index(tmp_path, {**places, "more.weight": NAMES[1]}), "lacks 1 tensors, such as more.weight")
    refused(index(tmp_path, {first: NAMES[0], second: NAMES[0]}), "lacks 1 tensors")
    save_safetensors(tmp_path / NAMES[1], {n: ("F32", np.ones(4, np.float32)) for n in (second, "stray")})
    refused(index(tmp_path, places), f"{NAMES[1]} also has 1 tensors, such as stray")
    (tmp_path / NAMES[1]).write_bytes((tmp_path / NAMES[1]).read_bytes()[:-3])
    refused(path, NAMES[1], "truncated or damaged")
    (tmp_path / NAMES[1]).unlink()
    refused(path, f"1 of 2 shards are missing: {NAMES[1]}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"architectures": ["x"]}', "without a weight_map"),
        ('{"weight_map": []}', "without a weight_map"),
        ('{"weight_map": {"a": 3}}', "without a weight_map"),
        ('{"weight_map": {}}', "expected 1 to 1000 shards, got 0"),
        (json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(1001)}}), "got 1001"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "given twice"),
        ('{"weight_map": ', "no valid JSON"),
        ('{"a":' * 100_000, "no valid JSON"),
    ],
)
def test_indices_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    refused(path, said)


def test_an_index_that_names_an_index_is_no_loop(tmp_path: Path) -> None:
    refused(index(tmp_path, {"a": "model.safetensors.index.json"}), "has no known checkpoint format")
