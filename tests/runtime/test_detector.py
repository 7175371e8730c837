"""The detector on a network whose right answer is known."""

import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene

from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.runtime import BatchError, Detections, Detector


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    write_tiny_bundle(tmp_path / "b")
    with Detector.load(tmp_path / "b", threads=1) as loaded:
        yield loaded


def expected_box(height: int, width: int) -> list[float]:
    """Cell (5, 6) with offset (0.25, 0.75), 8 * 128 / 255 + 1 by 4 * 128 / 255 + 2 cells, back in the image."""
    level = 128 / 255
    cx, cy, w, h = 5.25, 6.75, 8 * level + 1, 4 * level + 2
    dx, dy = ((width | 31) + 1) // 2 - width // 2, ((height | 31) + 1) // 2 - height // 2
    corners = [(cx - w / 2) * 4, (cy - h / 2) * 4, (cx + w / 2) * 4, (cy + h / 2) * 4]
    return [corners[0] - dx, corners[1] - dy, corners[2] - dx, corners[3] - dy]


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 95), (40, 200)])
def test_finds_the_planted_object(detector: Detector, height: int, width: int) -> None:
    found = detector.detect(scene(height, width), threshold=0.5)
    assert found.label.tolist() == [0]
    assert found.name_of(0) == "blue"
    np.testing.assert_allclose(found.xyxy[0], expected_box(height, width), rtol=1e-5)
    np.testing.assert_allclose(found.score, 1 / (1 + np.exp(-2.0)), rtol=1e-6)


def test_a_batch_of_many_sizes_equals_single_calls(detector: Detector) -> None:
    random = np.random.default_rng(3)
    sizes = [(64, 96), (33, 40), (64, 96), (90, 64), (64, 96), (64, 96), (64, 96)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together = detector.detect_batch(images, threshold=0.0)
    for image, found in zip(images, together, strict=True):
        alone = detector.detect(image, threshold=0.0)
        assert len(alone) == len(found) > 20
        np.testing.assert_array_equal(found.label, alone.label)
        np.testing.assert_array_equal(found.xyxy, alone.xyxy)
    assert detector.detect_batch([]) == []


def test_a_bad_image_fails_alone(detector: Detector, tmp_path: Path) -> None:
    images: list[Any] = [
        scene(),
        tmp_path / "absent.jpg",
        scene(64, 96),
        np.zeros((900, 9, 3), dtype=np.uint8),
    ]
    results = detector.detect_batch(images, 0.5, errors="return")
    assert [type(result) for result in results] == [Detections, InputError, Detections, InputError]
    assert "absent.jpg" in str(results[1])
    assert "height 32:64:256" in str(results[3])
    with pytest.raises(BatchError, match="2 of 4 images failed") as caught:
        detector.detect_batch(images, 0.5)
    kept = caught.value.results[2]
    assert isinstance(kept, Detections)
    assert len(kept) == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_threshold_classes_and_top_k(detector: Detector) -> None:
    image = scene()
    image[0:4, 0:4] = (0, 200, 10)
    assert detector.detect(image, 0.5).label.tolist() == [0, 1]
    assert detector.detect(image, 0.5, classes=["green"]).label.tolist() == [1]
    assert detector.detect(image, 0.5, classes=[0]).label.tolist() == [0]
    assert detector.detect(image, 0.0, top_k=1).label.tolist() == [0]
    for threshold, top_k in ((1.5, None), (float("nan"), None), (None, 0), (None, 2000)):
        with pytest.raises(InputError):
            detector.detect(image, threshold, top_k=top_k)
    with pytest.raises(InputError, match="no class 'red'"):
        detector.detect(image, classes=["red"])


def test_many_threads_get_their_own_answers(detector: Detector) -> None:
    random = np.random.default_rng(4)
    images = [random.integers(0, 256, (64, 64 + 32 * (n % 3), 3), dtype=np.uint8) for n in range(12)]
    expected = [detector.detect(image, 0.0) for image in images]
    wrong: list[str] = []

    def work(start: int) -> None:
        for n in range(24):
            row = (start + n) % len(images)
            found = detector.detect(images[row], 0.0)
            if not np.array_equal(found.xyxy, expected[row].xyxy):
                wrong.append(f"image {row}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closed_and_unknown_backends(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    detector = Detector.load(tmp_path / "b", threads=1)
    detector.close()
    detector.close()
    with pytest.raises(BackendError, match="closed"):
        detector.detect(scene())
    with pytest.raises(BackendError, match="TensorRT cannot run here: the bundle has no TensorRT plan"):
        Detector.load(tmp_path / "b", backend="tensorrt")
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        Detector.load(tmp_path / "b", backend="cuda")  # type: ignore[arg-type]


def test_a_loaded_detector_keeps_what_it_has_read(tmp_path: Path) -> None:
    """As `docs/embedding.md` says of a bundle that is built anew, or removed, while it is in use."""
    write_tiny_bundle(tmp_path / "b")
    with Detector.load(tmp_path / "b", threads=1) as detector:
        wanted = detector.detect(scene())
        shutil.rmtree(tmp_path / "b")
        found = detector.detect(scene())
        np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
        assert len(detector.submit(scene(96, 64)).result(60)) == 1


def test_says_who_ran_the_network(detector: Detector) -> None:
    assert detector.note == "network ran in ONNX Runtime (fast mode); no plan was built"


def test_a_spec_that_does_not_fit_its_network_is_an_error(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", class_names=["only one"])
    with (
        Detector.load(tmp_path / "b", threads=1) as detector,
        pytest.raises(CenterNetError, match="'hm' has shape"),
    ):
        detector.detect(scene())
