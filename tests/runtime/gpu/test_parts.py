"""Parts of the pipeline that need no driver: memory plan, options, arrays of other libraries, NVTX ranges."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.kernels.launch import DecodeLayout, plan_decode
from centernet_trt.runtime.backend import GpuOptions, MemoryUse
from centernet_trt.runtime.cuda.interop import DeviceArray, device_array, device_image, is_device_array
from centernet_trt.runtime.gpu import lane as ranges
from centernet_trt.runtime.gpu.buffers import decode_bytes, descriptor_bytes, plan_stream
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange


@given(
    largest=st.integers(1, 64),
    multiprocessors=st.integers(1, 200),
    classes=st.integers(1, 100),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    rows=st.integers(1, 1024),
    half=st.booleans(),
    data=st.data(),
)
def test_decode_fits_whatever_is_asked(
    largest: int,
    multiprocessors: int,
    classes: int,
    height: int,
    width: int,
    rows: int,
    half: bool,
    data: Any,
) -> None:
    batch = data.draw(st.integers(1, largest))
    counters, keys, output = decode_bytes(largest, 10, multiprocessors)
    plan = plan_decode(batch, classes, height, width, rows, half, multiprocessors)
    assert plan.counter_bytes <= counters
    assert plan.key_bytes <= keys
    assert DecodeLayout(batch, rows, 10).nbytes <= output


def test_the_upload_buffer(tmp_path: Path) -> None:
    manifest = write_tiny_bundle(tmp_path / "b").manifest  # keep_res, inputs up to 256 x 256
    small = plan_stream(manifest, 4, 4096 * 3072, 1000, 10)
    assert 4 * 256 * 256 * 3 < small.staging < 4 * 256 * 256 * 3 + descriptor_bytes(4) + 2000
    assert small.tensors == {"image": 4 * 3 * 256 * 256 * 4} | dict.fromkeys(
        ("hm", "wh", "reg"), 4 * 2 * 64 * 64 * 4
    )
    assert small.workspace == 1000
    assert plan_stream(manifest, 4, 100, 1000, 10).staging < 4000


def test_what_memory_says() -> None:
    use = MemoryUse({"weights": 3 << 20, "images": 1 << 20}, {"images": 2 << 20})
    assert (use.device_total, use.pinned_total) == (4 << 20, 2 << 20)
    assert str(use).startswith("4.0 MiB on the device, 2.0 MiB pinned: weights (device): 3.0 MiB")
    assert MemoryUse().device_total == 0


def test_options() -> None:
    def profile(*batch: int) -> ProfileRecord:
        side = ShapeRange.of(32, 64, 128)
        return ProfileRecord(batch=ShapeRange.of(*batch), height=side, width=side)

    assert GpuOptions().within([profile(1, 2, 8)]).max_batch == 8
    assert GpuOptions().within([profile(1, 2, 8), profile(16, 16, 16)]).max_batch == 16
    assert GpuOptions(max_batch=3).within([profile(16, 16, 16), profile(1, 2, 8)]).max_batch == 3
    with pytest.raises(InputError, match=r"built for \(2:4:8 or 16\), got 1"):
        GpuOptions(max_batch=1).within([profile(2, 4, 8), profile(16, 16, 16)])
    for wrong in ({"streams": 0}, {"max_graphs": 0}, {"max_pixels": -1}, {"max_batch": 0}):
        with pytest.raises(InputError, match="expected at least 1 as"):
            GpuOptions(**wrong)  # type: ignore[arg-type]


def interface(**told: Any) -> Any:
    return SimpleNamespace(
        __cuda_array_interface__={"shape": (4, 5, 3), "typestr": "|u1", "data": (256, False), "version": 3}
        | told
    )


def test_arrays_of_other_libraries() -> None:
    found = device_array(interface())
    assert (found.address, found.shape, found.strides, found.dtype) == (256, (4, 5, 3), (15, 3, 1), "uint8")
    assert found.contiguous
    assert found.nbytes == 60
    assert device_array(found) is found
    assert device_array(interface(typestr="<f2", stream=5)).stream == 5
    assert device_array(interface(typestr="<f2")).strides == (30, 6, 2)
    assert not is_device_array(np.zeros(3))
    assert not is_device_array("path")
    wrong: list[tuple[Any, str]] = [
        (np.zeros(3), "expected an array in GPU memory, got ndarray"),
        (interface(typestr=">f4"), "expected an array of little-endian numbers, got element type >f4"),
        (interface(typestr="<c8"), "expected an array of little-endian numbers, got element type <c8"),
        (interface(mask=interface()), "a masked array"),
        (interface(stream=0), "names stream 0"),
    ]
    for source, message in wrong:
        with pytest.raises(InputError, match=message):
            device_array(source)


class Dlpack:
    """NumPy's own capsule, declared to be on a GPU."""

    def __init__(self, array: Any, fails: bool = False) -> None:
        self.array, self.fails = array, fails

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int) -> Any:
        if self.fails:
            raise BufferError("requires grad")
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64"])
def test_dlpack(dtype: str) -> None:
    array = np.zeros((6, 8, 4), dtype)[1:, ::2]
    found = device_array(Dlpack(array))
    assert (found.address, found.shape, found.strides, found.dtype) == (
        array.ctypes.data,
        array.shape,
        array.strides,
        dtype,
    )
    assert found.stream == 1
    with pytest.raises(InputError, match="cannot be exported by DLPack: requires grad"):
        device_array(Dlpack(array, fails=True))


def image(shape: tuple[int, ...], strides: tuple[int, ...], dtype: str = "uint8") -> DeviceArray:
    return DeviceArray(256, shape, strides, dtype, None, None)


def test_images_in_gpu_memory() -> None:
    found = device_image(image((4, 5, 3), (32, 3, 1)))
    assert (found.shape, found.pitch) == ((4, 5, 3), 32)
    assert device_image(image((4, 5), (5, 1))).channels == 1
    assert device_image(image((4, 5, 1), (5, 1, 1))).channels == 1
    for shape, strides, dtype in (
        ((4, 5, 3), (15, 3, 1), "float32"),
        ((4, 5, 2), (10, 2, 1), "uint8"),
        ((3, 4, 5), (20, 5, 1), "uint8"),
        ((4,), (1,), "uint8"),
        ((0, 5, 3), (15, 3, 1), "uint8"),
        ((4, 5, 3), (30, 6, 1), "uint8"),
        ((4, 5, 3), (1, 4, 20), "uint8"),
        ((4, 5, 3), (-15, 3, 1), "uint8"),
    ):
        with pytest.raises(InputError):
            device_image(image(shape, strides, dtype))


@pytest.fixture
def fresh_ranges() -> Iterator[None]:
    ranges._annotate.cache_clear()
    yield
    ranges._annotate.cache_clear()


def test_nvtx_ranges(monkeypatch: pytest.MonkeyPatch, fresh_ranges: None) -> None:
    seen: list[Any] = []

    @contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        seen.append((name, domain))
        yield

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    with ranges.nvtx_range("start"):
        pass
    assert seen == [("start", "centernet-trt")]


def test_without_nvtx(monkeypatch: pytest.MonkeyPatch, fresh_ranges: None) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with ranges.nvtx_range("start"), ranges.nvtx_range("inside"):
        pass
