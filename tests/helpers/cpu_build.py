"""Compile the CUDA sources with g++ through the CPU harness; results are cached by the hash of all inputs."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "harness"
# The mutation tests point this at sources with a planted fault.
MUTANT = os.environ.get("CENTERNET_TRT_TEST_KERNELS")
# Mutants are judged by their results, and compile fast; those that only a sanitizer sees say so.
SANITIZED = MUTANT is None or "CENTERNET_TRT_TEST_SANITIZED" in os.environ
KERNELS = Path(MUTANT) if MUTANT else ROOT / "kernels"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
_COMMON = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", *(() if MUTANT else ("-Werror",)))


def compiler() -> str | None:
    """Path of g++, None where there is none."""
    return shutil.which("g++")


def build(source: str, flags: tuple[str, ...] = (), kernels: Path = KERNELS, name: str = "a.out") -> Path:
    """Compile `source` of tests/harness with the kernels of this folder -> path of the result, called `name`."""
    gxx = compiler()
    assert gxx is not None
    files = sorted([*HARNESS.glob("*.*"), *kernels.glob("*.cu"), *kernels.glob("*.cuh")])
    version = subprocess.run([gxx, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((source, flags, _COMMON, version)).encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = (KERNELS if MUTANT else ROOT / "build") / "harness" / digest.hexdigest()[:24]
    target = folder / name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / name
        command = [
            gxx, *_COMMON, *flags, "-I", str(HARNESS), "-I", str(kernels), str(HARNESS / source), "-o", str(made)
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        os.replace(made, target)  # another worker may have been as fast: either file will do
    return target
