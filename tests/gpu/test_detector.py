"""The whole pipeline on a real GPU with a real TensorRT: a bundle built here, compared with ONNX Runtime.

Not for the stand-in driver: TensorRT talks to the real one. What the stand-in can check is in tests/standin.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.detector_parts import gpu_backend, programs
from helpers.driver_machine import why_no_gpu
from helpers.tiny_centernet import save_tiny_model, scene, tiny_spec

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.errors import BackendError
from centernet_trt.runtime import Detections, Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.trt.flavours import is_installed

pytestmark = pytest.mark.gpu


BUILDS = [("rtx", "portable"), ("rtx", "current"), ("tensorrt", "current")]


@pytest.fixture(scope="module", params=BUILDS, ids=["-".join(build) for build in BUILDS])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    if "CENTERNET_TRT_STANDIN" in os.environ:
        pytest.skip("the driver is the stand-in")
    flavour, target = request.param
    if not is_installed(flavour):
        pytest.skip(f"this flavour of TensorRT is not installed: {flavour}")
    folder = tmp_path_factory.mktemp(f"{flavour}-{target}")
    sides = ShapeRange.of(32, 64, 128)
    options = BuildOptions(
        flavour=flavour,
        targets=(target,),
        precision="fp32",
        batch=ShapeRange.of(1, 2, 4),
        height=sides,
        width=sides,
    )
    return build(save_tiny_model(folder), tiny_spec(), folder / "bundle", options)


@pytest.fixture(scope="module", params=[True, False], ids=["graphs", "launches"])
def detector(bundle: EngineBundle, request: pytest.FixtureRequest) -> Iterator[Detector]:
    with Detector.load(bundle, backend="tensorrt", cuda_graph=request.param, max_pixels=10000) as loaded:
        yield loaded


def agree(found: Detections, wanted: Detections) -> None:
    assert len(found) == len(wanted) > 0
    np.testing.assert_allclose(np.sort(found.score), np.sort(wanted.score), atol=2e-3)
    np.testing.assert_allclose(found.xyxy[0], wanted.xyxy[0], atol=0.05)


def test_equals_the_host(bundle: EngineBundle, detector: Detector) -> None:
    with Detector.load(bundle, backend="onnxruntime") as host:
        for size in ((64, 96), (40, 50), (100, 33)):
            for count in (1, 3, 4):
                images = [scene(*size)] * count
                for _ in range(3):
                    for one, other in zip(
                        detector.detect_batch(images, 0.5), host.detect_batch(images, 0.5), strict=True
                    ):
                        agree(one, other)


def test_shapes_are_recorded_as_graphs(detector: Detector) -> None:
    backend = gpu_backend(detector)
    detector.warmup([(96, 64)])
    captured = {made for kept in programs(detector) for made in kept.values()}
    assert captured == {backend.options.cuda_graph}


def test_many_threads(detector: Detector) -> None:
    images = [scene(64, 64 + 8 * n) for n in range(4)]
    wanted = [detector.detect(image, 0.5) for image in images]
    failures: list[str] = []

    def work(start: int) -> None:
        try:
            for n in range(50):
                row = (start + n) % len(images)
                agree(detector.detect(images[row], 0.5), wanted[row])
        except Exception as error:  # noqa: BLE001 - it is shown by the test
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_growth(detector: Detector) -> None:
    backend = gpu_backend(detector)
    image = scene()
    detector.detect(image)
    free = backend.device.free_memory()
    for _ in range(2000):
        detector.detect(image)
    assert backend.device.free_memory() >= free - (4 << 20)


def test_images_in_gpu_memory(detector: Detector) -> None:
    backend = gpu_backend(detector)
    image, device = scene(), backend.device
    with (
        device.allocate(image.nbytes) as memory,
        device.allocate_pinned(image.nbytes) as pinned,
        device.stream() as stream,
    ):
        pinned.array[:] = image.reshape(-1)
        stream.copy_to_device(memory.address, pinned.address, image.nbytes)

        class Resident:
            __cuda_array_interface__ = memory.__cuda_array_interface__ | {
                "shape": image.shape,
                "stream": stream.number,
            }

        resident: Any = Resident()
        agree(detector.detect(resident, 0.5), detector.detect(image, 0.5))


def test_images_in_pinned_memory(detector: Detector) -> None:
    image = scene()
    pinned = detector.pinned_image(*image.shape[:2])
    pinned[...] = image
    for _ in range(3):
        agree(detector.detect(pinned, 0.5), detector.detect(image, 0.5))


def test_submitted_images_run_in_batches(bundle: EngineBundle) -> None:
    images = [scene(64, 64 + 8 * n) for n in range(4)]
    with Detector.load(bundle, backend="tensorrt", max_pixels=10000, streams=4) as loaded:
        wanted = [loaded.detect(image, 0.5) for image in images]
        futures = [(row % 4, loaded.submit(images[row % 4], threshold=0.5)) for row in range(400)]
        for row, future in futures:
            agree(future.result(timeout=60), wanted[row])
        assert max(loaded.stats.batch_sizes) > 1


def test_flip(bundle: EngineBundle, detector: Detector) -> None:
    image = scene(64, 95)
    with Detector.load(bundle, backend="onnxruntime") as host:
        agree(detector.detect(image, 0.3, tta="flip"), host.detect(image, 0.3, tta="flip"))


def test_a_plan_cut_short_is_refused_with_tensorrts_words(bundle: EngineBundle, tmp_path: Path) -> None:
    plan = bundle.manifest.plans[0]
    (tmp_path / plan.file).write_bytes((bundle.path / plan.file).read_bytes()[:1000])
    with pytest.raises(BackendError, match="refuses the plan"):
        Detector.load(EngineBundle(tmp_path, bundle.manifest), backend="tensorrt")
