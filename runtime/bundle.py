"""EngineBundle: the folder that a build leaves and a detector loads.

`manifest.json` says what everything else is; `model.onnx` is the typed graph that was compiled; each `*.plan` is
TensorRT's own file; `layers.json` lists the layers. Reading checks the manifest first, then every file it names.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from centernet_trt.errors import BundleError
from centernet_trt.runtime.manifest import SCHEMA, FileRecord, Manifest
from centernet_trt.runtime.presets import describe_validation

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class EngineBundle:
    """A checked bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: str | Path) -> "EngineBundle":
        """Read a bundle and hold every file to the manifest's size and SHA-256.

        Raises:
            BundleError: no bundle there, a manifest that is damaged or of another schema, a file missing or changed.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        bundle = cls(folder, manifest)
        for record in (manifest.model, *manifest.plans, *manifest.files):
            bundle._check(record)
        return bundle

    @property
    def model_path(self) -> Path:
        """The typed ONNX graph."""
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
                f"{path} has {size} bytes, the manifest says {record.bytes}: it is truncated or was changed",
                self._rebuild_hint(),
            )
        if sha256_of(path) != record.sha256:
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
            f"{folder} is a file, a bundle's folder was expected",
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
            f"{path} has schema {found_schema!r}, this version reads schema {SCHEMA}",
            "install a newer centernet-trt" if newer else "rebuild the bundle",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise BundleError(
            f"{path} is not valid:\n{describe_validation(error)}", "rebuild the bundle"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_file(path: Path) -> FileRecord:
    """Name, size and SHA-256 of a file."""
    return FileRecord(file=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
