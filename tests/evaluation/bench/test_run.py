"""The benchmark itself on tiny bundles, as short as can be: what it records, checks and refuses; never how fast."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene, tiny_model

from centernet_trt.errors import BackendError, InputError, ModelError
from centernet_trt.evaluation.bench import run as module
from centernet_trt.evaluation.bench.cold_start import cold_start
from centernet_trt.evaluation.bench.report import BenchReport
from centernet_trt.evaluation.bench.roofline import MachineRates
from centernet_trt.evaluation.bench.run import measure_latency, run_bench
from centernet_trt.evaluation.bench.subjects import BenchOptions
from centernet_trt.evaluation.bench.throughput import BenchImage, make_batches, pick_images
from centernet_trt.evaluation.bench.timing import TimingRules
from centernet_trt.runtime import Detections, Detector
from centernet_trt.runtime.backend import Batch, InferenceRequest, Mark
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.backend import HostBackend
from centernet_trt.runtime.host.onnxruntime import OnnxRuntimeExecutor

SHORT = TimingRules(warmup=0.0, duration=0.05, iterations=6, windows=3, allow_short=True)
OPTIONS = BenchOptions(
    SHORT,
    loads=((1, 1), (2, 1), (1, 4), (1, 9)),
    in_flight=(6,),
    rates=MachineRates(1e10, 1e11, "given"),
    cold_rounds=1,
)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for row, size in enumerate([(64, 96), (60, 90), (70, 130)]):
        (folder / f"{row}.png").write_bytes(cv2.imencode(".png", scene(*size))[1].tobytes())
    (folder / "notes.txt").write_text("no image")
    return pick_images(folder, 8)


def test_a_report_of_two_bundles(tmp_path: Path, images: list[Path]) -> None:
    first, second = write_tiny_bundle(tmp_path / "one"), write_tiny_bundle(tmp_path / "x" / "one", batch=8)
    source = tiny_model().SerializeToString()
    told: list[str] = []
    report = run_bench(
        [first, second],
        images,
        OPTIONS,
        counter=lambda bundle, height, width: (height * width, 42),
        sources={first.path: source},
        command="centernet-trt bench one",
        progress=lambda what, done, total: told.append(what),
    )
    one, two = report.entries
    assert (one.name, two.name) == ("one", "one #2")
    assert one.pipeline.stages == ("preprocess", "network", "decode", "whole")
    assert set(one.alone) - set(two.alone) == {"source graph, plain ONNX Runtime"}
    assert "network alone" in two.alone
    # Batches of 9 are beyond both bundles: they would be split, and are left out.
    calls = [("call", 1, 1), ("call", 1, 4), ("call", 2, 1), ("submit", 6, 1)]
    assert [(row.way, row.threads, row.batch) for row in one.throughput] == calls
    # Six single images always wait: the detector groups those of one size.
    assert 1 < (one.throughput[-1].mean_batch or 0) <= 4
    assert all(
        len(window["whole"]) % 3 == 0 for window in one.pipeline.windows
    )  # whole rounds of three images
    assert one.inputs == ("96x64", "128x96", "160x96")
    assert (one.multiply_adds, one.parameters) == (128 * 96, 42)  # of the first image
    assert set(one.floors) == {"preprocess", "network", "decode"}
    assert set(one.cold[0]) == {"import", "load", "first", "second", "total"}
    assert [image.name for image in report.images] == ["0.png", "1.png", "2.png"]
    assert any("short run" in text for text in report.warnings())
    assert any("one #2: new interpreters" in text for text in told)
    assert BenchReport.model_validate(report.to_json()).to_json() == report.to_json()
    stages = one.pipeline.windows[0]
    parts = sum(stages[stage][0] for stage in ("preprocess", "network", "decode"))
    assert parts == pytest.approx(stages["whole"][0], rel=0.2, abs=1e-4)


def test_reading_is_a_stage_when_asked(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    options = BenchOptions(
        SHORT, read=True, loads=(), in_flight=(), rates=OPTIONS.rates, cold_rounds=0, torch=False
    )
    report = run_bench([bundle], images, options)
    assert report.entries[0].pipeline.stages[0] == "read"
    assert report.entries[0].throughput == ()
    assert report.entries[0].multiply_adds is None


def test_what_is_timed_is_the_product(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample of the pipeline is one call of the backend that `Detector` runs, which marks its own stages."""
    bundle = write_tiny_bundle(tmp_path / "b", threshold=0.0)
    plain, marked = HostBackend.run, []

    def run(self: HostBackend, batches: Any, mark: Mark | None = None) -> list[list[Detections]]:
        found = plain(self, batches, mark)
        if mark is not None:
            marked.extend(found)
        return found

    monkeypatch.setattr(HostBackend, "run", run)
    options = BenchOptions(SHORT, loads=(), in_flight=(), rates=OPTIONS.rates, cold_rounds=0, torch=False)
    (entry,) = run_bench([bundle], images, options).entries
    samples = sum(len(window["whole"]) for window in entry.pipeline.windows)
    assert len(marked) == samples + 3 + 1  # each image once before, and one call to warm up
    with Detector.load(bundle, backend="onnxruntime") as detector:
        for (found,), path in zip(marked, images, strict=False):
            wanted = detector.detect(path)
            assert len(found) > 0
            np.testing.assert_array_equal(found.xyxy, wanted.xyxy)


def test_a_marked_run_names_every_stage_of_every_batch(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", batch=2, threshold=0.0)
    image, marks = scene(), list[str]()
    placement = place(bundle.manifest.spec.input, image.shape[1], image.shape[0])
    batch: Batch = [InferenceRequest(image, placement)] * 3  # the bundle takes two at once
    backend = HostBackend(OnnxRuntimeExecutor(bundle.model_path, bundle.manifest), bundle.manifest)
    found, plain = backend.run([batch], marks.append), backend.run([batch])
    backend.close()
    assert marks == [*backend.stages] * 2 == ["preprocess", "network", "decode"] * 2
    for one, other in zip(found[0], plain[0], strict=True):
        np.testing.assert_array_equal(one.xyxy, other.xyxy)


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    big = tmp_path / "big.png"
    big.write_bytes(cv2.imencode(".png", np.zeros((10, 900, 3), np.uint8))[1].tobytes())
    with pytest.raises(InputError, match="engine was built for"):
        run_bench([bundle], [big], OPTIONS)
    with pytest.raises(InputError, match="no bundle"):
        run_bench([], [big], OPTIONS)


def test_uncounted_operations_are_said(tmp_path: Path, images: list[Path]) -> None:
    def counter(*_: Any) -> tuple[int, int]:
        raise ModelError("a tensor of unknown size")

    options = BenchOptions(SHORT, loads=(), rates=OPTIONS.rates, cold_rounds=0, torch=False)
    report = run_bench([write_tiny_bundle(tmp_path / "b")], images, options, counter=counter)
    assert report.notes == ("b: operations were not counted: a tensor of unknown size",)
    assert report.entries[0].floors["network"].operations == 0


def test_without_torch_the_report_says_so(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    options = BenchOptions(SHORT, loads=(), rates=OPTIONS.rates, cold_rounds=0)
    report = run_bench([write_tiny_bundle(tmp_path / "b")], images, options)
    assert report.notes == ("PyTorch is not installed: no PyTorch baseline",)


def test_the_machine_s_rates_are_measured_where_none_are_given(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_rates", lambda cores: MachineRates(1.0, 2.0, f"{cores} cores"))
    options = BenchOptions(SHORT, loads=(), cold_rounds=0, torch=False)
    report = run_bench([write_tiny_bundle(tmp_path / "b")], images, options)
    assert report.rates["bytes_per_second"] == 1.0


def test_images_are_picked_evenly(tmp_path: Path) -> None:
    for row in range(10):
        (tmp_path / f"{row}.jpg").write_bytes(b"")
    assert [path.stem for path in pick_images(tmp_path, 5)] == ["0", "2", "4", "6", "8"]
    assert len(pick_images(tmp_path, 99)) == 10
    with pytest.raises(InputError, match="no folder"):
        pick_images(tmp_path / "absent", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        pick_images(tmp_path / "empty", 3)


def test_batches_are_of_one_input_size(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    loaded = [BenchImage(path, cv2.imread(str(path))) for path in images]  # type: ignore[arg-type]
    batches = make_batches(loaded, bundle, 3)
    assert len(batches) == 3
    assert all(len(batch) == 3 for batch in batches)
    rule = bundle.manifest.spec.input.size
    for batch in batches:
        assert len({rule.network_size(image.shape[1], image.shape[0]) for image in batch}) == 1


def test_latency_alone_of_several(tmp_path: Path, images: list[Path]) -> None:
    bundles = [write_tiny_bundle(tmp_path / name) for name in "ab"]
    found = measure_latency(bundles, images, rules=SHORT)
    assert len(found) == 2
    assert all("ONNX Runtime" in note for _, note in found)


def test_a_new_interpreter_that_fails_is_told(tmp_path: Path, images: list[Path]) -> None:
    with pytest.raises(BackendError, match="new interpreter cannot run"):
        cold_start(tmp_path / "absent", images[0], "fast", None, rounds=1)
