"""What is built is whole, from a tree with or without links, and works where it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
from helpers.tiny_centernet import save_tiny_model, scene, tiny_spec

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "centernet_trt"
NOT_PACKAGED = {"benchmarks", "docs", "tests"}
FOLDERS = sorted(
    path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name not in NOT_PACKAGED
)
NOT_COPIED = (
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    ".device",
    "build",
    "dist",
    "demo",
    "*.egg-info",
    "__pycache__",
)
DATA = {".cu", ".cuh", ".toml", ".jpg"}

BUILD = """
import sys
from setuptools import build_meta
output = sys.argv[1]  # setuptools replaces the arguments
print(build_meta.build_sdist(output), build_meta.build_wheel(output))
"""


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path

    @property
    def in_wheel(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return sorted(name for name in archive.namelist() if ".dist-info/" not in name)

    @property
    def in_sdist(self) -> list[tarfile.TarInfo]:
        with tarfile.open(self.sdist) as archive:
            return archive.getmembers()


def run(*command: str | Path, cwd: Path, path: tuple[Path, ...] = ()) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, output: Path) -> Built:
    output.mkdir()
    run(sys.executable, "-c", BUILD, output, cwd=source)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository without any link, as a zip archive of it unpacks."""
    copy = tmp_path_factory.mktemp("tree") / "copy"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for path in copy.rglob("*"):
        if path.is_symlink():
            path.unlink()
    return copy


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tree, tmp_path_factory.mktemp("without") / "out")


def expected() -> list[str]:
    """The files of the wheel: those of the real folders, under their import name."""
    files = {path: "centernet_trt" / path.relative_to(PACKAGE) for path in PACKAGE.glob("*.py")}
    for folder in FOLDERS:
        sources = (ROOT / folder).rglob("*.py")
        data = (path for path in (ROOT / folder).iterdir() if path.suffix in DATA)
        files |= {path: "centernet_trt" / path.relative_to(ROOT) for path in (*sources, *data)}
    return sorted(["centernet_trt/py.typed", *(path.as_posix() for path in files.values())])


@pytest.mark.skipif(
    not any(map(Path.is_symlink, PACKAGE.iterdir())), reason="this tree was unpacked without links"
)
def test_there_is_a_link_for_each_folder() -> None:
    links = {path.name: os.readlink(path) for path in PACKAGE.iterdir() if path.is_symlink()}
    assert links == {name: f"../../{name}" for name in FOLDERS}


def test_the_wheel_has_every_file_once(built: Built) -> None:
    assert {"builder", "cli", "kernels", "runtime"} <= set(FOLDERS)
    assert built.in_wheel == expected()


def test_links_change_nothing(built: Built, tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name in FOLDERS:
        (copy / "src" / "centernet_trt" / name).symlink_to(f"../../{name}")
    linked = build(copy, tmp_path / "out")
    assert linked.in_wheel == built.in_wheel
    assert sorted(m.name for m in linked.in_sdist) == sorted(m.name for m in built.in_sdist)
    assert all(member.isfile() or member.isdir() for member in linked.in_sdist)


def test_the_source_distribution_has_what_its_tests_read(built: Built, tmp_path: Path) -> None:
    assert all(member.isfile() or member.isdir() for member in built.in_sdist)
    names = {member.name.partition("/")[2] for member in built.in_sdist if member.isfile()}
    for folder in (*FOLDERS, "tests", "docs", "benchmarks"):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        if folder == "engines":  # built bundles lie beside the recipes
            files = {name for name in files if name.count("/") == 1}
        assert files <= names, f"missing: {sorted(files - names)[:5]}"
    assert {"Makefile", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "pyproject.toml", "setup.py"} <= names
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert build(unpacked, tmp_path / "out").in_wheel == built.in_wheel


USE = """
import sys
from importlib.metadata import distribution
from pathlib import Path

import cv2

from centernet_trt import BuildOptions, Detector, build
from centernet_trt.builder.recipe import read_recipe
from centernet_trt.calib_data import sample_images
from centernet_trt.kernels.compile import PROGRAMS, sources
from centernet_trt.runtime import read_spec
from centernet_trt.runtime.manifest import ShapeRange

model, spec, picture, output = map(Path, sys.argv[1:])
size = ShapeRange(min=32, opt=64, max=128)
build(model, read_spec(str(spec)), output, BuildOptions(flavour="none", precision="fp32", height=size, width=size))
with Detector.load(output, backend="onnxruntime") as detector:
    print(len(detector.detect(cv2.imread(str(picture)), threshold=0.5)))
assert all(sources(program) for program in PROGRAMS)
assert all(image.path.is_file() for image in sample_images())
read_recipe("centerface")
installed = distribution("centernet-trt")
(command,) = installed.entry_points
command.load()
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "centernet_trt":
        print(module.__file__)
"""


def test_the_wheel_builds_and_detects_where_it_is_installed(built: Built, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    run(*pip, "--target", target, built.wheel, cwd=elsewhere)
    model = save_tiny_model(tmp_path)
    spec, picture = tmp_path / "spec.json", tmp_path / "scene.png"
    spec.write_text(tiny_spec().model_dump_json())
    cv2.imwrite(str(picture), scene())
    # -S: an editable installation of this repository, which site-packages may have, would fill what the wheel lacks.
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    told = run(
        sys.executable,
        "-S",
        "-c",
        USE,
        model,
        spec,
        picture,
        tmp_path / "bundle",
        cwd=elsewhere,
        path=(target, *packages),
    )
    found, *files = told.splitlines()
    assert found == "1"
    assert len(files) > 20
    assert all(Path(file).is_relative_to(target) for file in files)
