"""The GPU benchmark on the stand-in driver: what is timed is right, and nothing looks like a GPU's figure.

Run by tests/evaluation/test_gpu_on_standin.py; times themselves are never looked at.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from fake_tensorrt import Faults
from standin_world import counted, pictures, tiny, world

from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.bench_html import html_report
from centernet_trt.evaluation.bench_plots import whole_figure
from centernet_trt.evaluation.bench_report import BenchReport
from centernet_trt.evaluation.bench_tables import tables_of
from centernet_trt.evaluation.clock import WHOLE
from centernet_trt.evaluation.gpu import kernels, soak
from centernet_trt.evaluation.gpu.arrays import DeviceTensor
from centernet_trt.evaluation.gpu.bench import product_subject, run_gpu_bench
from centernet_trt.evaluation.gpu.bench_options import GpuBenchOptions
from centernet_trt.evaluation.gpu.floor import GpuFloor, copy_on_device, measure_floor
from centernet_trt.evaluation.gpu.kernel_steps import DecodeStep, PreprocessStep
from centernet_trt.evaluation.gpu.machine import device_record, result
from centernet_trt.evaluation.gpu.mixed import MixedPipeline, measure_mixed
from centernet_trt.evaluation.gpu.rtx_try import Progress, attempt
from centernet_trt.evaluation.gpu.stages import STAGES, NetworkAlone, StagedPipeline, given_as
from centernet_trt.evaluation.gpu.timer import GpuTimer
from centernet_trt.evaluation.host_pipeline import Picture, load_pictures
from centernet_trt.evaluation.performance_page import page
from centernet_trt.evaluation.timing import TimingRules
from centernet_trt.runtime import Detector
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.driver import Device
from centernet_trt.runtime.gpu_kernels import Kernels
from centernet_trt.runtime.gpu_options import GpuOptions

SHORT = TimingRules(0.0, 0.02, 3, 3, allow_short=True)
GPU = GpuOptions(max_pixels=10000, binding="cuda-bindings")
OPTIONS = GpuBenchOptions(
    GPU, SHORT, loads=((2, 1), (1, 4)), in_flight=(3,), cold_rounds=0, copy_bytes=1 << 16
)


@pytest.fixture
def device() -> Iterator[Device]:
    with Device.open(0, "cuda-bindings") as opened:
        yield opened


@pytest.fixture
def timer(device: Device) -> Iterator[GpuTimer]:
    with GpuTimer(device) as made:
        yield made


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    with world(tmp_path) as found:
        yield found


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
        timer.stream.synchronize()  # after the seal nobody is late
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
        floor = measure_floor(timer, SHORT, 1 << 16)
    assert (device.free_memory(), device.open_resources) == before
    assert all(value > 0 for value in floor.to_json().values())
    assert floor.train < floor.launch  # fifty in one graph, behind one pair of events


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
        with pytest.raises(InputError, match="float32 and shape"):
            one.write(array.astype(np.float32))
        one.close()
        two.close()
        two.close()


@pytest.mark.parametrize("copies", [1, 3])
def test_the_kernels_are_held_to_the_host(device: Device, copies: int) -> None:
    kernels = Kernels(device)
    with device.stream() as stream:
        decoding = DecodeStep(device, kernels, stream, (2, 3, 16, 24), 10, copies)
        sure = DecodeStep(device, kernels, stream, (2, 3, 16, 24), 100, copies, threshold=0.3)
        sure.check()
        assert 0 < len(sure.wanted()[0]) < 100
        assert min(sure.detections()[0].score) >= 0.3
        sure.close()
        preparing = PreprocessStep(device, kernels, stream, 2, (40, 30), (32, 48), copies)
        decoding.check()
        preparing.check()
        assert len({heads["hm"].address for heads in decoding.inputs}) == copies
        # A kernel that found something else, or left the output as it was, must not be timed.
        launch, decoding.launch = decoding.launch, lambda copy=0: None  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="decode, copy 0"):
            decoding.check()
        decoding.launch = launch  # type: ignore[method-assign]
        last = decoding.inputs[-1]["hm"]
        last.write(np.flip(decoding.heads["hm"], axis=-1).copy())
        with pytest.raises(BackendError, match=f"decode, copy {copies - 1}"):
            decoding.check()
        preparing.inputs[-1].write(255 - preparing.images)
        with pytest.raises(BackendError, match="grey levels from the host"):
            preparing.check()
        preparing.launch = lambda copy=0: None  # type: ignore[method-assign]
        with pytest.raises(BackendError, match="nan grey levels"):
            preparing.check()
        decoding.close()
        preparing.close()
    kernels.close()


def test_the_kernels_result(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, text = tmp_path / "gpu-kernels.json", tmp_path / "k.md"
    words = "--batches 1 2 --classes 2 --grid 24x16 --k 5 --source 20x15 --target 32x32 --copy-mib 1 --duration 0.005"
    words += f" --iterations 3 --json {target} --markdown {text}"
    assert kernels.main(words.split()) == 0
    data = json.loads(target.read_text())
    keys = {(row["step"], row["batch"], row["form"], row["cache"]) for row in data["rows"]}
    assert keys >= {
        (s, b, f, "warm") for s in ("decode", "preprocess") for b in (1, 2) for f in ("alone", "graph")
    }
    assert all(row["p50"] > 0 and row["count"] >= 3 for row in data["rows"])
    assert data["device"]["real"] is False
    assert text.read_text() in capsys.readouterr().out
    assert "STAND-IN DRIVER, no GPU" in page(tmp_path)
    with pytest.raises(InputError, match="no GPU"):
        kernels.main([*words.split(), "--json", "evaluation/results/gpu-kernels.json"])


def test_a_wrong_answer_is_told_and_the_other_cases_go_on(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(step: DecodeStep) -> None:
        raise BackendError("decode is wrong")

    monkeypatch.setattr(DecodeStep, "check", wrong)
    target = tmp_path / "gpu-kernels.json"
    words = "--batches 1 --classes 2 --grid 24x16 --k 5 --source 20x15 --target 32x32 --copy-mib 1 --duration 0.005"
    assert kernels.main([*words.split(), "--iterations", "3", "--json", str(target)]) == 3
    data = json.loads(target.read_text())
    assert [(row["step"], row["shape"], row["problem"]) for row in data["failed"]] == [
        ("decode", "2x16x24", "decode is wrong"),
        ("decode", "2x16x24, score >= 0.3", "decode is wrong"),
    ]
    assert {row["step"] for row in data["rows"]} == {"preprocess"}
    assert "Failed:\n\n- decode 2x16x24, batch 1: decode is wrong" in capsys.readouterr().out


def test_every_stage_is_marked_and_nothing_else_changes(
    tmp_path: Path, faults: Faults, images: list[Path]
) -> None:
    staged = StagedPipeline(tiny(tmp_path), GPU)
    (picture, *_) = load_pictures(images)
    clock = staged.clock("cold")
    with Detector.load(
        staged.bundle, backend="tensorrt", max_pixels=10000, binding="cuda-bindings"
    ) as detector:
        for _ in range(3):
            found, wanted = staged.run(picture, clock), detector.detect(picture.pixels)
            np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
            seconds = clock.finish()
            assert tuple(seconds) == (*STAGES, WHOLE)
            assert seconds[WHOLE] == pytest.approx(sum(seconds[stage] for stage in STAGES))
    assert staged.timer.late == 0  # it is asked before the pipeline waits for its results
    # The hold, one launch, besides what the pipeline does by itself.
    with counted() as calls:
        staged.run(picture, staged.clock("warm"))
    assert (calls[0].copies, calls[0].launches, calls[0].graph_launches) == (2, 3, 0)
    staged.close()


@pytest.mark.parametrize("graph", [True, False])
def test_the_network_alone(tmp_path: Path, faults: Faults, images: list[Path], graph: bool) -> None:
    staged = StagedPipeline(tiny(tmp_path), GPU)
    with NetworkAlone(staged, load_pictures(images), 4, graph) as network:
        assert network.graph == graph
        replays, enqueues = faults.replays, faults.enqueues
        subject = network.subject("warm")
        assert subject.cycle == 2  # two sizes of the input
        for _ in range(4):
            assert subject.call()[WHOLE] > 0
        assert faults.replays == replays + 4
        assert faults.enqueues == enqueues + (0 if graph else 4)
    faults.uncapturable = True
    with NetworkAlone(staged, load_pictures(images), 1, True) as network:
        assert not network.graph
    with pytest.raises(InputError, match="batch"):
        NetworkAlone(staged, load_pictures(images), 9, graph)
    staged.close()


@pytest.mark.parametrize("kind", ["pageable", "pinned", "device"])
def test_images_come_from_where_they_shall(
    tmp_path: Path, faults: Faults, images: list[Path], kind: Any
) -> None:
    loaded = load_pictures(images)
    with (
        Device.open(0, "cuda-bindings") as device,
        Detector.load(
            tiny(tmp_path), backend="tensorrt", max_pixels=10000, binding="cuda-bindings"
        ) as detector,
    ):
        given, made = given_as(kind, loaded, detector, device.stream())
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
    return run_gpu_bench([bundle, again], images, options, counter=work, command="centernet-trt bench bundle")


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
    # Images a second of whole batches, over those of the network alone.
    rate = next(row.rate for row in one.throughput if row.batch == 4)
    share = rate / (4 / one.alone["network alone, batch 4"].summary().p50)
    found = {row["target"]: row["found"] for row in one.targets}
    assert found["bundle: images a second over the network alone's, batch 4"] == f"{share:.2f}"
    added = one.pipeline.summary().p50 - one.alone["network alone"].summary().p50
    assert found["bundle: whole less the network alone, batch 1"] == f"{added * 1e6:.2f} us"
    floor = one.floors["decode"]
    assert floor.seconds == pytest.approx(floor.bytes / report.rates["bytes_per_second"])
    # Nothing of it can be taken for a GPU's.
    assert all("STAND-IN DRIVER, no GPU" in entry.executor for entry in report.entries)
    assert "device: STAND-IN DRIVER, no GPU: these times mean nothing" in report.warnings()
    assert all(row["verdict"].startswith("not judged: STAND-IN") for row in one.targets)
    tables = [table.markdown() for table in tables_of(report)]
    assert any("| network (events) |" in table for table in tables)
    assert any("| bundle: processor time of a call |" in table for table in tables)
    assert "STAND-IN" in html_report(report)
    assert "STAND-IN" in whole_figure(report)._suptitle.get_text()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gpu-bench-warm.json").write_text(report.to_text())
    shown = page(tmp_path / "results")
    assert shown.count("STAND-IN DRIVER, no GPU") > 2
    assert "## On a GPU\n\n### Bundles\n" in shown


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

    picture = Picture(Path("a"), np.zeros((2, 2, 3), np.uint8))
    subject = product_subject(detector, [picture], timer, cache, now)  # type: ignore[arg-type]
    assert subject.call() == {WHOLE: 2.0}
    assert told == ["flush", "wait"] * (cache == "cold") + ["clock", "detect", "clock"]


class Wrong(StagedPipeline):
    def run(self, picture: Picture, clock: Any) -> Detections:
        return super().run(picture, clock)[:1]


def test_what_is_timed_must_be_what_the_product_answers(
    tmp_path: Path, faults: Faults, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("centernet_trt.evaluation.gpu.bench.StagedPipeline", Wrong)
    with pytest.raises(BackendError, match=r"does not find in 0\.png what Detector finds"):
        run_gpu_bench([tiny(tmp_path)], images, OPTIONS)
    with pytest.raises(InputError, match="no bundle"):
        run_gpu_bench([], images, OPTIONS)


def test_a_fallback_from_the_graph_is_said(tmp_path: Path, faults: Faults, images: list[Path]) -> None:
    faults.uncapturable = True
    found = run_gpu_bench([tiny(tmp_path)], images, replace(OPTIONS, loads=(), in_flight=()))
    assert any("Detector ran without CUDA graphs" in note for note in found.notes)
    assert any("the network alone could not be recorded" in note for note in found.notes)
    assert found.entries[0].throughput == ()


def test_a_soak_that_is_flat(tmp_path: Path, faults: Faults, device: Device) -> None:
    rows = [soak.soak_detector(tiny(tmp_path), device, 40), soak.soak_kernels(device, 20, 32, 2)]
    for row in rows:
        assert row["device_growth"] == 0
        assert len(row["free"]) == len(row["resident"]) == row["calls"]
    assert rows[0]["name"] == "bundle"


def test_a_soak_notices_what_is_kept_and_what_changes(device: Device) -> None:
    kept = []
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), {})
    other = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int32), {})

    def leaking(call: int) -> list[Detections]:
        kept.append(device.allocate(1 << 20))
        return [nothing]

    row = soak.soak("leak", leaking, 1, device, 30)
    assert not row["flat"]
    assert row["device_growth"] >= 20 << 20
    with pytest.raises(BackendError, match="call 3 found 1 objects, the first such call 0"):
        soak.soak("moody", lambda call: [other if call == 3 else nothing], 1, device, 5)


def test_the_soak_s_command(tmp_path: Path, faults: Faults, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, target = tiny(tmp_path), tmp_path / "gpu-soak.json"
    words = ["--calls", "12", "--side", "32", "--classes", "2", "--json", str(target)]
    assert soak.main([str(bundle.path), *words]) == 0
    assert "| bundle | 12 |" in page(tmp_path)
    # A bundle that cannot be loaded is told, and the other one is still run.
    assert soak.main([str(tmp_path / "absent"), str(bundle.path), *words]) == 3
    rows = {row["name"]: row for row in json.loads(target.read_text())["rows"]}
    assert "problem" in rows["absent"]
    assert rows["bundle"]["flat"]
    assert "did not run: " in capsys.readouterr().out


def test_kernels_around_a_network_on_the_host(tmp_path: Path, faults: Faults, images: list[Path]) -> None:
    bundle = tiny(tmp_path)
    found = measure_mixed(bundle, images, SHORT)
    assert tuple(found["stages"]) == (*MixedPipeline.stages, WHOLE)
    assert found["grey_levels"] <= 1.2
    assert "network ran in ONNX Runtime" in found["note"]
    pipeline = MixedPipeline(bundle, 10000)
    picture = load_pictures(images)[0]
    decode = pipeline._ops.decode
    pipeline._ops.decode = lambda *args: [found[:1] for found in decode(*args)]  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"0\.png: decoded on the GPU there are 1 objects"):
        pipeline.check(picture)
    pipeline.close()


def tried(bundle: EngineBundle, tmp_path: Path) -> dict[str, Any]:
    progress = Progress(tmp_path / "try.json")
    try:
        attempt(bundle, bundle.manifest.plans[0].file, 1, progress, SHORT)
    except BackendError as error:
        progress.data["problem"] = error.message
    return progress.data


def test_a_plan_that_runs(tmp_path: Path, faults: Faults) -> None:
    found = tried(tiny(tmp_path), tmp_path)
    assert found["reached"] == "done"
    assert all(head["max_abs"] < 1e-5 for head in found["compare"].values())
    assert found["time"]["p50"] > 0 < found["graph"]["p50"]
    assert found["layers"]["ms"].keys() == {"hm", "wh", "reg"}


def test_how_far_a_plan_came(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path)
    faults.refuse_plan = True
    assert (found := tried(bundle, tmp_path))["reached"] == "deserialise"
    assert "Magic tag does not match" in found["problem"]
    assert json.loads((tmp_path / "try.json").read_text())["reached"] == "deserialise"
    faults.refuse_plan, faults.refuse_enqueue = False, 1
    assert tried(bundle, tmp_path)["reached"] == "run"
    faults.uncapturable = True
    found = tried(bundle, tmp_path)
    assert found["reached"] == "done"
    assert "cannot be recorded" in found["graph"]["refused"]


def test_a_plan_for_another_gpu_is_tried_all_the_same(tmp_path: Path, faults: Faults) -> None:
    bundle = tiny(tmp_path)
    plans = (bundle.manifest.plans[0].model_copy(update={"target": "sm_80"}),)
    other = EngineBundle(bundle.path, bundle.manifest.model_copy(update={"plans": plans}))
    found = tried(other, tmp_path)
    assert found["reached"] == "done"
    assert found["device"]["compute_capability"] == [9, 0]


def test_every_setting_of_the_gpu_reaches_the_detector() -> None:
    taken = set(inspect.signature(Detector.load).parameters)
    assert {"backend", *GpuOptions.__dataclass_fields__} == set(GpuBenchOptions().load_arguments())
    assert set(GpuBenchOptions().load_arguments()) <= taken
    assert GpuBenchOptions().load_arguments(streams=7)["streams"] == 7


def test_results_have_one_form(device: Device) -> None:
    record = device_record(device)
    data = result("gpu-x", record, "python -m x", rows=[])
    assert (data["kind"], data["device"]["name"], data["device"]["l2_bytes"]) == (
        "gpu-x",
        "stand-in",
        1 << 20,
    )
    assert isinstance(partial(GpuFloor, **dict.fromkeys(GpuFloor.__dataclass_fields__, 1))(), GpuFloor)
