"""Detector.submit on the host backend: the answers of `detect`, whatever shares the batch."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene
from hypothesis import given, settings
from hypothesis import strategies as st

from centernet_trt.errors import BackendError, InputError
from centernet_trt.runtime import (
    BatchError,
    Batching,
    Detections,
    Detector,
    QueueFullError,
    TestTimeAugmentation,
)

LONG = 60.0


def same(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.score, expected.score)
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)


@pytest.fixture(scope="module", params=[None, 0.3], ids=["plain", "nms"])
def gathering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Detector]:
    """A detector that waits long enough for what is submitted at once to share batches."""
    folder = tmp_path_factory.mktemp("bundles") / "b"
    write_tiny_bundle(folder, nms_iou=request.param)
    with Detector.load(folder, threads=1, batching=Batching(max_wait=0.02)) as loaded:
        yield loaded


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    write_tiny_bundle(tmp_path / "b")
    with Detector.load(tmp_path / "b", threads=1) as loaded:
        yield loaded


WISH = st.tuples(
    st.sampled_from([None, 0.0, 0.3, 0.5, 0.62, 1.0]),
    st.sampled_from([None, [0], ["green"], [0, 1], []]),
    st.sampled_from([None, 1, 3, 100, 300]),
    st.sampled_from([None, None, "flip", TestTimeAugmentation(scales=(1.0, 0.5))]),
    st.integers(0, 5),
)


@settings(max_examples=25, deadline=None)
@given(wishes=st.lists(WISH, min_size=1, max_size=9))
def test_each_request_gets_what_detect_gives(gathering: Detector, wishes: list[Any]) -> None:
    random = np.random.default_rng(8)
    images = [random.integers(0, 256, (64, 64 + 32 * (n % 2), 3), dtype=np.uint8) for n in range(6)]
    futures = [
        gathering.submit(images[row], threshold=threshold, classes=classes, top_k=top_k, tta=tta)
        for threshold, classes, top_k, tta, row in wishes
    ]
    for (threshold, classes, top_k, tta, row), future in zip(wishes, futures, strict=True):
        same(future.result(LONG), gathering.detect(images[row], threshold, classes, top_k, tta=tta))


@pytest.mark.parametrize("tta", ["flip", TestTimeAugmentation(flip=False, scales=(1.0, 1.5))])
def test_a_batch_with_augmentation(detector: Detector, tmp_path: Path, tta: Any) -> None:
    """The answers of `detect`, in order; what cannot be used fails alone, in the batch as in its future."""
    large = np.zeros((200, 200, 3), dtype=np.uint8)  # 300 at scale 1.5, more than the bundle takes
    images: list[Any] = [scene(), tmp_path / "absent.jpg", scene(64, 96), large]
    good = [0, 2] if tta != "flip" else [0, 2, 3]
    found = detector.detect_batch(images, 0.5, top_k=2, tta=tta, errors="return")
    futures = [detector.submit(image, threshold=0.5, top_k=2, tta=tta) for image in images]
    for row, (result, future) in enumerate(zip(found, futures, strict=True)):
        if row in good:
            assert isinstance(result, Detections)
            same(result, detector.detect(images[row], 0.5, top_k=2, tta=tta))
            same(result, future.result(LONG))
        else:
            assert isinstance(result, InputError)
            with pytest.raises(InputError, match="absent.jpg" if row == 1 else "at scale 1.5"):
                future.result(LONG)
    with pytest.raises(BatchError) as caught:
        detector.detect_batch(images, 0.5, top_k=2, tta=tta)
    assert [isinstance(result, Detections) for result in caught.value.results] == [
        row in good for row in range(4)
    ]
    assert detector.stats.batch_sizes == {1: len(images) - 1}  # the absent one never came into the queue
    for call in (detector.detect_batch, detector.submit):
        with pytest.raises(InputError, match="there is no augmentation 'twice'"):
            call([scene()], tta="twice")  # type: ignore[operator]


def test_requests_share_batches(gathering: Detector) -> None:
    before = gathering.stats.batch_sizes.get(4, 0)
    futures = [gathering.submit(scene()) for _ in range(8)]
    wait(futures, LONG)
    figures = gathering.stats
    assert figures.batch_sizes[4] > before
    assert max(figures.batch_sizes) == 4  # the bundle's largest
    assert figures.latency_p50 is not None
    assert figures.latency_p99 is not None
    assert 0 < figures.latency_p50 <= figures.latency_p99


def test_a_bad_image_fails_its_own_future(detector: Detector, tmp_path: Path) -> None:
    futures = [
        detector.submit(image)
        for image in (scene(), tmp_path / "absent.jpg", np.zeros((900, 9, 3), dtype=np.uint8), scene())
    ]
    assert len(futures[0].result(LONG)) == len(futures[3].result(LONG)) == 1
    for future, text in ((futures[1], "absent.jpg"), (futures[2], "height 32:64:256")):
        with pytest.raises(InputError, match=text):
            future.result(LONG)


def test_wrong_arguments_are_errors_at_once(detector: Detector) -> None:
    before = threading.active_count()
    for wrong in ({"threshold": 1.5}, {"top_k": 0}, {"classes": ["red"]}, {"classes": [2]}, {"timeout": -1}):
        with pytest.raises(InputError):
            detector.submit(scene(), **wrong)  # type: ignore[arg-type]
    assert detector.stats.submitted == 0
    assert threading.active_count() == before


def test_a_failing_network_reaches_the_futures(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BackendError("the network is gone", "restart")

    with monkeypatch.context() as patch:
        patch.setattr(detector._backend, "run", broken)
        futures = [detector.submit(scene()) for _ in range(3)]
        for future in futures:
            with pytest.raises(BackendError, match="the network is gone"):
                future.result(LONG)
    assert len(detector.submit(scene()).result(LONG)) == 1


def test_close_drains_and_refuses(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    with Detector.load(tmp_path / "b", threads=1, batching=Batching(max_wait=1000.0)) as detector:
        futures = [detector.submit(scene()) for _ in range(3)]
    assert [len(future.result(0)) for future in futures] == [1, 1, 1]
    with pytest.raises(BackendError, match="closed"):
        detector.submit(scene())


def test_leaving_by_an_exception_does_not_drain(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    with (
        pytest.raises(KeyError),
        Detector.load(tmp_path / "b", threads=1, batching=Batching(max_wait=1000.0)) as detector,
    ):
        future = detector.submit(scene())
        raise KeyError
    with pytest.raises(BackendError, match="closed before this request was run"):
        future.result(0)


def test_await(detector: Detector) -> None:
    async def main() -> list[Detections]:
        return list(await asyncio.gather(*[asyncio.wrap_future(detector.submit(scene())) for _ in range(5)]))

    async def plain() -> Detections:
        return await detector.submit(scene())

    assert [len(found) for found in [*asyncio.run(main()), asyncio.run(plain())]] == [1] * 6


FORK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene
from centernet_trt.errors import BackendError
from centernet_trt.runtime import Detector

write_tiny_bundle(Path(sys.argv[2]))
with Detector.load(sys.argv[2], threads=int(sys.argv[3])) as detector:
    # A submission leaves a thread, whose frame keeps the detector alive in the child; a detection does not.
    detector.submit(scene()).result(60) if sys.argv[4] == "submit" else detector.detect(scene())
    child = os.fork()
    if child == 0:
        for call in (detector.detect, detector.submit, lambda image: detector.detect(image, tta="flip")):
            try:
                call(scene())
            except BackendError as error:
                assert "cannot be used in its fork" in error.message, error
                assert "spawn" in error.hint, error
            else:
                sys.exit(4)
        try:
            detector.stats
        except BackendError:
            print("refused", flush=True)
        sys.exit(7)  # leaves the with-block, closes, and ends the interpreter
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), len(detector.submit(scene()).result(60)))
"""
LEFT_OPEN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene
from centernet_trt.runtime import Batching, Detector

write_tiny_bundle(Path(sys.argv[2]))
detector = Detector.load(sys.argv[2], threads=int(sys.argv[3]), batching=Batching(max_wait=1000.0))
future = detector.submit(scene())
future.add_done_callback(lambda done: print(type(done.exception()).__name__, flush=True))
print("end", flush=True)
"""


def run_script(code: str, folder: Path, *arguments: object) -> tuple[str, str]:
    """What a process of its own prints, on both streams."""
    support = Path(__file__).parents[2]
    words = [sys.executable, "-c", code, str(support), str(folder / "b"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("threads", "use"), [(1, "submit"), (2, "detect"), (4, "detect"), (4, "submit")])
def test_a_fork_gets_clear_errors_and_ends(tmp_path: Path, threads: int, use: str) -> None:
    """The child does not hang in threads that it does not have, nor crash; the parent works on."""
    assert run_script(FORK, tmp_path, threads, use) == ("refused\n7 1\n", "")


def test_a_detector_left_open_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    printed, warned = run_script(LEFT_OPEN, tmp_path, 1)
    assert printed == "end\nBackendError\n"
    assert warned == "the detector closed with 1 requests in its queue\n"


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    """20,000 requests of several sizes from four threads, some cancelled: memory and threads do not grow."""
    write_tiny_bundle(tmp_path / "b", batch=8)
    images = [scene(64, 64 + 32 * n) for n in range(3)]
    wrong: list[str] = []

    def client(number: int) -> None:
        for step in range(500):
            row = (number + step) % 3
            try:
                future = detector.submit(images[row], threshold=0.5, timeout=None if step % 5 else 0.0)
            except QueueFullError:
                future = detector.submit(images[row], threshold=0.5)
            if step % 50 == 7 and future.cancel():
                continue
            if len(future.result(LONG)) != 1:
                wrong.append(f"{number} {step}")

    def round_of_requests() -> None:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)

    with Detector.load(tmp_path / "b", threads=1, batching=Batching(queue=6, workers=2)) as detector:
        round_of_requests()
        count = threading.active_count()
        gc.collect()
        tracemalloc.start()
        traced, before = tracemalloc.get_traced_memory()[0], resident()
        for _ in range(9):
            round_of_requests()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - traced
        tracemalloc.stop()
        figures = detector.stats
        assert threading.active_count() == count
    assert not wrong
    assert figures.submitted == 20_000
    assert figures.completed + figures.cancelled == 20_000
    assert (figures.failed, figures.queue_depth, figures.running) == (0, 0, 0)
    assert grown < 1 << 20, f"{grown} bytes more in Python"
    assert resident() - before < 64 << 20
