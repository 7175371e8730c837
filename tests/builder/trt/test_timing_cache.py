"""The timing cache of full TensorRT: its calls on a stand-in around RTX, its names against the stubs."""

import ctypes
import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import fake_timings
from helpers.fake_timings import builder_with_timings
from helpers.input_profiles import input_profile
from helpers.onnx_graphs import small_centernet

from centernet_trt.builder.trt import timing_cache
from centernet_trt.builder.trt.plan import Plan, build_plan
from centernet_trt.runtime.cuda import device
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, load_flavour

STUBS = Path(sys.prefix) / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
Gpu = tuple[str, tuple[int, int]]
ONE = input_profile("1:1:4", "16")


class FullTensorRT(ModuleType):
    __version__ = "10.13.0"

    def __init__(self, real: Any, measured: list[str]) -> None:
        super().__init__("tensorrt")
        self.real = real
        self.Builder = builder_with_timings(real, measured)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class World:
    """Full TensorRT on a GPU that has a name, with a cache folder of its own."""

    def __init__(self, folder: Path, module: FullTensorRT, measured: list[str]) -> None:
        self.folder, self.module, self.measured = folder, module, measured
        self.gpu: Gpu | None = ("NVIDIA A10/24 (PCIe)", (8, 6))

    def build(self) -> Plan:
        self.measured.clear()
        return build_plan(small_centernet(), "x", [ONE], flavour=load_flavour("tensorrt"))

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "timing").glob("*"))

    @property
    def file(self) -> Path:
        (name,) = self.files
        return self.folder / "timing" / name


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    rtx = pytest.importorskip("tensorrt_rtx")
    measured: list[str] = []
    made = World(tmp_path, FullTensorRT(rtx, measured), measured)
    monkeypatch.setitem(sys.modules, "tensorrt", made.module)
    monkeypatch.setitem(trt_log._loggers, "tensorrt", trt_log.logger_for(rtx))
    monkeypatch.setenv("CENTERNET_TRT_CACHE", str(tmp_path))
    monkeypatch.setattr(Flavour, "require_device", lambda self, target: None)
    monkeypatch.setattr(timing_cache, "first_gpu", lambda: made.gpu)
    return made


def test_a_second_build_measures_nothing(world: World) -> None:
    first = world.build()
    assert world.measured
    assert first.notes == []
    assert world.files == ["tensorrt-10.13.0-sm_86-NVIDIA-A10-24-PCIe.cache"]
    written = world.file.stat().st_mtime_ns
    assert world.build().notes == []
    assert world.measured == []
    assert world.file.stat().st_mtime_ns == written  # nothing new, nothing written


def test_each_version_and_gpu_has_its_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build()
    monkeypatch.setattr(FullTensorRT, "__version__", "11.0.0")
    world.build()
    assert world.measured
    world.gpu = ("NVIDIA L4", (8, 9))
    world.build()
    assert world.measured
    assert len(world.files) == 3


@pytest.mark.parametrize("damage", [b"", b"x", "cut", "bit", "grown"])
def test_a_damaged_cache_is_ignored_and_replaced(world: World, damage: str | bytes) -> None:
    world.build()
    good = world.file.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    kinds = {"cut": good[:-3], "bit": bytes(flipped), "grown": good + b"x"}
    world.file.write_bytes(damage if isinstance(damage, bytes) else kinds[damage])
    plan = world.build()
    assert world.measured
    (note,) = plan.notes
    assert "are damaged; TensorRT measured its kernels again" in note
    assert world.file.read_bytes() == good
    assert world.build().notes == []


def test_a_cache_that_tensorrt_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole by its digest, and of another device; or no cache at all."""
    world.build()
    monkeypatch.setattr(fake_timings.IBuilderConfig, "device", "GPU B")
    (note,) = world.build().notes
    assert world.measured
    assert "TensorRT refuses the timings kept in" in note
    assert world.build().notes == []
    monkeypatch.setattr(fake_timings, "HEADER", b"OTHER ")
    (note,) = world.build().notes
    assert "refuses the timings" in note


def test_a_tensorrt_that_takes_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_timings.IBuilderConfig, "set_timing_cache", lambda *_: False)
    plan = world.build()
    assert plan.data
    assert plan.notes == ["TensorRT refuses an empty timing cache; the next build measures its kernels again"]

    def null(self: Any, serialized_timing_cache: bytes) -> None:
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(fake_timings.IBuilderConfig, "create_timing_cache", null)
    assert world.build().notes == plan.notes


def test_a_folder_that_cannot_be_written(world: World) -> None:
    (world.folder / "timing").write_text("a file in the way")
    (note,) = world.build().notes
    assert "cannot keep the timings" in note


def test_a_failed_write_leaves_the_old_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build()
    good = world.file.read_bytes()
    monkeypatch.setattr(fake_timings.IBuilderConfig, "device", "GPU B")

    def refuse(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    notes = world.build().notes
    assert "No space left on device" in notes[-1]
    assert world.file.read_bytes() == good  # and no scratch file beside it


def test_without_a_named_gpu_nothing_is_kept(world: World) -> None:
    world.gpu = None
    assert world.build().notes == []
    assert world.files == []


def test_rtx_has_none(world: World) -> None:
    # Its calls are deprecated and do nothing: the warning would be an error here.
    build_plan(small_centernet(), "x", [ONE], flavour=load_flavour("rtx"))
    assert world.files == []


def test_the_stand_ins_calls_are_those_of_the_stubs() -> None:
    if not STUBS.is_file():
        pytest.skip("the type stubs of TensorRT are not there; `make test` brings them")
    text = STUBS.read_text()
    for kind in (fake_timings.ITimingCache, fake_timings.IBuilderConfig):
        body = re.search(rf"^class {kind.__name__}:.*?(?=^class )", text, re.DOTALL | re.MULTILINE)
        assert body is not None
        for name, function in inspect.getmembers(kind, inspect.isfunction):
            if name.startswith("_"):
                continue
            found = re.search(rf"    def {name}\((.*?)\) ->", body[0])
            assert found is not None, name
            theirs = [part.split(":")[0].strip() for part in found[1].split(",")]
            assert list(inspect.signature(function).parameters) == theirs


class Driver:
    """libcuda as far as the first GPU is asked for its name."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, pointer: Any) -> int:
        pointer._obj.value = 1
        return 0

    def cuDeviceGet(self, pointer: Any, ordinal: int) -> int:
        pointer._obj.value = 7
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        assert device.value == 7
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, pointer: Any, which: int, device: ctypes.c_int) -> int:
        pointer._obj.value = {75: 8, 76: 9}[which]
        return self.status


def test_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    assert device.first_gpu() == ("NVIDIA L4", (8, 9))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(1))
    assert device.first_gpu() is None
    monkeypatch.setattr(device, "gpu_count", lambda: 0)
    assert device.first_gpu() is None
