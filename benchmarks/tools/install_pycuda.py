"""Builds and installs PyCUDA on a machine without a CUDA toolkit: `python benchmarks/tools/install_pycuda.py`.

PyCUDA has no wheels. It needs a C++ compiler, NVIDIA's headers, which come from the wheels of the extra `gpu` and
`nvidia-cuda-profiler-api`, and a libcuda to link against, for which a hollow one serves: the real one comes with the
driver and is looked up when PyCUDA is imported.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from centernet_trt.errors import CenterNetError, CudaError

PYCUDA = "pycuda>=2026.1,<2027"
PROFILER_HEADERS = "nvidia-cuda-profiler-api>=13.0,<14"
_HEADERS = ("cuda.h", "cudaProfiler.h")


def install_pycuda(target: Path | None = None) -> None:
    """Build PyCUDA and install it into this Python, unless it is there, or into the folder `target`. It takes minutes.

    Raises:
        CudaError: no compiler, no headers, no source, or a build that failed; the hint says what to install.
    """
    if target is None and importlib.util.find_spec("pycuda") is not None:
        return
    compiler = shutil.which("g++")
    if compiler is None:
        raise CudaError(
            "PyCUDA is compiled when it is installed, and there is no g++ here",
            "install a C++ compiler (Debian, Ubuntu: apt install g++), or do without: the wheels of the extra `gpu` suffice",
        )
    _pip("install", PROFILER_HEADERS, what="the header cudaProfiler.h")
    folders = header_folders()
    with tempfile.TemporaryDirectory() as scratch:
        source = _download(Path(scratch))
        stub = _linker_stub(compiler, Path(scratch) / "stub", folders)
        settings = {
            "CUDA_ROOT": str(folders[0].parent),
            "CUDA_INC_DIR": [str(folder) for folder in folders],
            "CUDADRV_LIB_DIR": [str(stub)],
            "CUDA_ENABLE_CURAND": False,  # its library is in no wheel that we need
        }
        text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (source / "siteconf.py").write_text(text)
        where = () if target is None else ("--target", str(target))
        _pip("install", *where, str(source), what="PyCUDA")


def header_folders() -> list[Path]:
    """The folders that hold cuda.h and cudaProfiler.h: of NVIDIA's wheels, else of CUDA_HOME or CUDA_PATH.

    Raises:
        CudaError: one of the headers is in none of them.
    """
    places = [
        Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    spec = importlib.util.find_spec("nvidia")
    roots = [] if spec is None else list(spec.submodule_search_locations or ())
    for root in roots:
        places += sorted(Path(root).glob("*/include"))
    found = []
    for header in _HEADERS:
        holders = [place for place in places if (place / header).is_file()]
        if not holders:
            tried = ", ".join(map(str, places)) or "nowhere"
            raise CudaError(
                f"the CUDA header {header} was not found; looked in: {tried}",
                f"install the wheels: pip install 'centernet-trt[gpu]' '{PROFILER_HEADERS}'",
            )
        found.append(holders[0])
    return list(dict.fromkeys(found))


def _download(folder: Path) -> Path:
    """PyCUDA's unpacked source."""
    # Without its dependencies, and without building it yet: its metadata says nothing that we need.
    _pip("download", "--no-deps", "--no-binary", "pycuda", "-d", str(folder), PYCUDA, what="PyCUDA's source")
    archives = list(folder.glob("pycuda-*.tar.gz"))
    if len(archives) != 1:
        raise CudaError(f"pip gave no source archive of PyCUDA, found {[a.name for a in archives]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / archives[0].name.removesuffix(".tar.gz")


def _linker_stub(compiler: str, folder: Path, headers: list[Path]) -> Path:
    """A folder with a libcuda.so named as the real one, of functions that do nothing, for the linker to look at."""
    # It must have the symbols: linkers that are set to --as-needed leave out a library that gives none.
    text = "".join(
        (place / header).read_text(errors="replace")
        for place in headers
        for header in _HEADERS
        if (place / header).is_file()
    )
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*", text)))
    folder.mkdir()
    source = folder / "stub.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    command = [compiler, "-shared", "-fPIC", "-x", "c", str(source), "-Wl,-soname,libcuda.so.1"]
    done = subprocess.run(
        [*command, "-o", str(folder / "libcuda.so")], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CudaError(
            f"g++ cannot make a shared library:\n{done.stderr[-2000:]}", "repair the compiler's installation"
        )
    return folder


def _pip(verb: str, *arguments: str, what: str) -> None:
    command = [sys.executable, "-m", "pip", verb, "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CudaError(
            f"pip could not {verb} {what}:\n{(done.stderr or done.stdout)[-3000:]}",
            "see pip's words above; without PyCUDA the product runs on the wheels of the extra `gpu`",
        )


def main() -> int:
    """Run from the command line; the exit code is 1 when it failed."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/tools/install_pycuda.py", description=install_pycuda.__doc__
    )
    parser.add_argument("--target", type=Path, help="install into this folder instead of this Python")
    try:
        install_pycuda(parser.parse_args().target)
    except CenterNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
