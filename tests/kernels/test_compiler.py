"""The compiler and its cache."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.ptxas import Resources, parse_resources

from centernet_trt.errors import CudaError
from centernet_trt.kernels import compile as toolchain
from centernet_trt.kernels.compile import (
    DeviceCode,
    Nvcc,
    Nvrtc,
    check_architecture,
    check_driver,
    compile_module,
    find_headers,
    find_toolchain,
    sm_name,
    sources,
)


class FakeToolchain:
    """Counts compilations and gives a tiny ELF."""

    cuda_major = 13

    def __init__(self, version: str = "fake 1") -> None:
        self.version = version
        self.compiled = 0

    def compile(self, name: str, files: object, architecture: str, target: str) -> DeviceCode:
        self.compiled += 1
        return DeviceCode(b"\x7fELF\n" + os.urandom(64), "")


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA wheels are not installed (extra gpu)")
    return Nvrtc()


def test_a_second_compilation_is_read_from_the_cache(tmp_path: Path) -> None:
    fake = FakeToolchain()
    first = compile_module("decode", "sm_90", tmp_path / "made" / "by it", fake)
    again = compile_module("decode", "sm_90", tmp_path / "made" / "by it", fake)
    assert first == again
    assert fake.compiled == 1
    assert compile_module("decode", "sm_90", None, fake) != first  # no cache asked for


def test_what_makes_another_entry(tmp_path: Path) -> None:
    fake = FakeToolchain()
    compile_module("decode", "sm_90", tmp_path, fake)
    changed = sources("decode") | {"select.cuh": sources("decode")["select.cuh"] + " "}
    compile_module("decode", "sm_90", tmp_path, fake, changed)
    compile_module("decode", "sm_80", tmp_path, fake)
    compile_module("preprocess", "sm_90", tmp_path, fake)
    newer = FakeToolchain("fake 2")
    compile_module("decode", "sm_90", tmp_path, newer)
    assert (fake.compiled, newer.compiled) == (4, 1)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no json", "other fields"])
def test_a_damaged_entry_is_noticed_and_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeToolchain()
    compile_module("decode", "sm_90", tmp_path, fake)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    broken = {
        "cut": whole[:-10],
        "flipped": bytes(flipped),
        "empty": b"",
        "no json": b"x" + whole,
        "other fields": b'{"a": 1}\n' + whole.partition(b"\n")[2],
    }[damage]
    entry.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        again = compile_module("decode", "sm_90", tmp_path, fake)
    assert fake.compiled == 2
    assert "damaged" in caplog.text
    assert compile_module("decode", "sm_90", tmp_path, fake) == again
    assert fake.compiled == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert compile_module("decode", "sm_90", blocked / "cache", FakeToolchain()).cubin
    assert "could not be saved" in caplog.text


def test_many_writers_leave_one_whole_entry(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda _: compile_module("decode", "sm_90", tmp_path, FakeToolchain()), range(40))
        )
    (entry,) = tmp_path.iterdir()
    last = FakeToolchain()
    kept = compile_module("decode", "sm_90", tmp_path, last)
    assert last.compiled == 0
    assert kept in made
    assert entry.suffix == ".cubin"


def test_processes_share_the_cache(nvrtc: Nvrtc, tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; from pathlib import Path; from centernet_trt.kernels.compile import compile_module; "
        "print(hashlib.sha256(compile_module('preprocess', 'sm_90', Path(sys.argv[1])).cubin).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(told) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_compile_error_shows_the_line(nvrtc: Nvrtc) -> None:
    broken = sources("decode")
    broken["boxes.cuh"] += "\n#error planted here\n"
    line = broken["boxes.cuh"].count("\n")
    with pytest.raises(CudaError, match=rf"boxes\.cuh\({line}\): .*planted here"):
        compile_module("decode", "sm_90", None, nvrtc, broken)


def test_nvcc_takes_the_place_of_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Nvrtc) -> None:
        raise CudaError("cuda-bindings is not installed", "install it")

    monkeypatch.setattr(Nvrtc, "__init__", absent)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(CudaError, match="neither NVRTC nor nvcc was found; cuda-bindings"):
        find_toolchain()
    monkeypatch.undo()
    if toolchain.shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setattr(Nvrtc, "__init__", absent)
    nvcc = find_toolchain()
    assert isinstance(nvcc, Nvcc)
    made = nvcc.compile("preprocess.cu", sources("preprocess"), "sm_80", "cubin")
    assert parse_resources(made.log)["preprocess_half"].registers > 0
    with pytest.raises(CudaError, match=r"preprocess\.cu[:(]1.*planted"):
        compile_module("preprocess", "sm_80", None, nvcc, {"preprocess.cu": "#error planted\n"})


def test_headers_that_are_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    with pytest.raises(CudaError, match=r"cuda_fp16\.h was not found") as caught:
        find_headers(1)
    assert "centernet-trt[gpu]" in caught.value.hint
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_fp16.h").touch()
    assert find_headers(1) == tmp_path / "include"


def test_compatibility() -> None:
    assert sm_name(12, 0) == "sm_120"
    check_architecture("sm_90a", 13)
    check_driver(13000, 13)
    check_driver(13020, 12)
    with pytest.raises(
        CudaError, match=r"supports CUDA 12\.4, the kernels are compiled with CUDA 13"
    ) as caught:
        check_driver(12040, 13)
    assert "580.65.06" in caught.value.hint
    with pytest.raises(CudaError, match="oldest is sm_75"):
        check_architecture("sm_70", 13)
    with pytest.raises(CudaError, match="expected a GPU architecture as sm_NN, such as sm_90, got 'hopper'"):
        check_architecture("hopper", 13)
    with pytest.raises(CudaError, match="CUDA 14 is not supported: expected CUDA 12, 13"):
        check_driver(14000, 14)


def test_resources_of_a_log() -> None:
    log = "Compiling entry function 'f' for 'sm_90'\n 8 bytes stack frame, 4 bytes spill stores, 2 bytes spill loads"
    log += "\nUsed 40 registers, used 1 barriers, 96 bytes smem"
    assert parse_resources(log) == {"f": Resources(40, 96, 8, 4, 2)}
    assert parse_resources("") == {}
