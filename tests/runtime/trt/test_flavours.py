import ctypes
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from centernet_trt.errors import BackendError
from centernet_trt.runtime.cuda.device import gpu_count
from centernet_trt.runtime.trt import flavours
from centernet_trt.runtime.trt.flavours import load_flavour


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for full TensorRT, which PyPI does not have."""
    module = ModuleType("tensorrt")
    module.__version__ = "10.13.0"  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def test_rtx_targets() -> None:
    flavour = load_flavour("rtx")
    assert flavour.name == "rtx"
    assert flavour.version.startswith("1.7")
    assert flavour.default_target == "portable"
    assert flavour.capabilities("portable") == ()
    assert flavour.capabilities("sm_86") == ("SM86",)
    for target in flavour.targets:
        for name in flavour.capabilities(target):
            assert hasattr(flavour.module.ComputeCapability, name)  # type: ignore[attr-defined]
    with pytest.raises(
        BackendError, match=r"unknown target 'sm_99': rtx has portable, current, sm_75, .*sm_120"
    ):
        flavour.capabilities("sm_99")


def test_full_tensorrt_builds_for_the_visible_gpu(full: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = load_flavour("tensorrt")
    assert flavour.module is full
    assert flavour.default_target == "current"
    assert flavour.capabilities("current") == ()
    assert flavour.has_timing_cache
    for target in ("sm_86", "portable"):
        with pytest.raises(
            BackendError, match=f"builds for the visible GPU only: expected target current, got '{target}'"
        ):
            flavour.capabilities(target)
    with pytest.raises(BackendError, match="unknown target 'moon': tensorrt has current"):
        flavour.capabilities("moon")
    monkeypatch.setattr(flavours, "gpu_count", lambda: 0)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU") as caught:
        flavour.require_device("current")
    assert "--flavour rtx" in caught.value.hint
    monkeypatch.setattr(flavours, "gpu_count", lambda: 1)
    flavour.require_device("current")


@pytest.mark.parametrize(
    ("installed", "gpus", "expected"), [(True, 1, "tensorrt"), (True, 0, "rtx"), (False, 1, "rtx")]
)
def test_auto(
    installed: bool, gpus: int, expected: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        request.getfixturevalue("full")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(flavours, "gpu_count", lambda: gpus)
    assert load_flavour("auto").name == expected


def test_current_on_rtx_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "gpu_count", lambda: 0)
    flavour = load_flavour("rtx")
    flavour.require_device("portable")
    flavour.require_device("sm_120")
    with pytest.raises(BackendError, match="needs an NVIDIA GPU") as caught:
        flavour.require_device("current")
    assert "--target portable" in caught.value.hint


def importing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def import_module(name: str) -> ModuleType:
        raise error

    fake = SimpleNamespace(import_module=import_module, util=importlib.util)
    monkeypatch.setattr(flavours, "importlib", fake)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module", name="tensorrt"), ["tensorrt is not installed"]),
        (ModuleNotFoundError("No module", name="tensorrt_libs"), ["cannot be imported", "reinstall it"]),
        (OSError("libnvinfer.so.10: cannot open"), ["cannot be imported", "libnvinfer.so.10"]),
    ],
)
def test_a_missing_package_gives_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]
) -> None:
    importing(monkeypatch, error)
    with pytest.raises(BackendError) as caught:
        load_flavour("tensorrt")
    for word in [*words, "pip install 'centernet-trt[tensorrt]' --extra-index-url https://pypi.nvidia.com"]:
        assert word in str(caught.value)


def test_an_unknown_flavour() -> None:
    name: Any = "trt"
    with pytest.raises(BackendError, match="unknown flavour 'trt': expected auto, rtx or tensorrt"):
        load_flavour(name)


class Driver:
    def __init__(self, init: int, count: int) -> None:
        self.init, self.count = init, count

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, pointer: Any) -> int:
        pointer._obj.value = self.count
        return 0


@pytest.mark.parametrize(("init", "count", "expected"), [(0, 2, 2), (100, 2, 0), (0, 0, 0)])
def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, init: int, count: int, expected: int) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(init, count))
    assert gpu_count() == expected


def test_no_driver_or_a_broken_one_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu_count() == 0
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert gpu_count() == 0
