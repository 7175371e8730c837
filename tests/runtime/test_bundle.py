"""Bundles on disk: what reading refuses, and that writing loses nothing."""

import json
import os
from pathlib import Path

import pytest
from helpers.tiny_bundle import write_tiny_bundle

from centernet_trt.errors import BundleError
from centernet_trt.runtime import bundle as bundle_writer
from centernet_trt.runtime.bundle import EngineBundle, replacing_folder


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    read = EngineBundle.load(tmp_path / "b")
    assert read.manifest == bundle.manifest
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["schema"] == 1


def test_the_empty_accuracy_list_of_earlier_bundles(tmp_path: Path) -> None:
    """It is read and not written; figures in it were never written by any version, and are refused."""
    bundle = write_tiny_bundle(tmp_path / "b")
    path = bundle.path / "manifest.json"
    data = json.loads(path.read_text())
    assert "accuracy" not in data
    path.write_text(json.dumps(data | {"accuracy": []}))
    old = EngineBundle.load(bundle.path).manifest
    assert old == bundle.manifest
    assert json.loads(old.to_json()) == data
    path.write_text(json.dumps(data | {"accuracy": [{"metric": "AP"}]}))
    with pytest.raises(BundleError, match="accuracy"):
        EngineBundle.load(bundle.path)


def test_every_damage_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_tiny_bundle(folder)
    model, manifest = folder / "model.onnx", folder / "manifest.json"
    good = model.read_bytes(), manifest.read_text()

    def refused(words: str) -> None:
        with pytest.raises(BundleError, match=words) as error:
            EngineBundle.load(folder)
        assert error.value.hint
        model.write_bytes(good[0])
        manifest.write_text(good[1])

    model.write_bytes(good[0][:-1])
    refused(r"expected \d+ bytes in .*model.onnx, got")
    model.write_bytes(good[0][:-1] + bytes([good[0][-1] ^ 1]))
    refused("changed after it was built")
    model.unlink()
    refused("model.onnx is missing")
    manifest.write_text(good[1][:100])
    refused("damaged")
    manifest.write_text(good[1].replace('"schema": 1', '"schema": 2'))
    refused("expected schema 1 in .*, got 2")
    manifest.write_text("[]")
    refused("expected schema 1 in .*, got None")
    manifest.write_text(good[1].replace('"precision"', '"precison"'))
    refused("precison")
    manifest.unlink()
    refused("no engine bundle")
    EngineBundle.load(folder)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("absent", "file", "model.onnx"):
        with pytest.raises(BundleError) as error:
            EngineBundle.load(tmp_path / path)
        assert "centernet-trt build" in error.value.hint


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_tiny_bundle(folder)
    manifest = folder / "manifest.json"
    data = json.loads(manifest.read_text())
    data["model"]["file"] = "../secret"
    manifest.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="outside the bundle"):
        EngineBundle.load(folder)


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_replacing_is_all_or_nothing(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(bundle_writer, "_exchange", lambda a, b: False)
    target = tmp_path / "b"
    write_tiny_bundle(target)
    before = (target / "manifest.json").read_bytes()
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), replacing_folder(target) as folder:
            (folder / "manifest.json").write_text("half")
            raise error
        assert (target / "manifest.json").read_bytes() == before
    with replacing_folder(target) as folder:
        (folder / "manifest.json").write_text("new")
        assert (target / "manifest.json").read_bytes() == before
    assert (target / "manifest.json").read_text() == "new"
    assert not (target / "model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_failed_second_rename_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "_exchange", lambda a, b: False)
    target = tmp_path / "b"
    write_tiny_bundle(target)
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(BundleError, match="No space left"), replacing_folder(target) as folder:
        (folder / "manifest.json").write_text("new")
    EngineBundle.load(target)


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "a.jpg").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(mine)
    for name in ("photos", "file", "link"):
        with pytest.raises(BundleError, match="will not be replaced"), replacing_folder(tmp_path / name):
            raise AssertionError("must not be entered")
    assert (mine / "a.jpg").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: file permissions stop nobody")
def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="Permission denied"), replacing_folder(tmp_path / "b"):
            raise AssertionError("must not be entered")
    finally:
        tmp_path.chmod(0o700)


def test_a_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot write into"), replacing_folder(tmp_path / "file" / "b"):
        raise AssertionError("must not be entered")
