"""The driver interface: what needs a process of its own, or no driver at all. The rest is in tests/gpu/test_driver.py."""

import sys
from types import ModuleType

import pytest
from helpers.standin_process import run_script

from centernet_trt.errors import CudaError
from centernet_trt.runtime.cuda.binding import DriverError, hint_for
from centernet_trt.runtime.cuda.device import load_binding


def test_what_is_not_closed_is_told_by_the_standin() -> None:
    """The garbage collector frees nothing: only `close` does."""
    code = "from centernet_trt.runtime.cuda.device import Device; d = Device.open(0, 'cuda-bindings'); d.allocate(64); del d"
    done = run_script(code)
    assert done.returncode == 97
    assert "leaked at exit: 1 device allocations, 1 contexts" in done.stderr


def test_without_a_device() -> None:
    done = run_script(
        "from centernet_trt.runtime.cuda.device import Device; Device.open(0)", STANDIN_DEVICES=0
    )
    assert "cuInit failed: CUDA_ERROR_NO_DEVICE (100)" in done.stderr
    assert "--gpus all" in done.stderr


def test_missing_packages_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CudaError, match="cuda-bindings cannot be imported") as caught:
        load_binding("cuda-bindings")
    assert "pip install 'centernet-trt[gpu]'" in caught.value.hint
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(CudaError, match="PyCUDA cannot be imported") as caught:
        load_binding("pycuda")
    assert "make gpu" in caught.value.hint


def test_a_broken_pycuda_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found, and not loadable: the wheels serve, and a warning says so."""
    broken = ModuleType("pycuda")
    monkeypatch.setitem(sys.modules, "pycuda", broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("centernet_trt.runtime.cuda.cuda_bindings.CudaBindings.__init__", lambda self: None)
    assert load_binding("auto").name == "cuda-bindings"
    assert "PyCUDA is installed but cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "max_batch"),
        (35, "documentation"),
        (700, "compute-sanitizer"),
        (802, "fabricmanager"),
        (900, "cuda_graph=False"),
    ],
)
def test_hints(code: int, words: str) -> None:
    assert words in hint_for(code)
    assert words in DriverError("cuX", code, "CUDA_ERROR_X", "something").hint
