import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from hypothesis import given
from hypothesis import strategies as st

from centernet_trt.errors import InputError
from centernet_trt.runtime import Detector, EngineBundle
from centernet_trt.runtime.bundle import MANIFEST
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange
from centernet_trt.runtime.profiles import (
    batch_to_run,
    check_size,
    choose_profile,
    described,
    largest_batch,
    largest_shapes,
)


def profile(batch: str, height: str, width: str) -> ProfileRecord:
    parse = ShapeRange.parse
    return ProfileRecord(batch=parse(batch), height=parse(height), width=parse(width))


SMALL = profile("1:1:2", "32:64:128", "32:64:128")
LARGE = profile("1:4:8", "32:128:256", "32:128:256")
WIDE = profile("4:4:4", "64", "512")
THREE = (SMALL, LARGE, WIDE)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 64, 64), 0),  # both: tuned for it
        ((2, 64, 64), 0),  # 1 octave from the small one, 3 from the large one
        ((4, 64, 64), 1),  # the small one takes 2
        ((1, 128, 128), 0),  # 2 octaves from either: the tighter one
        ((2, 128, 128), 1),
        ((1, 160, 64), 1),
        ((4, 64, 512), 2),
    ],
)
def test_the_nearest_tuned_shape_serves(shape: tuple[int, int, int], expected: int) -> None:
    assert choose_profile(THREE, *shape) == expected
    # The order of the profiles decides nothing.
    assert choose_profile(THREE[::-1], *shape) == 2 - expected


def test_of_equal_profiles_the_first_serves() -> None:
    assert choose_profile((SMALL, SMALL), 1, 64, 64) == 0


@pytest.mark.parametrize("shape", [(0, 64, 64), (9, 64, 64), (1, 16, 64), (1, 64, 512), (4, 64, 500)])
def test_a_shape_of_no_profile_lists_them_all(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError) as caught:
        choose_profile(THREE, *shape)
    batch, height, width = shape
    assert f"got {batch} images of {width}x{height} pixels" in caught.value.message
    for line in (
        "profile 0: batch 1:1:2, height 32:64:128, width 32:64:128",
        "profile 1: batch 1:4:8, height 32:128:256, width 32:128:256",
        "profile 2: batch 4, height 64, width 512",
    ):
        assert line in caught.value.message
    assert "--profile" in caught.value.hint


def test_words() -> None:
    assert described([SMALL]) == "batch 1:1:2, height 32:64:128, width 32:64:128"
    check_size(THREE, 64, 512, lambda: "x", "y")
    with pytest.raises(InputError, match=r"an image needs a network input of 512x65.*profile 2: batch 4"):
        check_size(THREE, 65, 512, lambda: "an image", "hint")


ranges = st.lists(st.integers(1, 6), min_size=3, max_size=3).map(lambda n: ShapeRange.of(*sorted(n)))
records = st.builds(ProfileRecord, batch=ranges, height=ranges, width=ranges)


@given(st.lists(records, min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 6), st.integers(1, 6))
def test_batches_against_all_that_could_be(
    profiles: list[ProfileRecord], images: int, height: int, width: int
) -> None:
    """Every batch from 1 to the largest is tried one by one."""
    taken = []
    for batch in range(1, 8):
        try:
            number = choose_profile(profiles, batch, height, width)
        except InputError:
            continue
        taken.append(batch)
        chosen = profiles[number]
        assert batch in chosen.batch
        assert height in chosen.height
        assert width in chosen.width
    assert largest_batch(profiles, height, width) == max(taken, default=0)
    enough = [batch for batch in taken if batch >= images]
    if enough:
        assert batch_to_run(profiles, images, height, width) == enough[0]
    else:
        with pytest.raises(InputError, match="expected an input that the engine was built for"):
            batch_to_run(profiles, images, height, width)


@given(st.lists(records, min_size=1, max_size=3), st.integers(1, 6))
def test_buffers_hold_every_batch_that_can_run(profiles: list[ProfileRecord], max_batch: int) -> None:
    room = max(n * h * w for n, h, w in largest_shapes(profiles, max_batch))
    for height, width in itertools.product(range(1, 7), repeat=2):
        most = min(max_batch, largest_batch(profiles, height, width))
        for images in range(1, most + 1):
            assert batch_to_run(profiles, images, height, width) * height * width <= room


def test_the_host_serves_every_profile_and_nothing_else(tmp_path: Path) -> None:
    """A tall, a wide and a square input through the public calls; ONNX Runtime itself would take any."""
    bundle = write_tiny_bundle(tmp_path / "b", threshold=0.3)
    profiles = (profile("1", "64", "32"), profile("2:2:3", "32", "96"), profile("1:2:4", "64", "64"))
    manifest = bundle.manifest.model_copy(update={"profiles": profiles})
    (bundle.path / MANIFEST).write_text(manifest.to_json())
    random = np.random.default_rng(0)
    sizes = [(60, 30), (30, 90), (60, 60)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes * 5]
    with (
        Detector.load(EngineBundle.load(bundle.path), backend="onnxruntime", threads=1) as detector,
        Detector.load(write_tiny_bundle(tmp_path / "w", threshold=0.3), backend="onnxruntime") as wide,
    ):
        for found, wanted in zip(detector.detect_batch(images), wide.detect_batch(images), strict=True):
            assert len(found) == len(wanted) > 0
            np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)
        detector.warmup()
        for height, width in ((30, 60), (90, 30), (90, 90)):
            with pytest.raises(InputError, match=r"profile 0: batch 1, .*profile 2: batch 1:2:4"):
                detector.detect(np.zeros((height, width, 3), np.uint8))
        with pytest.raises(InputError, match="got 2 images of 32x64 pixels"):
            detector._open_backend.heads(np.zeros((2, 3, 64, 32), np.float32))
        with pytest.raises(InputError, match="1 to 1 images, got"):
            detector.warmup([(30, 60)], batches=[2])
