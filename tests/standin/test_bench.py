"""The GPU benchmark on the stand-in driver: what is timed is right, and nothing looks like a GPU's figure.

Times themselves are never looked at.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.fake_tensorrt import Faults
from helpers.standin_pipeline import counted, pictures, tiny
from helpers.standin_session import ON_STANDIN

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.baselines import GpuNetwork
from centernet_trt.evaluation.bench.gpu_timer import DeviceTensor, GpuTimer
from centernet_trt.evaluation.bench.html import html_report, whole_figure
from centernet_trt.evaluation.bench.report import BenchReport
from centernet_trt.evaluation.bench.roofline import copy_on_device, measure_gpu_rates
from centernet_trt.evaluation.bench.run import run_bench
from centernet_trt.evaluation.bench.stages import EventTimer
from centernet_trt.evaluation.bench.subjects import BenchOptions, detect_call, place_images, stages
from centernet_trt.evaluation.bench.tables import report_tables
from centernet_trt.evaluation.bench.throughput import BenchImage, load_images
from centernet_trt.evaluation.bench.timing import WHOLE, TimingRules
from centernet_trt.runtime import Detector
from centernet_trt.runtime.backend import GpuOptions
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.gpu.backend import GpuBackend
from centernet_trt.runtime.gpu.lane import STAGES

pytestmark = ON_STANDIN

SHORT = TimingRules(0.0, 0.02, 3, 3, allow_short=True)
GPU = GpuOptions(max_pixels=10000, binding="cuda-bindings")
ONE = replace(GPU, streams=1)
OPTIONS = BenchOptions(
    SHORT, "tensorrt", loads=((2, 1), (1, 4)), in_flight=(3,), cold_rounds=0, gpu=GPU, copy_bytes=1 << 16
)


@pytest.fixture
def timer(device: Device) -> Iterator[GpuTimer]:
    with GpuTimer(device) as made:
        yield made


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for row, size in enumerate([(60, 90), (50, 60), (60, 90)]):
        content = cv2.imencode(".png", pictures(1, *size, seed=row)[0])[1].tobytes()
        (folder / f"{row}.png").write_bytes(content)
    return sorted(folder.iterdir())


def test_marks_are_in_order_and_a_name_twice_is_a_sum(timer: GpuTimer, device: Device) -> None:
    with device.allocate(1 << 20) as memory:
        timer.start()
        for name in ("a", "b", "a"):
            timer.stream.fill(memory.address, 1, 1 << 20)
            timer.mark(name)
        found = timer.finish()
        assert list(found) == ["a", "b"]
        assert all(seconds > 0 for seconds in found.values())
    assert timer.late == 0


def test_a_host_that_comes_late_is_noticed_and_the_hold_grows(device: Device) -> None:
    with GpuTimer(device) as timer:
        before = timer.hold
        timer.start()
        timer.stream.synchronize()  # as if the host had been busy with something else
        timer.mark("work")
        timer.finish()
        assert timer.late == 1
        assert timer.hold == 2 * before
        late = [True, True, False]

        def work() -> None:
            if late.pop(0):
                timer.stream.synchronize()

        timer.seconds(work)  # taken again until the host was in time
        assert timer.late == 1
        assert timer.hold == 8 * before
        assert not late
        timer.seconds(timer.stream.synchronize)  # who never is in time is counted once
        assert timer.late == 2
        assert timer.hold == 5e-3
        timer.start()
        timer.mark("work")
        timer.seal()
        timer.stream.synchronize()  # after the seal the host is never late
        timer.finish()
        assert timer.late == 2


def test_cold_means_that_twice_the_cache_is_written(timer: GpuTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []
    plain = timer.stream.fill

    def fill(address: int, value: int, nbytes: int) -> None:
        filled.append(nbytes)
        plain(address, value, nbytes)

    monkeypatch.setattr(timer.stream, "fill", fill)
    timer.seconds(lambda: None, "warm")
    assert filled == []
    timer.seconds(lambda: None, "cold")
    assert filled == [2 * timer.l2_bytes]


def test_nothing_is_left(device: Device) -> None:
    before = device.free_memory(), device.open_resources
    with GpuTimer(device) as timer:
        rates = measure_gpu_rates(timer, SHORT, 1 << 16)
    assert (device.free_memory(), device.open_resources) == before
    assert all(value > 0 for value in rates.to_json().values())
    assert rates.train < rates.launch  # fifty in one graph, behind one pair of events


def test_arrays_there_and_back(device: Device) -> None:
    with device.stream() as stream:
        array = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float16)
        one, two = (
            DeviceTensor.of(device, array, stream),
            DeviceTensor(device, array.shape, np.float16, stream),
        )
        copy_on_device(device, stream, two.address, one.address, array.nbytes)
        np.testing.assert_array_equal(two.read(), array)
        assert one.__cuda_array_interface__["typestr"] == "<f2"
        with pytest.raises(InputError, match="got float32 and shape"):
            one.write(array.astype(np.float32))
        one.close()
        two.close()
        two.close()


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_every_stage_is_marked_and_nothing_else_changes(
    tmp_path: Path, faults: Faults, images: list[Path], cuda_graph: bool
) -> None:
    """The product itself is timed: a marked run is that of a Detector's own backend, launch by launch."""
    bundle = tiny(tmp_path)
    (image, *_) = load_images(images)
    backend = GpuBackend.load(bundle, replace(ONE, cuda_graph=cuda_graph))
    plain = backend.run
    with Detector(bundle, backend) as detector, GpuTimer(backend.device, *backend.streams) as timer:
        wanted = detector.detect(image.pixels)
        for _ in range(2):
            detector.detect(image.pixels)
        seen: list[Any] = []
        backend.run = lambda *words: seen.append(plain(*words))  # type: ignore[method-assign, assignment]
        subject = stages(bundle.manifest, backend, [image], EventTimer(timer, STAGES[-1], "cold"))
        for _ in range(3):
            seconds = subject.call()
            assert tuple(seconds) == (*STAGES, WHOLE)
            assert seconds[WHOLE] == pytest.approx(sum(seconds[stage] for stage in STAGES))
            np.testing.assert_array_equal(seen.pop()[0][0].xyxy, wanted.xyxy)
        assert timer.late == 0  # it is checked before the backend waits for its results
        # The hold, one launch, besides what the backend does by itself.
        warm = stages(bundle.manifest, backend, [image], EventTimer(timer, STAGES[-1], "warm"))
        with counted() as calls:
            warm.call()
        assert (calls[0].copies, calls[0].launches, calls[0].graph_launches) == (2, 3, 0)
        assert backend.recorded == cuda_graph  # the graph is kept for calls without marks
        backend.run = plain  # type: ignore[method-assign]
        with counted() as calls:
            detector.detect(image.pixels)
        assert calls[0].graph_launches == cuda_graph


def test_marked_batches_run_one_after_the_other(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path)
    marks: list[str] = []
    with Detector(bundle, GpuBackend.load(bundle, replace(GPU, streams=2, max_batch=2))) as detector:
        backend = detector._backend
        assert isinstance(backend, GpuBackend)
        plain = backend.run
        backend.run = lambda batches: plain(batches, marks.append)  # type: ignore[method-assign, assignment]
        found = detector.detect_batch(pictures(5, 60, 60), 0.3)
        assert marks == [*STAGES] * 3
        backend.run = plain  # type: ignore[method-assign]
        for one, other in zip(found, detector.detect_batch(pictures(5, 60, 60), 0.3), strict=True):
            np.testing.assert_array_equal(one.xyxy, other.xyxy)

        def fails(stage: str) -> None:
            if stage == "network":
                raise KeyError(stage)

        backend.run = lambda batches: plain(batches, fails)  # type: ignore[method-assign, assignment]
        with pytest.raises(KeyError):
            detector.detect(pictures(1, 60, 60)[0])
        backend.run = plain  # type: ignore[method-assign]
        np.testing.assert_array_equal(detector.detect(pictures(5, 60, 60)[0], 0.3).xyxy, found[0].xyxy)


@pytest.mark.parametrize("graph", [True, False])
def test_the_network_alone(tmp_path: Path, faults: Faults, images: list[Path], graph: bool) -> None:
    backend = GpuBackend.load(tiny(tmp_path), ONE)
    timer = GpuTimer(backend.device, *backend.streams)
    loaded = [image.pixels for image in load_images(images)]
    with GpuNetwork(backend, timer, loaded, 4, graph) as network:
        assert network.graph == graph
        replays, enqueues = faults.replays, faults.enqueues
        subject = network.subject("warm")
        assert subject.cycle == 2  # two sizes of the input
        for _ in range(4):
            assert subject.call()[WHOLE] > 0
        assert faults.replays == replays + 4
        assert faults.enqueues == enqueues + (0 if graph else 4)
    faults.uncapturable = True
    with GpuNetwork(backend, timer, loaded, 1, True) as network:
        assert not network.graph
    with pytest.raises(InputError, match="batch"):
        GpuNetwork(backend, timer, loaded, 9, graph)
    timer.close()
    backend.close()


@pytest.mark.parametrize("kind", ["pageable", "pinned", "device"])
def test_images_come_from_the_chosen_memory(
    tmp_path: Path, faults: Faults, images: list[Path], kind: Any
) -> None:
    loaded = load_images(images)
    with (
        Device.open(0, "cuda-bindings") as device,
        Detector.load(
            tiny(tmp_path), backend="tensorrt", max_pixels=10000, binding="cuda-bindings"
        ) as detector,
    ):
        given, made = place_images(kind, loaded, detector, device.stream())
        assert [picture.path for picture in given] == [picture.path for picture in loaded]
        for picture, original in zip(given, loaded, strict=True):
            found, wanted = detector.detect(picture.pixels), detector.detect(original.pixels)
            np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
        assert (given[0].pixels is loaded[0].pixels) == (kind == "pageable")
        assert hasattr(given[0].pixels, "__cuda_array_interface__") == (kind == "device")
        for part in made:
            part.close()


@pytest.fixture
def report(tmp_path: Path, faults: Faults, images: list[Path]) -> BenchReport:
    bundle = tiny(tmp_path)
    again = EngineBundle(bundle.path, bundle.manifest.model_copy(update={"name": "again"}))
    options = replace(OPTIONS, input="pinned", cache="cold")
    work = lambda bundle, height, width: (height * width, 42)
    return run_bench([bundle, again], images, options, counter=work, command="centernet-trt bench bundle")


def test_the_report(tmp_path: Path, report: BenchReport) -> None:
    one, two = report.entries
    assert (one.name, two.name) == ("bundle", "again")
    assert one.pipeline.stages == (WHOLE,)
    assert one.staged is not None
    assert one.staged.stages == (*STAGES, WHOLE)
    assert set(one.alone) == {"processor time of a call", "network alone", "network alone, batch 4"}
    assert [(row.way, row.threads, row.batch) for row in one.throughput] == [
        ("call", 1, 4), ("call", 2, 1), ("submit", 3, 1),
    ]  # fmt: skip
    assert one.mode == "CUDA graph, cold L2 cache, pinned input, cuda-bindings"
    assert set(one.floors) == {"upload", "preprocess", "network", "decode"}
    assert (one.multiply_adds, one.parameters) == (64 * 96, 42)
    assert BenchReport.model_validate(json.loads(report.to_text())).to_json() == report.to_json()
    assert any(note.startswith("bundle: ") and "are among the" in note for note in report.notes)
    floor = one.floors["decode"]
    assert floor.seconds == pytest.approx(floor.bytes / report.rates["bytes_per_second"])
    # Nothing of it can be taken for a GPU's.
    assert all("STAND-IN DRIVER, no GPU" in entry.executor for entry in report.entries)
    assert "device: STAND-IN DRIVER, no GPU: these times mean nothing" in report.warnings()
    tables = [table.markdown() for table in report_tables(report)]
    assert any("| network (events) |" in table for table in tables)
    assert any("| processor time of a call |" in table for table in tables)
    assert "STAND-IN" in html_report(report)
    assert "STAND-IN" in whole_figure(report)._suptitle.get_text()


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_the_flush_is_over_before_the_clock_starts(cache: Any) -> None:
    told: list[str] = []

    def hear(what: str) -> Any:
        return lambda *_: told.append(what)

    timer = SimpleNamespace(flush=hear("flush"), stream=SimpleNamespace(synchronize=hear("wait")))
    detector = SimpleNamespace(detect=hear("detect"))

    def now() -> float:
        told.append("clock")
        return float(len(told))

    image = BenchImage(Path("a"), np.zeros((2, 2, 3), np.uint8))
    subject = detect_call(detector, [image], timer, cache, now)  # type: ignore[arg-type]
    assert subject.call() == {WHOLE: 2.0}
    assert told == ["flush", "wait"] * (cache == "cold") + ["clock", "detect", "clock"]


def test_no_bundle_is_an_error(images: list[Path]) -> None:
    with pytest.raises(InputError, match="no bundle"):
        run_bench([], images, OPTIONS)


def test_a_fallback_from_the_graph_is_said(tmp_path: Path, faults: Faults, images: list[Path]) -> None:
    faults.uncapturable = True
    found = run_bench([tiny(tmp_path)], images, replace(OPTIONS, loads=(), in_flight=()))
    assert any("Detector ran without CUDA graphs" in note for note in found.notes)
    assert any("the network alone could not be recorded" in note for note in found.notes)
    assert found.entries[0].throughput == ()


def test_every_setting_of_the_gpu_reaches_the_detector(
    tmp_path: Path, faults: Faults, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream for latency, waiting by spinning and asleep; a stream a thread; the options' own for `submit`."""
    load, seen = GpuBackend.load, list[GpuOptions]()

    def spy(bundle: EngineBundle, options: GpuOptions) -> GpuBackend:
        seen.append(options)
        return load(bundle, options)

    monkeypatch.setattr(GpuBackend, "load", spy)
    gpu = replace(GPU, streams=3, max_batch=4, max_graphs=7, cuda_graph=False)
    run_bench([tiny(tmp_path)], images, replace(OPTIONS, gpu=gpu, loads=((2, 1),)))
    assert [(options.streams, options.spin) for options in seen] == [
        (1, True), (1, False), (2, True), (3, True),
    ]  # fmt: skip
    assert {replace(options, streams=3, spin=True) for options in seen} == {gpu}
