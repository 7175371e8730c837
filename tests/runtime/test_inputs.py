"""Images made ready: the shortcuts give what the long way gives. And the descriptors that follow, held to their maker."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.kernels.structs import Image
from centernet_trt.runtime import inputs as intake
from centernet_trt.runtime.backend import InferenceRequest
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.gpu import buffers as image_table
from centernet_trt.runtime.gpu.buffers import ImageDescriptors, descriptor_bytes
from centernet_trt.runtime.gpu.kernels import absent_image, image_descriptor
from centernet_trt.runtime.images import as_bgr
from centernet_trt.runtime.inputs import InputPreparer, host_image
from centernet_trt.runtime.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_tiny_bundle(tmp_path_factory.mktemp("intake") / "b").manifest


def accepts(image: Any) -> None:
    """A backend that takes everything."""


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([None, 1, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    step=st.sampled_from([1, 2, -1]),
    order=st.sampled_from(["C", "F"]),
)
def test_every_array_is_what_as_bgr_makes_of_it(
    manifest: Manifest, height: int, width: int, channels: int | None, dtype: Any, step: int, order: Any
) -> None:
    random = np.random.default_rng(height * 41 + width)
    shape = (height, width) if channels is None else (height, width, channels)
    source = np.asarray(random.integers(0, 256, shape), dtype=dtype, order=order)[::step, ::step]
    image, placement = InputPreparer(manifest).prepare(source, accepts)
    assert isinstance(image, np.ndarray)
    expected = as_bgr(source)
    np.testing.assert_array_equal(image, expected)
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)
    assert placement == place(manifest.spec.input, expected.shape[1], expected.shape[0])


@pytest.mark.parametrize(
    "wrong", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3)), np.zeros((5, 5, 2), np.uint8)]
)
def test_wrong_arrays_are_still_refused(manifest: Manifest, wrong: Any) -> None:
    with pytest.raises(InputError):
        InputPreparer(manifest).prepare(wrong, accepts)


def test_the_backend_is_asked_and_sizes_are_remembered(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_MAX_CACHED_SIZES", 3)
    known = InputPreparer(manifest)
    placed: list[tuple[int, int]] = []

    def counted(spec: Any, width: int, height: int) -> Any:
        placed.append((width, height))
        return place(spec, width, height)

    monkeypatch.setattr(intake, "place", counted)
    for width in (10, 20, 10, 20, 30, 40, 40, 10):  # the fourth size makes room by forgetting all
        image = np.zeros((16, width, 3), np.uint8)
        _, placement = known.prepare(image, accepts)
        assert placement == place(manifest.spec.input, width, 16)
    assert placed == [(10, 16), (20, 16), (30, 16), (40, 16), (10, 16)]

    def refuses(image: Any) -> None:
        raise InputError("not this one")

    with pytest.raises(InputError, match="not this one"):
        known.prepare(np.zeros((16, 10, 3), np.uint8), refuses)
    for _ in range(2):  # what does not fit is not remembered as fitting
        with pytest.raises(InputError, match="needs a network input"):
            known.prepare(np.zeros((16, 900, 3), np.uint8), accepts)


def test_an_image_for_augmentation() -> None:
    array = np.zeros((4, 5), np.uint8)
    assert host_image(array).shape == (4, 5, 3)

    source: Any = SimpleNamespace(__cuda_array_interface__={})
    with pytest.raises(InputError, match="expected an image on the host with tta="):
        host_image(source)


ROW = st.tuples(
    st.integers(0, 4),  # the placement, of which some are equal without being the same
    st.sampled_from([None, 0.0, 0.25, 1.0]),
    st.sampled_from([None, 1, 7]),
    st.integers(1, 2**63),
    st.sampled_from([(0, 3), (64, 4), (40, 1)]),
)


@settings(max_examples=50, deadline=None)
@given(
    batches=st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=8),
    remembered=st.integers(1, 5),
)
def test_remembered_descriptors_are_the_right_ones(batches: list[list[Any]], remembered: int) -> None:
    spec = tiny_spec()
    memory = (ctypes.c_uint8 * (descriptor_bytes(5) + 256))()
    table = ImageDescriptors(ctypes.addressof(memory), spec)
    sizes = [(30, 20), (31, 20), (30, 20), (8, 9), (60, 60)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_table, "_MAX_CACHED", remembered)
        kept = [place(spec.input, *size) for size in sizes]
        for rows in batches:
            batch = len(rows) + 1
            descriptors, first = table.get_table(batch)
            assert first == descriptor_bytes(batch)
            expected = []
            for row, (number, threshold, top_k, pixels, (pitch, channels)) in enumerate(rows):
                # A placement made anew may lie where a forgotten one lay.
                placement = kept[number] if number % 2 else place(spec.input, *sizes[number])
                request = InferenceRequest(np.zeros((1, 1, 3), np.uint8), placement, threshold, top_k)
                table.put(descriptors, row, request, pixels, pitch, channels)
                asked = (placement, spec, threshold, top_k, pixels, pitch, channels)
                expected.append(bytes(image_descriptor(*asked)))
            table.put_absent(descriptors, len(rows))
            expected.append(bytes(absent_image()))
            assert bytes(memory)[: batch * ctypes.sizeof(Image)] == b"".join(expected)
