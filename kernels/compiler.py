"""CUDA sources -> cubins for the device at hand, kept in the user's cache folder.

An entry's name is the hash of everything that went into it: sources, options, architecture, compiler. Entries are
written whole or not at all, so any number of processes may share the folder.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from centernet_trt.cache import read_checked, write_checked
from centernet_trt.errors import CudaError
from centernet_trt.kernels.compatibility import check_architecture
from centernet_trt.kernels.toolchain import OPTIONS, Toolchain, find_toolchain

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
