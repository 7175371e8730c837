"""Load and atomically write engine bundles."""

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from centernet_trt.errors import BundleError
from centernet_trt.runtime.manifest import SCHEMA, FileRecord, Manifest
from centernet_trt.runtime.presets import describe_validation

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class EngineBundle:
    """An engine bundle on disk whose files have been checked.

    Attributes:
        path: the folder.
        manifest: what `manifest.json` says: the spec, how the bundle was built, and its files.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> "EngineBundle":
        """Read a bundle and check every file's size and SHA-256 against the manifest.

        Args:
            path: the bundle's folder.

        Returns:
            The bundle; nothing is loaded onto a GPU yet.

        Raises:
            BundleError: there is no bundle, its manifest is damaged or of another schema, or a file is missing or changed.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        bundle = cls(folder, manifest)
        for record in (manifest.model, *manifest.plans, *manifest.files):
            bundle._check(record)
        return bundle

    @property
    def model_path(self) -> Path:
        """Path of the typed ONNX graph that the plans were built from."""
        return self.path / self.manifest.model.file

    def _check(self, record: FileRecord) -> None:
        path = self.path / record.file
        if path.parent != self.path or path.is_symlink():
            raise BundleError(f"the manifest of {self.path} names a file outside the bundle: {record.file!r}")
        if not path.is_file():
            raise BundleError(f"{path} is missing from the bundle", self._rebuild_hint())
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(
                f"expected {record.bytes} bytes in {path}, got {size}: it is truncated or was changed",
                self._rebuild_hint(),
            )
        if sha256_file(path) != record.sha256:
            raise BundleError(
                f"{path} was changed after it was built (SHA-256 differs)", self._rebuild_hint()
            )

    def _rebuild_hint(self) -> str:
        return f"rebuild the bundle: {self.manifest.command}"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except FileNotFoundError:
        found = "an ONNX model, not a bundle" if folder.suffix == ".onnx" else "no engine bundle"
        raise BundleError(
            f"{folder} is {found}: there is no {path}",
            "build one: centernet-trt build MODEL.onnx --spec PRESET",
        ) from None
    except NotADirectoryError:
        raise BundleError(
            f"expected a bundle's folder, got the file {folder}",
            "build one: centernet-trt build MODEL.onnx --spec PRESET",
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BundleError(f"{path} is damaged, it is not JSON: {error}", "rebuild the bundle") from None
    found_schema = data.get("schema") if isinstance(data, dict) else None
    if found_schema != SCHEMA:
        newer = isinstance(found_schema, int) and found_schema > SCHEMA
        raise BundleError(
            f"expected schema {SCHEMA} in {path}, got {found_schema!r}",
            "install a newer centernet-trt" if newer else "rebuild the bundle",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise BundleError(
            f"{path} is not valid:\n{describe_validation(error)}", "rebuild the bundle"
        ) from None


def sha256_file(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_file(path: Path) -> FileRecord:
    """Record the name, size and SHA-256 of a file."""
    return FileRecord(file=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which replaces the target when the block ends without an error.

    The exchange is one system call if the file system supports it (Linux renameat2). On an error or an interrupt the
    new folder is removed and the target stays as it was.

    Args:
        target: the bundle's folder; its parents are created.

    Raises:
        BundleError: the target holds something other than a bundle, or its parent cannot be written to.
    """
    _refuse_to_lose(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise BundleError(
            f"cannot write into {target.parent}: {error.strerror}",
            "choose another output folder with --output",
        ) from None
    try:
        work.chmod(0o755)  # mkdtemp's 0700 would hide the bundle from the service that runs it
        yield work
        for path in work.iterdir():
            _flush(path)
        _take_place(work, target)
    except OSError as error:
        raise BundleError(
            f"writing the bundle {target} failed: {error}", "the earlier bundle, if any, is unchanged"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _refuse_to_lose(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(
            f"{target} is not a folder, it will not be replaced", "choose another output folder"
        )
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise BundleError(
            f"{target} holds files but no {MANIFEST}: it is not a bundle, and will not be replaced",
            "choose another output folder, or empty it yourself",
        )


def _flush(path: Path) -> None:
    """Write a file through to the disk before the rename makes it visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(work: Path, target: Path) -> None:
    """Move `work` to `target`; afterwards `work` is what was at the target, if anything."""
    if not target.exists():
        work.rename(target)
    elif not _exchange(work, target):
        old = work.with_name(work.name.replace(".partial-", ".old-"))
        target.rename(old)
        try:
            work.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step (renameat2 with RENAME_EXCHANGE); False if that is not supported."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)
