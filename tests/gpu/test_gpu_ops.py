"""`preprocess` and `decode` by themselves, on CUDA arrays and a caller's stream. The stand-in driver runs these too."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.driver_machine import why_no_gpu
from helpers.official_heads import OFFICIAL, official_heads

from centernet_trt.errors import InputError, ModelError
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.interop import stream_number
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu.ops import GpuOps
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.presets import preset

pytestmark = pytest.mark.gpu


class OtherLibrary:
    """CUDA arrays and a stream, as another library in the process would have them."""

    def __init__(self) -> None:
        self.device = Device.open(0, "cuda-bindings")
        self.stream: Stream = self.device.stream()

    def array(self, values: np.ndarray[Any, Any]) -> "OtherArray":
        memory, pinned = self.device.allocate(values.nbytes), self.device.allocate_pinned(values.nbytes)
        pinned.array[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.stream.copy_to_device(memory.address, pinned.address, values.nbytes)
        return OtherArray(memory, values.shape, values.dtype, self.stream)

    def read(self, array: "OtherArray") -> np.ndarray[Any, Any]:
        pinned = self.device.allocate_pinned(array.memory.nbytes)
        self.stream.copy_to_host(pinned.address, array.memory.address, pinned.nbytes)
        self.stream.synchronize()
        return pinned.array.view(array.dtype).reshape(array.shape).copy()


class OtherArray:
    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Stream) -> None:
        self.memory, self.shape, self.dtype, self.stream = memory, shape, dtype, stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.memory.address, False),
            "strides": None,
            "version": 3,
            "stream": self.stream.number,
        }


@pytest.fixture(scope="module")
def other() -> Iterator[OtherLibrary]:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    library = OtherLibrary()
    yield library
    library.device.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("given", ["no stream", "object", "number"])
def test_preprocess(other: OtherLibrary, dtype: Any, given: str) -> None:
    stream: Any = {"no stream": None, "object": other.stream, "number": other.stream.number}[given]
    spec, random = preset("mmdet"), np.random.default_rng(0)
    images = [
        random.integers(0, 256, (50, 60, 3), dtype=np.uint8),
        random.integers(0, 256, (40, 63, 3), dtype=np.uint8),
    ]
    out = other.array(np.full((2, 3, 64, 64), np.nan, dtype))
    with GpuOps(spec, max_batch=2, max_pixels=8000) as ops:
        placements = ops.preprocess([images[0], other.array(images[1])], out, stream)  # type: ignore[list-item]
        found = other.read(out)
    np.testing.assert_array_equal(found, preprocess(images, placements, spec.input, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("with_stream", [False, True])
def test_decode(other: OtherLibrary, dtype: Any, with_stream: bool) -> None:
    heads = official_heads(np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(dtype))
    with GpuOps(OFFICIAL, max_batch=2, max_pixels=8000) as ops:
        images = [np.zeros((480, 640, 3), np.uint8), np.zeros((333, 500, 3), np.uint8)]
        placements = [place(OFFICIAL.input, image.shape[1], image.shape[0]) for image in images]
        arrays = {name: other.array(head) for name, head in heads.items()}
        for threshold, top_k in ((0.0, None), (0.6, 7), (0.0, 200)):
            found = ops.decode(arrays, placements, threshold, top_k, other.stream if with_stream else None)
            wanted = decode(heads, OFFICIAL, placements, threshold, top_k)
            for one, two in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one.label, two.label)
                np.testing.assert_allclose(one.score, two.score, rtol=1e-6)
                np.testing.assert_allclose(one.xyxy, two.xyxy, rtol=1e-5, atol=1e-2)


def test_what_is_refused(other: OtherLibrary) -> None:
    spec = preset("mmdet")
    image = np.zeros((50, 60, 3), np.uint8)
    with GpuOps(spec, max_batch=1, max_pixels=4000) as ops:
        good = other.array(np.zeros((1, 3, 64, 64), np.float32))
        wrong: list[tuple[list[Any], Any, str]] = [
            (
                [image],
                other.array(np.zeros((1, 3, 64, 64), np.float64)),
                "got float64 of shape (1, 3, 64, 64)",
            ),
            ([image, image], good, "expected 1 to 1 images, got 2"),
            (
                [image],
                other.array(np.zeros((2, 3, 64, 64), np.float32)),
                "got float32 of shape (2, 3, 64, 64)",
            ),
            ([np.zeros((20, 20, 3), np.uint8)], good, "needs a network input of 32x32"),
            ([np.zeros((63, 63, 4), np.uint8), image][:1], np.zeros((1, 3, 64, 64)), "got ndarray"),
        ]
        for images, out, message in wrong:
            with pytest.raises(InputError) as caught:
                ops.preprocess(images, out)
            assert message in str(caught.value)
        with pytest.raises(ModelError, match=r"head tensor .* is missing"):
            ops.decode({}, [])
    with pytest.raises(InputError, match="expected a CUDA stream, got str"):
        stream_number("stream")


def test_streams_of_other_libraries() -> None:
    class Torch:
        cuda_stream = 7

    class Cupy:
        ptr = 8

    assert [stream_number(stream) for stream in (Torch(), Cupy(), 9)] == [7, 8, 9]
