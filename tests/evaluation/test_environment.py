"""The environment record of a machine with and without a driver."""

import ctypes
from typing import Any

import pytest

from centernet_trt.evaluation import environment as module
from centernet_trt.evaluation.environment import environment, query_driver


def test_names_this_machine() -> None:
    found = environment()
    assert found.packages["centernet-trt"]
    assert found.packages["numpy"]
    assert found.cores >= 1
    assert found.to_json()["driver"]["gpus"] is not None


def test_a_missing_driver_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert query_driver().cuda is None
    assert "no NVIDIA driver" in query_driver().problem


class FakeDriver:
    """The driver calls of `query_driver`, with the answers of a made-up GPU."""

    def __init__(self, init: int, count: int) -> None:
        self.init, self.count = init, count

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 13020
        return 0

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, number: Any) -> int:
        number._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Made-up GPU"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0


@pytest.mark.parametrize(
    ("init", "count", "problem"), [(0, 1, ""), (0, 0, "shows no GPU"), (100, 0, "error 100")]
)
def test_reads_the_driver(init: int, count: int, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: FakeDriver(init, count))
    found = query_driver()
    assert found.cuda == (13, 2)
    assert problem in found.problem
    assert [(gpu.name, gpu.compute_capability) for gpu in found.gpus] == [("Made-up GPU", (8, 6))] * count
