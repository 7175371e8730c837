"""Installing PyCUDA without a CUDA toolkit: what is said where it cannot be done. The build itself needs minutes and a network."""

import subprocess
import sys
from pathlib import Path

import pytest
from tools import install_pycuda

from centernet_trt.errors import CudaError


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_an_installed_one_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: pytest.fail("looked for a compiler"))
    install_pycuda.install_pycuda()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(CudaError, match=r"there is no g\+\+ here") as caught:
        install_pycuda.install_pycuda()
    assert "apt install g++" in caught.value.hint
    assert "the wheels of the extra `gpu` suffice" in caught.value.hint


def test_where_the_headers_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    with pytest.raises(CudaError, match=r"header cuda.h was not found; looked in: .*include") as caught:
        install_pycuda.header_folders()
    assert "nvidia-cuda-profiler-api" in caught.value.hint
    include = tmp_path / "include"
    include.mkdir()
    for name in ("cuda.h", "cudaProfiler.h"):
        (include / name).write_text("CUresult CUDAAPI cuInit(unsigned int Flags);")
    assert install_pycuda.header_folders() == [include]


def test_pips_own_words_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 1, "", "ERROR: Could not find a version")

    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr("subprocess.run", refuse)
    with pytest.raises(
        CudaError, match=r"pip could not install the header cudaProfiler.h:\nERROR: Could not find"
    ):
        install_pycuda.install_pycuda()


def test_the_linker_stub_has_the_symbols_of_the_header(tmp_path: Path) -> None:
    """A linker that is set to --as-needed leaves out a library that gives no symbol; then PyCUDA does not load."""
    compiler = install_pycuda.shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "cuda.h").write_text(
        "CUresult CUDAAPI cuInit(unsigned int Flags);\n#define cuMemAlloc cuMemAlloc_v2\n"
    )
    stub = install_pycuda._linker_stub(compiler, tmp_path / "stub", [tmp_path]) / "libcuda.so"
    content = stub.read_bytes()
    for name in (b"libcuda.so.1", b"cuInit", b"cuMemAlloc_v2"):
        assert name in content


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(target: Path | None) -> None:
        raise CudaError("no luck", "try again")

    monkeypatch.setattr(install_pycuda, "install_pycuda", fail)
    monkeypatch.setattr(sys, "argv", ["install_pycuda"])
    assert install_pycuda.main() == 1
    assert "error: no luck\n  hint: try again" in capsys.readouterr().err
