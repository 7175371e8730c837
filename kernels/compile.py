"""compile_module: compile the CUDA sources by NVRTC or nvcc, and cache the cubins."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from centernet_trt.cache import read_checked, write_checked
from centernet_trt.errors import CudaError

# Compiled for in the tests; other architectures of the same compiler work, too, but are not in the resource table.
TESTED_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA major version.

    Attributes:
        major: of the compiler.
        driver: oldest Linux driver that loads its cubins.
        oldest_architecture: oldest GPU that it compiles for, as 10 * major + minor of the compute capability.
    """

    major: int
    driver: str
    oldest_architecture: int


CUDA_RELEASES = (
    CudaRelease(major=12, driver="525.60.13", oldest_architecture=50),
    CudaRelease(major=13, driver="580.65.06", oldest_architecture=75),
)


def sm_name(major: int, minor: int) -> str:
    """Return the compiler's name of a compute capability: (9, 0) -> sm_90."""
    return f"sm_{major}{minor}"


def check_driver(driver_version: int, cuda_major: int) -> None:
    """Check that the driver loads the cubins of a compiler.

    Args:
        driver_version: from cuDriverGetVersion, 1000 * major + 10 * minor.
        cuda_major: CUDA major version of the compiler.

    Raises:
        CudaError: the driver is too old, or the CUDA version unknown.
    """
    release = _release(cuda_major)
    if driver_version // 1000 < cuda_major:
        raise CudaError(
            f"the NVIDIA driver supports CUDA {driver_version // 1000}.{driver_version % 1000 // 10}, the kernels are "
            f"compiled with CUDA {cuda_major}",
            f"install driver {release.driver} or newer",
        )


def check_architecture(architecture: str, cuda_major: int) -> None:
    """Check that a compiler supports a GPU architecture.

    Raises:
        CudaError: the architecture is not of the form `sm_NN`, or older than the compiler's oldest.
    """
    digits = architecture.removeprefix("sm_").removesuffix("a").removesuffix("f")
    if not architecture.startswith("sm_") or not digits.isdigit():
        raise CudaError(f"expected a GPU architecture as sm_NN, such as sm_90, got {architecture!r}")
    oldest = _release(cuda_major).oldest_architecture
    if int(digits) < oldest:
        raise CudaError(
            f"CUDA {cuda_major} does not compile for {architecture}; the oldest is sm_{oldest}",
            "run on a Turing GPU or newer",
        )


def _release(cuda_major: int) -> CudaRelease:
    for release in CUDA_RELEASES:
        if release.major == cuda_major:
            return release
    known = ", ".join(str(release.major) for release in CUDA_RELEASES)
    raise CudaError(f"CUDA {cuda_major} is not supported: expected CUDA {known}", "update centernet-trt")


# No fast-math, and no contraction of a * b + c, so that a GPU and the CPU harness of the tests compute the same bits.
OPTIONS = ("--std=c++17", "--fmad=false")
Target = Literal["cubin", "ptx"]
_INSTALL = "install the wheels: pip install 'centernet-trt[gpu]'"


@dataclass(frozen=True)
class DeviceCode:
    """Output of a compiler.

    Attributes:
        code: cubin or PTX.
        log: of the compiler; for a cubin, with the resources of every kernel.
    """

    code: bytes
    log: str


class Toolchain(Protocol):
    """A compiler.

    Attributes:
        version: name and version, part of the cache key.
        cuda_major: CUDA major version, for the compatibility table.
    """

    version: str
    cuda_major: int

    def compile(self, name: str, files: Mapping[str, str], architecture: str, target: Target) -> DeviceCode:
        """Compile a source.

        Args:
            name: of the source to compile, a key of `files`.
            files: sources and headers by file name.
            architecture: of the device, such as `sm_90`.
            target: kind of output.

        Raises:
            CudaError: the source does not compile; the compiler's log is in the message.
        """
        ...


class Nvrtc:
    """NVRTC, by cuda-bindings."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs
        except ImportError as error:
            raise CudaError(f"cuda-bindings is not installed: {error}", _INSTALL) from error
        self._nvrtc: Any = nvrtc
        try:
            status, major, minor = nvrtc.nvrtcVersion()
        except RuntimeError as error:  # or a subclass of the package
            raise CudaError(f"the NVRTC library cannot be loaded: {error}", _INSTALL) from error
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
                    f"NVRTC cannot compile {name} for {architecture} ({status.name}):\n{log}",
                    "this is a bug of centernet-trt or of the CUDA wheels: report it with this log",
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
        content = bytes(length)  # written by the call below
        (status,) = read(program, content)
        _check_status(status, "NVRTC result")
        return content

    def _text(self, program: Any, size: Any, read: Any) -> str:
        return self._bytes(program, size, read).rstrip(b"\0").decode(errors="replace").strip()


class Nvcc:
    """nvcc of an installed CUDA toolkit, for machines without the wheels."""

    def __init__(self) -> None:
        path = shutil.which("nvcc")
        if path is None:
            raise CudaError("neither NVRTC nor nvcc was found", _INSTALL)
        self._path = path
        output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"release (\d+)\.(\d+), V([\d.]+)", output)
        if found is None:
            raise CudaError(
                f"expected a release in the output of {path} --version, got {output[:200]!r}", _INSTALL
            )
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
                    f"nvcc cannot compile {name} for {architecture}:\n{done.stderr}{done.stdout}",
                    "this is a bug of centernet-trt or of the CUDA toolkit: report it with this log",
                )
            return DeviceCode(out.read_bytes(), done.stderr.strip())


def find_toolchain() -> Toolchain:
    """Return NVRTC if its wheels are installed, else nvcc.

    Raises:
        CudaError: neither is installed.
    """
    try:
        return Nvrtc()
    except CudaError as first:
        try:
            return Nvcc()
        except CudaError as second:
            raise CudaError(f"{second.message}; {first.message}", first.hint) from first


def find_headers(cuda_major: int) -> Path:
    """Return the folder of cuda_fp16.h: of the wheel `nvidia-cuda-runtime`, else below CUDA_HOME or CUDA_PATH.

    Raises:
        CudaError: the header is in none of them.
    """
    folders = []
    try:
        import nvidia
    except ImportError:
        pass
    else:
        for root in nvidia.__path__:
            folders += [Path(root, f"cu{cuda_major}", "include"), Path(root, "cuda_runtime", "include")]
    folders += [
        Path(os.environ[name], "include") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)
    ]
    for folder in folders:
        if (folder / "cuda_fp16.h").is_file():
            return folder
    searched = ", ".join(map(str, folders)) or "no folder"
    raise CudaError(f"the CUDA header cuda_fp16.h was not found; searched {searched}", _INSTALL)


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


Program = Literal["decode", "preprocess"]
PROGRAMS: tuple[Program, ...] = ("decode", "preprocess")
_FORMAT = 3
_ELF = b"\x7fELF"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelModule:
    """A cubin for one architecture, and how it was compiled."""

    program: str
    architecture: str
    compiler: str
    options: tuple[str, ...]
    cubin: bytes


def sources(program: Program, folder: Path | None = None) -> dict[str, str]:
    """Return the program's .cu file and all headers, by file name, from `folder`, by default the package's."""
    folder = folder or Path(__file__).parent
    files = [folder / f"{program}.cu", *sorted(folder.glob("*.cuh"))]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def compile_module(
    program: Program,
    architecture: str,
    cache: Path | None,
    toolchain: Toolchain | None = None,
    files: Mapping[str, str] | None = None,
) -> KernelModule:
    """Return the program's cubin from the cache, else compile it (about a second) and cache it.

    Args:
        program: `decode` or `preprocess`.
        architecture: of the device, such as `sm_90`.
        cache: folder of cubins, created if missing; None for no cache.
        toolchain: the compiler; None for `find_toolchain()`.
        files: sources by file name; None for the package's.

    Raises:
        CudaError: no compiler, an unsupported architecture, or a source that does not compile.
    """
    toolchain = toolchain or find_toolchain()
    check_architecture(architecture, toolchain.cuda_major)
    files = files or sources(program)
    entry = None
    if cache is not None:
        entry = (
            cache / f"{program}-{architecture}-{_key(program, architecture, toolchain.version, files)}.cubin"
        )
        found = _read(entry)
        if found is not None:
            return found
    made = toolchain.compile(f"{program}.cu", files, architecture, "cubin")
    if not made.code.startswith(_ELF):
        raise CudaError(f"{toolchain.version} made no cubin of {program}.cu:\n{made.log}")
    module = KernelModule(program, architecture, toolchain.version, OPTIONS, made.code)
    if entry is not None:
        _write(entry, module)
    return module


def _key(program: str, architecture: str, compiler: str, files: Mapping[str, str]) -> str:
    content = json.dumps([_FORMAT, program, architecture, compiler, OPTIONS, sorted(files.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _read(entry: Path) -> KernelModule | None:
    """Read a cache entry; None if it is missing or damaged."""
    try:
        content = read_checked(entry)
        if content is None:
            return None
        head, _, cubin = content.partition(b"\n")
        record = json.loads(head)
        record["options"] = tuple(record["options"])
        return KernelModule(cubin=cubin, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the cached kernel %s is damaged (%s); recompiling it", entry, error)
        return None


def _write(entry: Path, module: KernelModule) -> None:
    """Write a cache entry; an unwritable folder costs time only."""
    record = asdict(module)
    cubin = record.pop("cubin")
    try:
        write_checked(entry, json.dumps(record).encode() + b"\n" + cubin)
    except OSError as error:
        _log.warning("the compiled kernel could not be saved in %s: %s", entry.parent, error)
