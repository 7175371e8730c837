"""Read a checkpoint in several files by its index, such as `model.safetensors.index.json`: `open_shards`."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from centernet_trt.builder.export.files.entries import Checkpoint, Entry
from centernet_trt.errors import ModelError

__all__ = ["open_shards"]

_LARGEST_INDEX = 100 << 20  # the limit of a safetensors header, which lists the same names
_MOST_SHARDS = 1000


@contextmanager
def open_shards(
    path: Path, open_one: Callable[[Path], AbstractContextManager[Checkpoint]]
) -> Iterator[Checkpoint]:
    """Open the shards that an index names.

    Args:
        path: the index, JSON with a `weight_map`: file by name of the tensor. The files are in its folder.
        open_one: opens a shard.

    Raises:
        ModelError: not such an index, a path out of its folder, a missing shard, or a shard whose tensors are not
            those that the index says.
    """
    places = _places(path)
    shards = sorted(set(places.values()))
    files = [_inside(path, name) for name in shards]
    absent = [name for name, file in zip(shards, files, strict=True) if not file.is_file()]
    if absent:
        raise ModelError(
            f"{path}: {len(absent)} of {len(shards)} shards are missing: {', '.join(absent[:5])}",
            "put all shards into the folder of the index",
        )
    tensors: dict[str, Entry] = {}
    with ExitStack() as stack:
        for name, file in zip(shards, files, strict=True):
            found = stack.enter_context(open_one(file)).tensors
            _compare(path, name, {tensor for tensor, shard in places.items() if shard == name}, set(found))
            tensors.update(found)
        yield Checkpoint(path, "shards", tensors)


def _places(path: Path) -> dict[str, str]:
    """The shard of every tensor."""
    size = path.stat().st_size
    if size > _LARGEST_INDEX:
        raise ModelError(
            f"{path} has {size} bytes, expected an index of at most {_LARGEST_INDEX}",
            "give a checkpoint or its index",
        )
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # ValueError: JSON and Unicode, and names given twice
        raise ModelError(f"{path} is no valid JSON: {error}", "download the file again") from None
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ModelError(
            f"{path} is a JSON file without a weight_map: it is no index of a checkpoint in shards",
            "give the checkpoint, or the index beside its shards, such as model.safetensors.index.json",
        )
    if not places or len(set(places.values())) > _MOST_SHARDS:
        raise ModelError(
            f"{path}: expected 1 to {_MOST_SHARDS} shards, got {len(set(places.values()))}",
            "download the file again",
        )
    return places


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _inside(path: Path, name: str) -> Path:
    """Path of a shard: within the index's folder, as every system reads the name.

    A link that lies there is followed, since caches of downloads consist of links.
    """
    windows = PureWindowsPath(name)
    parts = windows.parts
    if not parts or ".." in parts or windows.anchor or "\\" in name or "\0" in name:
        raise ModelError(
            f"{path} names the shard {name!r}, expected a file in its folder: refused",
            "use an index from a source that you trust",
        )
    return path.parent / name


def _compare(path: Path, shard: str, wanted: set[str], found: set[str]) -> None:
    for difference, what in ((wanted - found, "lacks"), (found - wanted, "also has")):
        if difference:
            listed = ", ".join(sorted(difference)[:5])
            raise ModelError(
                f"{path}: the shard {shard} {what} {len(difference)} tensors, such as {listed}: it is not the one "
                "that the index describes",
                "download the index and all shards again",
            )
