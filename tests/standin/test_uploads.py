"""How images reach the GPU: from pageable, page-locked and GPU memory."""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_tensorrt
from helpers.detector_parts import gpu_backend
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import BINDINGS, counted, load, on_host, pictures, same, tiny
from helpers.standin_session import ON_STANDIN

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.cuda.cuda_bindings import CudaBindings
from centernet_trt.runtime.cuda.pycuda import PyCuda
from centernet_trt.runtime.gpu.buffers import descriptor_bytes

pytestmark = ON_STANDIN


@contextmanager
def uploads() -> Iterator[list[tuple[int, int]]]:
    """(address on the host, bytes) of every copy to the device in the block."""
    seen: list[tuple[int, int]] = []

    def watched(binding: type[Any]) -> Callable[..., None]:
        copy = binding.copy_to_device

        def copy_to_device(self: Any, target: int, source: int, nbytes: int, stream: Any) -> None:
            seen.append((source, nbytes))
            copy(self, target, source, nbytes, stream)

        return copy_to_device

    with pytest.MonkeyPatch.context() as patch:
        for binding in (CudaBindings, PyCuda):
            patch.setattr(binding, "copy_to_device", watched(binding))
        yield seen


@contextmanager
def copies_on_the_host() -> Iterator[list[int]]:
    """Bytes of every image that the CPU copies into an upload buffer in the block."""
    seen: list[int] = []
    copy = np.copyto

    def watched(target: Any, source: Any) -> None:
        seen.append(source.nbytes)
        copy(target, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("centernet_trt.runtime.gpu.buffers.np.copyto", watched)
        yield seen


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_pinned_image_is_not_copied_on_the_host(
    bundle: EngineBundle, faults: Faults, binding: BindingName
) -> None:
    first, second = pictures(2, 60, 50)
    with on_host(bundle) as host, load(bundle, binding=binding) as detector:
        pinned = detector.pinned_image(60, 50)
        assert (pinned.shape, pinned.dtype, pinned.flags.c_contiguous) == ((60, 50, 3), np.uint8, True)
        for image in (first, second, first):
            pinned[...] = image
            with uploads() as seen, copies_on_the_host() as copied:
                same(detector.detect(pinned, 0.3), host.detect(image, 0.3))
            assert copied == []
            # The descriptor, and the pixels from where they lie.
            assert seen[1:] == [(pinned.ctypes.data, pinned.nbytes)]
            assert seen[0][1] == descriptor_bytes(1)
        with counted() as found:
            detector.detect(pinned, 0.3)
        assert (found[0].copies, found[0].allocations, found[0].graph_launches) == (2, 0, 1)
        same(detector.submit(pinned, threshold=0.3).result(60), host.detect(first, 0.3))


def test_the_counting_sees_a_host_copy(bundle: EngineBundle, faults: Faults) -> None:
    (image,) = pictures(1, 60, 50)
    with load(bundle) as detector, uploads() as seen, copies_on_the_host() as copied:
        detector.detect(image, 0.3)
    assert copied == [image.nbytes]
    assert [nbytes >= image.nbytes for _, nbytes in seen] == [True]
    assert image.ctypes.data not in [source for source, _ in seen]


def test_views_and_mixed_batches(bundle: EngineBundle, faults: Faults) -> None:
    """Whole rows of a pinned image are pinned; a cut-out is not contiguous and copied; a batch may have every kind."""
    images = pictures(5, 60, 60)
    with on_host(bundle) as host, load(bundle) as detector:
        pinned = [detector.pinned_image(60, 60) for _ in range(3)]
        for target, image in zip(pinned, images, strict=False):
            target[...] = image
        batch = [pinned[0], images[3], pinned[1][10:50], images[4], pinned[2][:, 5:45], pinned[2][:33]]
        wanted = host.detect_batch([np.array(image) for image in batch], 0.3)
        for _ in range(2):
            with copies_on_the_host() as copied:
                found = detector.detect_batch(batch, 0.3)
            for one, other in zip(found, wanted, strict=True):
                same(one, other)
            assert copied == [image.nbytes for image in (images[3], images[4], pinned[2][:, 5:45])]


@pytest.mark.parametrize("binding", BINDINGS)
def test_pinned_memory_of_another_library(tmp_path: Path, faults: Faults, binding: BindingName) -> None:
    """As PyTorch's `pin_memory` and CuPy's `alloc_pinned_memory` give it: the driver knows it, and we have not made it."""
    (image,) = pictures(1, 128, 200)  # large enough to be worth a question to the driver
    small, bundle = image[:20, :20].copy(), tiny(tmp_path, sides=(32, 64, 256))
    with on_host(bundle) as host, load(bundle, binding=binding) as detector:
        foreign = gpu_backend(detector).device.allocate_pinned(image.nbytes + small.nbytes)
        theirs = foreign.array[: image.nbytes].reshape(image.shape)
        little = foreign.array[image.nbytes :].reshape(small.shape)
        theirs[...], little[...] = image, small
        with copies_on_the_host() as copied:
            same(detector.detect(theirs, 0.3), host.detect(image, 0.3))
            assert copied == []
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
            assert copied == [image.nbytes]
            same(detector.detect(little, 0.3), host.detect(small, 0.3))
            assert copied == [image.nbytes, small.nbytes]  # cheaper than asking
        del theirs, little
        foreign.close()


def test_pinned_images_are_counted_given_back_and_outlive_the_detector(
    bundle: EngineBundle, faults: Faults
) -> None:
    (image,) = pictures(1, 60, 60)
    detector = load(bundle)
    device, before = gpu_backend(detector).device, detector.memory
    kept, dropped = detector.pinned_image(60, 60), detector.pinned_image(30, 40)
    told = detector.memory
    assert told.pinned_total - before.pinned_total == kept.nbytes + dropped.nbytes
    assert told.device == before.device
    held = device.open_resources
    row = dropped[3]  # a view keeps the whole image
    del dropped
    gc.collect()
    third = detector.pinned_image(10, 10)
    assert device.open_resources == held + 1
    row[...] = 1
    del row, third
    gc.collect()
    detector.pinned_image(10, 10)
    assert device.open_resources == held  # two went, two came since
    kept[...] = image
    detector.close()
    assert device.open_resources == 0
    np.testing.assert_array_equal(kept, image)
    with on_host(bundle) as host:
        same(host.detect(kept, 0.3), host.detect(image, 0.3))
    with pytest.raises(BackendError, match="the detector is closed"):
        detector.pinned_image(10, 10)
    with load(bundle) as another, copies_on_the_host() as copied:
        another.detect(kept, 0.3)
    assert copied == [image.nbytes]  # ordinary memory by now


def test_pinned_images_of_no_size_and_on_the_host(bundle: EngineBundle, faults: Faults) -> None:
    with on_host(bundle) as host, load(bundle) as detector:
        for each in (host, detector):
            assert each.pinned_image(5, 7).shape == (5, 7, 3)
            for size in ((0, 5), (5, -1)):
                with pytest.raises(InputError, match="expected an image of at least 1x1 pixels"):
                    each.pinned_image(*size)


class CudaArray:
    """An array in device memory as another library would give it, by `__cuda_array_interface__`."""

    def __init__(self, image: np.ndarray[Any, Any], pitch: int, stream: int | None) -> None:
        driver, address = fake_tensorrt.driver(), ctypes.c_void_p()
        height, width, channels = image.shape
        assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(height * pitch)) == 0
        assert address.value is not None
        self.address = address.value
        raw = (ctypes.c_uint8 * (height * pitch)).from_address(self.address)
        rows = np.ctypeslib.as_array(raw).reshape(height, pitch)
        rows[:, : width * channels] = image.reshape(height, -1)
        self.pixels = np.lib.stride_tricks.as_strided(rows, image.shape, (pitch, channels, 1))
        self.interface = {
            "shape": image.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": (pitch, channels, 1),
            "version": 3,
            "stream": stream,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface

    def free(self) -> None:
        assert fake_tensorrt.driver().cuMemFree_v2(ctypes.c_void_p(self.address)) == 0


class DlpackArray(CudaArray):
    """The same by DLPack, as CuPy and PyTorch do."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int) -> Any:
        assert stream == 1
        return self.pixels.__dlpack__()


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
@pytest.mark.parametrize(("channels", "stream"), [(3, None), (4, 1), (1, 2)])
def test_images_in_gpu_memory(
    bundle: EngineBundle, faults: Faults, kind: type[CudaArray], channels: int, stream: int | None
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 60, channels), dtype=np.uint8)
    with on_host(bundle) as host, load(bundle) as detector:
        device = gpu_backend(detector).device
        with device.current:
            resident = kind(image, 60 * channels + 17, stream)
        wanted = host.detect(image, 0.3)
        other = pictures(1, 60, 60)[0]
        for _ in range(2):
            same(detector.detect(resident, 0.3), wanted)  # type: ignore[arg-type]
            mixed = detector.detect_batch([other, resident], 0.3)  # type: ignore[list-item]
            same(mixed[0], host.detect(other, 0.3))
            same(mixed[1], wanted)
        with counted() as found, copies_on_the_host() as copied, uploads() as seen:
            detector.detect(resident, 0.3)  # type: ignore[arg-type]
        assert copied == []
        assert [nbytes for _, nbytes in seen] == [descriptor_bytes(1)]
        assert (found[0].copies, found[0].allocations, found[0].graph_launches) == (1, 0, 1)
        with pytest.raises(InputError, match="the network runs on the host"):
            host.detect(resident)  # type: ignore[arg-type]
        resident.interface["shape"] = (50, 60, channels, 1)
        if kind is CudaArray:
            with pytest.raises(InputError, match=r"expected a GPU image .*, got uint8 and shape"):
                detector.detect(resident)  # type: ignore[arg-type]
        with device.current:
            resident.free()
