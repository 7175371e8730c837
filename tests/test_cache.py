"""Files that are written whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from centernet_trt.cache import atomic_write, cache_dir, read_checked, write_checked


def test_the_folder_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CENTERNET_TRT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "centernet-trt"
    monkeypatch.setenv("CENTERNET_TRT_CACHE", "~/own")
    assert cache_dir() == Path.home() / "own"


def test_bytes_or_a_writer(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", b"bytes")
    atomic_write(tmp_path / "b", lambda part: part.write_bytes(b"writer"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"bytes", "b": b"writer"}


def test_the_folder_is_made_only_where_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "new" / "a", b"")
    atomic_write(tmp_path / "new" / "a", b"", parents=True)


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    atomic_write(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("dies", ["writing", "replacing", "interrupted"])
def test_a_write_that_dies_leaves_the_old_file_alone(
    tmp_path: Path, dies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    error = KeyboardInterrupt() if dies == "interrupted" else OSError(28, "No space left on device")

    def write(part: Path) -> None:
        part.write_bytes(b"ne")
        if dies != "replacing":
            raise error

    def refuse(source: object, target: object) -> None:
        raise error

    if dies == "replacing":
        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_and_readers(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([number]) * 10000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for content in contents:
            pool.submit(write_checked, path, content)
        found = list(pool.map(lambda _: read_checked(path), range(40)))
    assert set(found) <= {None, *contents}
    assert read_checked(path) in contents
    assert list(tmp_path.iterdir()) == [path]


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a"
    assert read_checked(path) is None
    write_checked(path, b"content")
    assert read_checked(path) == b"content"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:10], whole + b"x", b"x" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="does not have the recorded hash"):
            read_checked(path)
