"""Many threads on one detector, on both bindings and 1 to 4 streams."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.detector_parts import gpu_backend, programs
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import BINDINGS, load, on_host, pictures, same, tiny
from helpers.standin_session import ON_STANDIN
from helpers.threads import LONG, in_threads

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime import Batching
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName

pytestmark = ON_STANDIN


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("binding", BINDINGS)
def test_eight_threads(
    bundle: EngineBundle, faults: Faults, binding: BindingName, streams: int, cuda_graph: bool
) -> None:
    images = [pictures(1, 40 + 4 * n, 60, seed=n)[0] for n in range(6)]
    with (
        on_host(bundle) as host,
        load(bundle, streams=streams, binding=binding, cuda_graph=cuda_graph) as detector,
    ):
        wanted = [host.detect(image, 0.3) for image in images]

        def work(number: int) -> None:
            for step in range(4):
                row = (number + step) % len(images)
                same(detector.detect(images[row], 0.3), wanted[row])
                found = detector.detect_batch(images[row:] + images[:row], 0.3)
                for one, other in zip(found, wanted[row:] + wanted[:row], strict=True):
                    same(one, other)

        in_threads(work)
        # Every stream that worked recorded its shapes; how many did is the threads' own affair.
        assert any(programs(detector))
        assert all(captured == cuda_graph for kept in programs(detector) for captured in kept.values())


@pytest.mark.parametrize("binding", BINDINGS)
def test_everything_at_once(tmp_path: Path, faults: Faults, binding: BindingName) -> None:
    """Threads that detect, submit, augment, warm up, make pinned images and look at the figures, on two streams."""
    bundle = tiny(tmp_path, sides=(32, 64, 128), batch=(1, 1, 4))
    images = pictures(4, 60, 60)
    with on_host(bundle) as host, load(bundle, streams=2, binding=binding) as detector:
        wanted = [host.detect(image, 0.3, top_k=9) for image in images]
        mirrored = [host.detect(image, 0.3, tta="flip") for image in images]

        def work(number: int) -> None:
            for row, image in enumerate(images):
                match number % 4:
                    case 0:
                        same(detector.detect(image, 0.3, top_k=9), wanted[row])
                    case 1:
                        same(detector.submit(image, LONG, 0.3, top_k=9).result(LONG), wanted[row])
                    case 2:
                        same(detector.submit(image, LONG, 0.3, tta="flip").result(LONG), mirrored[row])
                    case _:
                        detector.warmup([(20 + 40 * (row % 2), 60)], batches=[1 + row])
                        pinned = detector.pinned_image(60, 60)
                        pinned[...] = image
                        same(detector.detect(pinned, 0.3, top_k=9), wanted[row])
                        assert detector.stats.failed == 0
                        assert detector.memory.pinned_total > 0

        in_threads(work)


def test_batches_of_one_call_overlap_on_the_streams(bundle: EngineBundle, faults: Faults) -> None:
    with load(bundle, streams=3, max_batch=2) as detector:
        detector.detect_batch(pictures(6, 60, 60), 0.3)
        assert [bool(kept) for kept in programs(detector)] == [True] * 3


MIXED: list[dict[str, Any]] = [
    {"threshold": 0.0, "top_k": 3},
    {"threshold": 0.5, "classes": ["green"]},
    {"threshold": 0.2, "top_k": 700},
    {"threshold": 0.3, "classes": [0], "top_k": 20},
    {"threshold": 0.4},
    {"threshold": 0.3, "tta": "flip"},
    {"threshold": 0.3, "tta": "flip", "top_k": 5, "classes": ["blue"]},
    {"threshold": 0.3, "tta": "multiscale", "top_k": 200},
]


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("streams", [1, 3])
def test_each_submitted_image_has_wishes_of_its_own(
    tmp_path: Path, faults: Faults, streams: int, binding: BindingName
) -> None:
    """Other thresholds, classes, top_k and augmentations within one batch, more rows than the spec's among them."""
    bundle = tiny(tmp_path, sides=(32, 64, 128), batch=(1, 4, 8))
    images = pictures(len(MIXED), 60, 60)
    options = {"streams": streams, "binding": binding, "batching": Batching(max_wait=0.05)}
    with on_host(bundle) as host, load(bundle, **options) as detector:
        for _ in range(2):  # launch by launch, then as graphs
            futures = [detector.submit(image, **wish) for image, wish in zip(images, MIXED, strict=True)]
            for image, wish, future in zip(images, MIXED, futures, strict=True):
                same(future.result(LONG), host.detect(image, **wish))
        sizes = detector.stats.batch_sizes
        assert max(sizes) > 1, "none of them shared a batch"
        assert sum(size * count for size, count in sizes.items()) == 2 * len(MIXED)


@pytest.mark.parametrize("tta", ["flip", "multiscale", "flip+multiscale"])
def test_augmentation_in_every_call(tmp_path: Path, faults: Faults, tta: Any) -> None:
    """`detect`, `detect_batch` and `submit` give what the host gives, and a bad image fails alone in each."""
    bundle = tiny(tmp_path, sides=(32, 64, 128), batch=(1, 1, 2))
    images, large = [*pictures(2, 60, 60), *pictures(1, 41, 50)], pictures(1, 120, 120)[0]
    with on_host(bundle) as host, load(bundle, streams=2) as detector:
        wanted = [host.detect(image, 0.3, tta=tta) for image in images]
        same(detector.detect(images[0], 0.3, tta=tta), wanted[0])
        for one, other in zip(detector.detect_batch(images, 0.3, tta=tta), wanted, strict=True):
            same(one, other)
        absent = str(tmp_path / "absent.png")
        mixed: list[Any] = [images[0], absent, images[2], *([large] if "multiscale" in tta else [])]
        found = detector.detect_batch(mixed, 0.3, tta=tta, errors="return")
        futures = [detector.submit(image, threshold=0.3, tta=tta) for image in mixed]
        for row, future in enumerate(futures):
            result = found[row]
            if row in (0, 2):
                assert not isinstance(result, Exception)
                same(result, wanted[row])
                same(future.result(LONG), wanted[row])
            else:
                assert isinstance(result, InputError)
                with pytest.raises(InputError, match="absent.png" if row == 1 else "at scale 1.25"):
                    future.result(LONG)


def test_futures_on_the_gpu(bundle: EngineBundle, faults: Faults) -> None:
    """Awaited, cancelled, drained and abandoned, with TensorRT behind them."""
    images = pictures(3, 60, 60)
    with on_host(bundle) as host:
        wanted = [host.detect(image, 0.3) for image in images]

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*[ask(image) for image in images]))

    async def ask(image: Any) -> Any:
        return await detector.submit(image, threshold=0.3)

    with load(bundle, streams=2) as detector:
        for one, other in zip(asyncio.run(all_of_them()), wanted, strict=True):
            same(one, other)
        figures = detector.stats
        assert (figures.completed, figures.failed, figures.queue_depth, figures.running) == (3, 0, 0, 0)
        assert figures.latency_p50 is not None
        assert figures.latency_p99 is not None
        assert 0 < figures.latency_p50 <= figures.latency_p99
    patient = Batching(max_wait=1000.0)
    with load(bundle, batching=patient) as detector:
        kept, dropped = detector.submit(images[0], threshold=0.3), detector.submit(images[1])
        assert detector.stats.queue_depth == 2
        assert dropped.cancel()
        assert (detector.stats.queue_depth, detector.stats.cancelled) == (1, 1)
        detector.close()  # drains
        same(kept.result(0), wanted[0])
    detector = load(bundle, batching=patient)
    abandoned = detector.submit(images[0])
    detector.close(drain=False)
    with pytest.raises(BackendError, match="closed before this request was run"):
        abandoned.result(0)


def test_close_waits_for_what_runs(bundle: EngineBundle, faults: Faults) -> None:
    """Threads in the middle of a call get their answers, or an error that says closed; nothing is freed beneath them."""
    (image,) = pictures(1, 60, 60)
    with on_host(bundle) as host:
        wanted = host.detect(image, 0.3)
    detector = load(bundle, streams=2)
    detector.warmup([(60, 60)], batches=[1])
    pipeline = gpu_backend(detector)
    started = threading.Barrier(5)
    refusals: list[str] = []

    def work(number: int) -> None:
        started.wait(LONG)
        if number == 4:
            detector.close()
            return
        for _ in range(50):
            try:
                found = detector.detect(image, 0.3)
            except BackendError as error:
                refusals.append(error.message)
                return
            same(found, wanted)

    in_threads(work, 5)
    assert all("closed" in message for message in refusals), refusals
    assert pipeline.device.closed
    with pytest.raises(BackendError, match="closed"):
        detector.detect(image)
