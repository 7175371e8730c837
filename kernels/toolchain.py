"""The compilers that turn CUDA C++ into device code: NVRTC from wheels, else nvcc. Neither needs a GPU."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from centernet_trt.errors import CudaError

# No fast-math; and no contraction of a * b + c, so that a GPU and the CPU harness compute the same bits.
OPTIONS = ("--std=c++17", "--fmad=false")
Target = Literal["cubin", "ptx"]
_INSTALL = "install the wheels: pip install 'centernet-trt[gpu]'"


@dataclass(frozen=True)
class DeviceCode:
    """A compiler's result: cubin or PTX bytes, and its log with the resources of every kernel (cubin only)."""

    code: bytes
    log: str


class Toolchain(Protocol):
    """A compiler: `version` names it for the cache, `cuda_major` for the compatibility table."""

    version: str
    cuda_major: int

    def compile(self, name: str, files: Mapping[str, str], architecture: str, target: Target) -> DeviceCode:
        """Compile the file `name` of `files` (the others are its headers) for an architecture such as `sm_90`.

        Raises:
            CudaError: the compiler refused the source; its log is in the message.
        """
        ...


class Nvrtc:
    """NVRTC, by way of cuda-bindings."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs
        except ImportError as error:
            raise CudaError(f"cuda-bindings is not installed: {error}", _INSTALL) from error
        self._nvrtc: Any = nvrtc
        try:
            status, major, minor = nvrtc.nvrtcVersion()
        except RuntimeError as error:  # or a type of the binding's own
            raise CudaError(f"the NVRTC library could not be loaded: {error}", _INSTALL) from error
        _check_status(status, "nvrtcVersion")
        self.cuda_major = int(major)
        self._headers = find_headers(self.cuda_major)
        self.version = f"nvrtc {major}.{minor} headers {_header_version(self._headers)}"

    def compile(self, name: str, files: Mapping[str, str], architecture: str, target: Target) -> DeviceCode:
        """Compile; see Toolchain."""
        nvrtc = self._nvrtc
        headers = {key.encode(): text.encode() for key, text in files.items() if key != name}
        status, program = nvrtc.nvrtcCreateProgram(
            files[name].encode(), name.encode(), len(headers), list(headers.values()), list(headers)
        )
        _check_status(status, "nvrtcCreateProgram")
        try:
            virtual = architecture.replace("sm_", "compute_") if target == "ptx" else architecture
            options = [*OPTIONS, f"--gpu-architecture={virtual}", f"--include-path={self._headers}"]
            if target == "cubin":
                options.append("--ptxas-options=-v")
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
            log = self._text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
            if int(status) != 0:
                raise CudaError(
                    f"NVRTC refused {name} for {architecture} ({status.name}):\n{log}",
                    "this is a fault of the product or of its CUDA wheels: report it with this log",
                )
            if target == "ptx":
                size, read = nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX
            else:
                size, read = nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN
            return DeviceCode(self._bytes(program, size, read), log)
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _bytes(self, program: Any, size: Any, read: Any) -> bytes:
        status, length = size(program)
        _check_status(status, "NVRTC result size")
        content = bytes(length)  # the binding writes into it
        (status,) = read(program, content)
        _check_status(status, "NVRTC result")
        return content

    def _text(self, program: Any, size: Any, read: Any) -> str:
        return self._bytes(program, size, read).rstrip(b"\0").decode(errors="replace").strip()


class Nvcc:
    """An installed CUDA toolkit's nvcc, for machines without the wheels."""

    def __init__(self) -> None:
        path = shutil.which("nvcc")
        if path is None:
            raise CudaError("neither NVRTC nor nvcc was found", _INSTALL)
        self._path = path
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"release (\d+)\.(\d+), V([\d.]+)", told)
        if found is None:
            raise CudaError(f"{path} --version tells no release: {told[:200]!r}", _INSTALL)
        self.cuda_major = int(found[1])
        self.version = f"nvcc {found[3]}"

    def compile(self, name: str, files: Mapping[str, str], architecture: str, target: Target) -> DeviceCode:
        """Compile; see Toolchain."""
        with tempfile.TemporaryDirectory() as folder:
            for file, text in files.items():
                Path(folder, file).write_text(text)
            out = Path(folder, "out")
            arch = architecture.replace("sm_", "compute_") if target == "ptx" else architecture
            command = [self._path, *OPTIONS, f"--{target}", f"-arch={arch}", name, "-o", str(out)]
            if target == "cubin":
                command.append("--ptxas-options=-v")
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CudaError(
                    f"nvcc refused {name} for {architecture}:\n{done.stderr}{done.stdout}",
                    "this is a fault of the product or of the toolkit: report it with this log",
                )
            return DeviceCode(out.read_bytes(), done.stderr.strip())


def find_toolchain() -> Toolchain:
    """NVRTC where its wheels are installed, else nvcc.

    Raises:
        CudaError: there is neither.
    """
    try:
        return Nvrtc()
    except CudaError as first:
        try:
            return Nvcc()
        except CudaError as second:
            raise CudaError(f"{second.message}; {first.message}", first.hint) from first


def find_headers(cuda_major: int) -> Path:
    """The folder of cuda_fp16.h: from the wheel `nvidia-cuda-runtime`, else from CUDA_HOME or CUDA_PATH.

    Raises:
        CudaError: it is in none of them.
    """
    places = []
    try:
        import nvidia
    except ImportError:
        pass
    else:
        for root in nvidia.__path__:
            places += [Path(root, f"cu{cuda_major}", "include"), Path(root, "cuda_runtime", "include")]
    places += [
        Path(os.environ[name], "include") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    for place in places:
        if (place / "cuda_fp16.h").is_file():
            return place
    tried = ", ".join(map(str, places)) or "nowhere"
    raise CudaError(f"the CUDA header cuda_fp16.h was not found; looked in: {tried}", _INSTALL)


def _header_version(folder: Path) -> str:
    header = folder / "cuda.h"
    found = (
        re.search(r"#define CUDA_VERSION (\d+)", header.read_text(errors="replace"))
        if header.is_file()
        else None
    )
    return found[1] if found else "unknown"


def _check_status(status: Any, call: str) -> None:
    if int(status) != 0:
        raise CudaError(f"{call} failed: {status.name}", _INSTALL)
