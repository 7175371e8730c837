"""The pipeline and the Detector on the stand-in driver with the fake of TensorRT."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import fake_tensorrt
from helpers.detector_parts import gpu_backend, programs
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import BINDINGS, counted, counts, load, on_host, pictures, same, tiny, world
from helpers.standin_session import ON_STANDIN

from centernet_trt.errors import BackendError, CudaError, InputError
from centernet_trt.runtime import BatchError, Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.gpu import lane as ranges
from centernet_trt.runtime.gpu.buffers import StreamBuffers

pytestmark = ON_STANDIN


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("fixed", [False, True])
def test_equals_the_host(
    tmp_path: Path, faults: Faults, binding: BindingName, half: bool, cuda_graph: bool, fixed: bool
) -> None:
    bundle = tiny(tmp_path, sides=(64, 64, 64) if fixed else (32, 64, 128), half=half)
    sizes = [(60, 50), (63, 63), (40, 33)] + ([] if fixed else [(64, 96), (20, 25)])
    with on_host(bundle) as host, load(bundle, cuda_graph=cuda_graph, binding=binding) as detector:
        assert detector.note == ""
        for count in (1, 3, 8):
            for size in sizes:
                images = pictures(count, *size)
                for found, wanted in zip(
                    detector.detect_batch(images, 0.3), host.detect_batch(images, 0.3), strict=True
                ):
                    same(found, wanted)
        (kept,) = programs(detector)
        assert all(captured == cuda_graph for captured in kept.values())
        assert len(kept) == 3 * (1 if fixed else 3)


@pytest.mark.parametrize(("flavour", "version"), [("tensorrt", "10.13.3.9"), ("tensorrt", "11.0.0.1")])
def test_full_tensorrt(tmp_path: Path, flavour: str, version: str) -> None:
    with world(tmp_path, flavour, version):
        from helpers.fake_bundle import write_bundle
        from helpers.tiny_centernet import tiny_model, tiny_spec

        bundle = write_bundle(
            tmp_path / "b",
            tiny_model(),
            tiny_spec(),
            (1, 1, 4),
            (32, 64, 128),
            flavour,
            version=version,
            target="current",
        )
        images = pictures(2, 60, 50)
        with on_host(bundle) as host, load(bundle) as detector:
            for _ in range(2):
                for found, wanted in zip(
                    detector.detect_batch(images, 0.3), host.detect_batch(images, 0.3), strict=True
                ):
                    same(found, wanted)
            assert all(programs(detector)[0].values())


def test_thresholds_classes_top_k_and_nms(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path, top_k=20, nms_iou=0.2, clip=True)
    (image,) = pictures(1, 60, 60)
    calls: list[dict[str, Any]] = [
        {"threshold": 0.5},
        {"threshold": 0.0, "top_k": 3},
        {"threshold": 0.0, "top_k": 1000},
        {"threshold": 0.0, "classes": ["green"]},
        {},
    ]
    with on_host(bundle) as host, load(bundle) as detector:
        for call in calls * 2:
            same(detector.detect(image, **call), host.detect(image, **call))
        # More rows than the spec's are another program; thresholds and classes are not.
        assert sorted(key[3] for key in programs(detector)[0]) == [20, 1024]
        assert len(detector.detect(image, 0.9999)) == 0


def check_hot_path(detector: Detector, images: list[Any]) -> None:
    """No allocation, at most two copies and one graph launch a batch, one wait, whatever the images' sizes."""
    detector.detect_batch(images, 0.3)
    detector.detect_batch(images, 0.3)
    with counted() as found:
        detector.detect_batch(images, 0.3)
    (made,) = found
    assert made.allocations == 0
    assert made.copies <= 2
    assert made.graph_launches == 1
    assert made.launches == 0
    assert made.waits <= 1


@pytest.mark.parametrize("binding", BINDINGS)
def test_the_hot_path_is_one_copy_one_graph_one_wait(
    bundle: EngineBundle, faults: Faults, binding: BindingName
) -> None:
    with load(bundle, binding=binding) as detector:
        for images in (pictures(1, 60, 60), pictures(8, 60, 60), pictures(3, 60, 50) + pictures(2, 40, 63)):
            check_hot_path(detector, images)


def test_a_planted_allocation_is_found(
    bundle: EngineBundle, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = StreamBuffers.upload

    def wasteful(self: StreamBuffers, *arguments: Any) -> None:
        self._device.allocate(64).close()
        upload(self, *arguments)

    monkeypatch.setattr(StreamBuffers, "upload", wasteful)
    with load(bundle) as detector, pytest.raises(AssertionError, match="allocations=1"):
        check_hot_path(detector, pictures(1, 60, 60))


def test_images_of_other_sizes_replay_the_same_graph(bundle: EngineBundle, faults: Faults) -> None:
    with on_host(bundle) as host, load(bundle) as detector:
        for seed, size in enumerate([(60, 60), (33, 40), (50, 63), (63, 32), (60, 60)]):
            (image,) = pictures(1, *size, seed=seed)
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
        assert list(programs(detector)[0]) == [(1, 64, 64, 100)]
        with counted() as found:
            detector.detect(pictures(1, 41, 59)[0])
        assert found[0].graph_launches == 1
        assert faults.enqueues == 2  # the warm one and the recorded one


def test_graphs_are_bounded(bundle: EngineBundle, faults: Faults) -> None:
    with on_host(bundle) as host, load(bundle, max_graphs=2) as detector:
        for size in [(20, 20), (40, 40), (20, 40), (20, 20), (40, 20), (20, 20)]:
            (image,) = pictures(1, *size)
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
            assert len(programs(detector)[0]) <= 2
        assert set(programs(detector)[0]) == {(1, 64, 32, 100), (1, 32, 32, 100)}


def test_memory_is_told_and_does_not_grow(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle, streams=2) as detector:
        told, before = detector.memory, counts().allocations
        backend = gpu_backend(detector)
        free = backend.device.free_memory()
        weights = told.device["weights"]
        assert told.device_total - weights == (1 << 32) - free
        assert "MiB on the device" in str(told)
        for size in [(20, 20), (40, 40), (60, 60)]:
            detector.detect_batch(pictures(5, *size))
        detector.warmup([(60, 60)])
        assert counts().allocations == before
        assert backend.device.free_memory() == free
        assert detector.memory == told


def test_batches_beyond_the_largest_and_the_upload_buffer_are_cut(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path, sides=(64, 64, 64), batch=(1, 4, 4))
    images = pictures(11, 60, 60) + pictures(2, 40, 40)
    with on_host(bundle) as host, load(bundle, streams=3) as detector:
        wanted = host.detect_batch(images, 0.3)
        for _ in range(3):
            for one, other in zip(detector.detect_batch(images, 0.3), wanted, strict=True):
                same(one, other)


def test_a_fixed_batch_is_filled_with_absent_images(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path, batch=(4, 4, 4))
    with on_host(bundle) as host, load(bundle) as detector:
        for count in (1, 3, 4, 5):
            images = pictures(count, 60, 60)
            for one, other in zip(
                detector.detect_batch(images, 0.3), host.detect_batch(images, 0.3), strict=True
            ):
                same(one, other)
        assert {key[0] for key in programs(detector)[0]} == {4}


def test_one_bad_image_fails_alone(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(
        tmp_path,
        sides=(64, 64, 64),
        input={"size": {"rule": "fixed", "width": 64, "height": 64}, "resize": {"policy": "letterbox"}},
    )
    good, large = pictures(1, 60, 60)[0], pictures(1, 500, 700)[0]
    with load(bundle, max_batch=1, max_pixels=10000) as detector:
        with pytest.raises(BatchError, match="loaded for 10000 pixels") as caught:
            detector.detect_batch([good, large, good], 0.0)
        assert [type(result).__name__ for result in caught.value.results] == [
            "Detections",
            "InputError",
            "Detections",
        ]


def test_batches_of_one_call_overlap_on_the_streams(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle, streams=3, max_batch=2) as detector:
        detector.detect_batch(pictures(6, 60, 60), 0.3)
        assert [bool(kept) for kept in programs(detector)] == [True] * 3


@pytest.mark.parametrize("tta", ["flip", "multiscale"])
def test_augmentation(tmp_path: Path, faults: Faults, tta: Any) -> None:
    bundle = tiny(tmp_path, sides=(32, 64, 256), batch=(1, 1, 2))
    (image,) = pictures(1, 60, 60)
    with on_host(bundle) as host, load(bundle) as detector:
        same(detector.detect(image, 0.3, tta=tta), host.detect(image, 0.3, tta=tta))


def test_warmup(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle, streams=2) as detector:
        detector.warmup([(60, 60), (40, 20)], batches=[1, 2])
        wanted = {(n, *size, 100) for n in (1, 2) for size in ((64, 64), (32, 64))}
        assert [set(kept) for kept in programs(detector)] == [wanted, wanted]
        before = faults.enqueues
        with counted() as found:
            detector.detect_batch(pictures(2, 60, 60))
        assert found[0].graph_launches == 1
        assert faults.enqueues == before
        detector.warmup()
        with pytest.raises(InputError, match="1 to 8 images"):
            detector.warmup(batches=[9])
        with pytest.raises(InputError, match="built for batch"):
            detector.warmup([(999, 20)])


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_wait_that_sleeps(bundle: EngineBundle, faults: Faults, binding: BindingName) -> None:
    """`spin=False` reaches the driver as the flag of the event that a call waits for."""
    (image,) = pictures(1, 60, 60)
    with on_host(bundle) as host:
        for spin, sleeping in ((True, 0), (False, 2)):
            with load(bundle, spin=spin, streams=2, binding=binding) as detector:
                assert fake_tensorrt.driver().standin_sleeping_events() == sleeping
                same(detector.detect(image, 0.3), host.detect(image, 0.3))


def test_a_device_by_uuid_and_wrong_options(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle, device="GPU-0707") as detector:
        detector.detect(pictures(1, 60, 60)[0])
    with pytest.raises(BackendError, match="there is no GPU 3"):
        load(bundle, device=3)
    for options in ({"streams": 0}, {"max_batch": 99}, {"max_pixels": 0}):
        with pytest.raises(InputError):
            load(bundle, **options)


def test_ranges_for_the_profiler(
    bundle: EngineBundle, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch shows as `start` and `wait`, in this order and closed, where nvtx is installed."""
    seen: list[str] = []

    @contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        assert domain == "centernet-trt"
        seen.append(f"{name} begins")
        yield
        seen.append(f"{name} ends")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    ranges._annotate.cache_clear()
    try:
        with load(bundle) as detector:
            detector.detect(pictures(1, 60, 60)[0])
            assert seen == ["start begins", "start ends", "wait begins", "wait ends"]
            faults.refuse_shape = True
            with pytest.raises(BackendError):
                detector.detect(pictures(1, 20, 20)[0])
            assert seen.count("start begins") == 2
    finally:
        ranges._annotate.cache_clear()


def test_auto(bundle: EngineBundle, faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"max_pixels": 40000, "streams": 1, "binding": "cuda-bindings"}
    with Detector.load(bundle, **options) as detector:
        assert detector.note == ""
    faults.refuse_plan = True
    with Detector.load(bundle, **options) as detector:
        assert "network ran in ONNX Runtime" in detector.note
    assert "the network runs in ONNX Runtime: TensorRT refuses the plan" in caplog.text
    with Detector.load(bundle, mode="faithful") as detector:
        assert "faithful" in detector.note


def test_the_bundle_may_be_removed_while_it_is_in_use(bundle: EngineBundle, faults: Faults) -> None:
    images = [*pictures(1, 60, 60), *pictures(1, 20, 40)]
    with on_host(bundle) as host, load(bundle) as detector:
        same(detector.detect(images[0], 0.3), host.detect(images[0], 0.3))
        shutil.rmtree(bundle.path)
        for image in images * 2:  # the second one's shape is new
            same(detector.detect(image, 0.3), host.detect(image, 0.3))


def test_use_after_close(bundle: EngineBundle, faults: Faults) -> None:
    detector = load(bundle)
    backend = gpu_backend(detector)
    detector.detect(pictures(1, 60, 60)[0])
    detector.close()
    detector.close()
    with pytest.raises(BackendError, match="closed"):
        detector.detect(pictures(1, 60, 60)[0])
    with pytest.raises(BackendError, match="closed"):
        _ = detector.memory
    with pytest.raises(BackendError, match="closed"):
        backend.run([[]] * 0 or [[None]])  # type: ignore[list-item]


def test_a_fork_is_an_error_and_ends_cleanly(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle) as detector:
        image = pictures(1, 60, 60)[0]
        detector.detect(image)
        child = os.fork()
        if child == 0:
            verdict = 1
            try:
                for call in (detector.detect, detector.submit, lambda image: detector.pinned_image(8, 8)):
                    try:
                        call(image)
                    except (BackendError, CudaError) as error:
                        if not re.search(r"process \d+ and cannot be used in its fork \d+", error.message):
                            os._exit(3)
                    else:
                        os._exit(2)
                detector.close()
                verdict = 0
            finally:
                os._exit(verdict)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        detector.detect(image)


def test_capture_refused_by_tensorrt(
    bundle: EngineBundle, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    faults.uncapturable = True
    with on_host(bundle) as host, load(bundle) as detector:
        for size in ((60, 60), (40, 20), (60, 60)):
            (image,) = pictures(1, *size)
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
        assert set(programs(detector)[0].values()) == {False}
    told = [record for record in caplog.records if "without CUDA graphs" in record.message]
    assert len(told) == 1
    assert told[0].levelno == logging.WARNING


@pytest.mark.parametrize("how", ["synchronises", "refuses"])
def test_a_capture_that_fails_falls_back(
    bundle: EngineBundle, faults: Faults, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """The network fails inside the recording only: nothing of it may be replayed."""
    if how == "synchronises":
        faults.synchronise_in_enqueue = True
    else:
        faults.skip_enqueues, faults.refuse_enqueue = 1, 1
    with on_host(bundle) as host, load(bundle) as detector:
        for seed in range(3):
            (image,) = pictures(1, 60, 60, seed=seed)
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
        assert set(programs(detector)[0].values()) == {False}
    assert caplog.text.count("without CUDA graphs") == 1


def test_an_enqueue_that_is_refused(bundle: EngineBundle, faults: Faults) -> None:
    (image,) = pictures(1, 60, 60)
    with on_host(bundle) as host, load(bundle) as detector:
        faults.refuse_enqueue = 1
        with pytest.raises(BackendError, match="refuses to run an input of 1x3x64x64") as caught:
            detector.detect(image, 0.3)
        assert (
            "[ERROR] [fake] IExecutionContext::enqueueV3: refused as the test asked" in caught.value.message
        )
        for _ in range(2):
            same(detector.detect(image, 0.3), host.detect(image, 0.3))
        faults.refuse_shape = True
        with pytest.raises(BackendError, match="outside the profile"):
            detector.detect(pictures(1, 20, 20)[0])
        faults.refuse_shape = False
        faults.refuse_context = True
        with pytest.raises(BackendError, match="cannot make an execution context"):
            detector.detect(pictures(1, 20, 20)[0])
        faults.refuse_context = False
        same(detector.detect(image, 0.3), host.detect(image, 0.3))
