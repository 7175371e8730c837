"""Compile the CUDA sources by NVRTC or nvcc, and cache the cubins."""

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

# Compiled for in the tests; other architectures of the same compiler work too, without a row in the resource table.
TESTED_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class CudaRelease:
    """A CUDA major: the oldest Linux driver that loads what its compiler makes, and the oldest GPU it compiles for."""

    major: int
    driver: str
    oldest_architecture: int


CUDA_RELEASES = (
    CudaRelease(major=12, driver="525.60.13", oldest_architecture=50),
    CudaRelease(major=13, driver="580.65.06", oldest_architecture=75),
)


def sm_name(major: int, minor: int) -> str:
    """The compiler's name of a device's compute capability: (9, 0) -> sm_90."""
    return f"sm_{major}{minor}"


def check_driver(driver_version: int, cuda_major: int) -> None:
    """Hold the driver to what the compiler makes.

    Args:
        driver_version: from cuDriverGetVersion, 1000 * major + 10 * minor.
        cuda_major: of the compiler whose cubins are to be loaded.

    Raises:
        CudaError: the driver is too old, or the major is not in the table.
    """
    release = _release(cuda_major)
    if driver_version // 1000 < cuda_major:
        raise CudaError(
            f"the NVIDIA driver supports CUDA {driver_version // 1000}.{driver_version % 1000 // 10}, the kernels are "
            f"compiled with CUDA {cuda_major}",
            f"install driver {release.driver} or newer",
        )


def check_architecture(architecture: str, cuda_major: int) -> None:
    """Refuse a GPU that the compiler does not know any more.

    Raises:
        CudaError: the architecture is no `sm_NN`, or is older than the compiler's oldest.
    """
    digits = architecture.removeprefix("sm_").removesuffix("a").removesuffix("f")
    if not architecture.startswith("sm_") or not digits.isdigit():
        raise CudaError(f"{architecture!r} is no GPU architecture", "name it as sm_NN, for instance sm_90")
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
    raise CudaError(
        f"CUDA {cuda_major} is not known to this version; it knows CUDA {known}", "update centernet-trt"
    )


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


Program = Literal["decode", "preprocess"]
PROGRAMS: tuple[Program, ...] = ("decode", "preprocess")
_FORMAT = 2
_ELF = b"\x7fELF"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What one kernel takes: registers a thread; static shared memory, stack and spills in bytes (spills a thread)."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class KernelModule:
    """A cubin for one architecture, with what its compiler said of each entry point."""

    program: str
    architecture: str
    compiler: str
    options: tuple[str, ...]
    cubin: bytes
    resources: dict[str, Resources]


def sources(program: Program, folder: Path | None = None) -> dict[str, str]:
    """The program's .cu file and all headers, by file name; `folder` other than the package's is for tests."""
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
    """The program's cubin, from the cache where it is there, else compiled (about a second) and put there.

    Args:
        program: `decode` or `preprocess`.
        architecture: of the device, such as `sm_90`.
        cache: folder to keep cubins in, made when missing; None to keep none.
        toolchain: the compiler; None for the one found.
        files: sources by name; None for the package's.

    Raises:
        CudaError: no compiler, an architecture that it does not know, or a source that it refuses.
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
        raise CudaError(f"{toolchain.version} gave no cubin for {program}.cu:\n{made.log}")
    module = KernelModule(
        program, architecture, toolchain.version, OPTIONS, made.code, parse_resources(made.log)
    )
    if entry is not None:
        _write(entry, module)
    return module


def parse_resources(log: str) -> dict[str, Resources]:
    """The resources of every kernel in a log of `ptxas -v`."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.split("'", 1)[0]

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        found[name] = Resources(
            registers=number(r"Used (\d+) registers"),
            shared=number(r"(\d+) bytes smem"),
            stack=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
        )
    return found


def _key(program: str, architecture: str, compiler: str, files: Mapping[str, str]) -> str:
    told = json.dumps([_FORMAT, program, architecture, compiler, OPTIONS, sorted(files.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _read(entry: Path) -> KernelModule | None:
    """The module of a cache entry; None where it is missing or damaged."""
    try:
        content = read_checked(entry)
        if content is None:
            return None
        head, _, cubin = content.partition(b"\n")
        record = json.loads(head)
        record["resources"] = {name: Resources(**values) for name, values in record["resources"].items()}
        record["options"] = tuple(record["options"])
        return KernelModule(cubin=cubin, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the cached kernel %s is damaged (%s) and is compiled again", entry, error)
        return None


def _write(entry: Path, module: KernelModule) -> None:
    """Put a module into the cache, whole or not at all. A folder that cannot be written costs time, not the run."""
    record = asdict(module)
    cubin = record.pop("cubin")
    try:
        write_checked(entry, json.dumps(record).encode() + b"\n" + cubin)
    except OSError as error:
        _log.warning("the compiled kernel could not be kept in %s: %s", entry.parent, error)
