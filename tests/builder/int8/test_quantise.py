"""A whole int8 build of a small network: images, record, cache, report, and the budget of the typed graph."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers.int8_network import arrays, network, pictures
from helpers.tiny_centernet import tiny_spec
from onnx import ModelProto
from typer.testing import CliRunner

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.calibration.images import CalibrationImage, CalibrationImages, find_images
from centernet_trt.builder.calibration.record import format_cache, read_cache, read_record
from centernet_trt.builder.calibration.thresholds import METHODS
from centernet_trt.builder.int8.detection_loss import LossEvaluator, weighted_loss
from centernet_trt.builder.int8.layers import layers_in_int8, share_in_int8
from centernet_trt.builder.int8.quantise import Int8Options, make_int8
from centernet_trt.builder.int8.report import layer_rows, report
from centernet_trt.builder.int8.search import Budget, BudgetError
from centernet_trt.builder.int8.validate import measure
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.prepare import Silence
from centernet_trt.cli.app import app
from centernet_trt.errors import CalibrationError
from centernet_trt.evaluation.accuracy.agreement import agreement
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector

SPEC = tiny_spec(threshold=0.3)


def test_loss_is_zero_for_the_same_and_two_for_nothing() -> None:
    model, images = network(), pictures()
    evaluator = LossEvaluator(model, SPEC, images.images)
    same = evaluator.evaluate(model)
    assert (same.weighted, same.drop, same.agreement.f1) == (0.0, 0.0, 1.0)
    nothing = [image[:0] for image in evaluator.reference]
    assert weighted_loss(evaluator.reference, nothing) == pytest.approx(2.0)
    assert sum(len(image) for image in evaluator.reference) > 100


def test_where_typing_costs_too_much_the_build_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = LossEvaluator.faithful_detections
    monkeypatch.setattr(
        LossEvaluator, "faithful_detections", lambda *args: [image[:0] for image in compare(*args[:2], None)]
    )
    with pytest.raises(BudgetError, match="with fp16 around int8 no graph is inside"):
        int8(source, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_graph_that_fp16_moves_out_of_the_budget_is_made_narrower(
    source: Path, bundle: EngineBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(0.05, 0.9)
    plain = int8(source, tmp_path / "plain", budget=budget)
    most = plain.manifest.calibration
    compare = LossEvaluator.faithful_detections
    calls: list[int] = []

    def worse(evaluator: LossEvaluator, typed: ModelProto, progress: object = None) -> list[Detections]:
        calls.append(len(layers_in_int8(typed)))
        found = compare(evaluator, typed, None)
        return found if len(calls) > 1 else [image[: len(image) * 4 // 5] for image in found]

    monkeypatch.setattr(LossEvaluator, "faithful_detections", worse)
    made = int8(source, tmp_path / "narrower", budget=budget).manifest.calibration
    assert most is not None
    assert made is not None
    assert len(calls) >= 2
    assert calls[1] < calls[0]
    assert made.int8_share < most.int8_share


class Watched(CalibrationImages):
    """Images that note who was read."""


def watched(count: int) -> tuple[CalibrationImages, set[str]]:
    opened: set[str] = set()
    base = pictures(count)

    def noting(image: CalibrationImage) -> CalibrationImage:
        def read() -> np.ndarray:
            opened.add(image.name)
            return image.read()

        return CalibrationImage(image.name, image.sha256, read)

    return CalibrationImages(tuple(map(noting, base)), base.source), opened


def test_calibration_and_search_open_their_images_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    images, opened = watched(8)
    seen: list[str] = []
    monkeypatch.setattr(cv2, "imread", lambda *_: seen.append("imread"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: seen.append("imdecode"))
    options = Int8Options(calibration=images, budget=Budget(0.5, 0.0), probe_images=4)
    result = make_int8(network(), SPEC, (64, 64), options, Silence())
    assert opened == {image.name for image in images}
    assert seen == []
    data = report(result)["images"]
    assert [row["name"] for row in data["calibration"]] == sorted(opened)
    assert {row["sha256"] for row in data["judged"]} == {image.sha256 for image in images}
    assert set(data["probed"]) <= opened


def test_the_result_does_not_depend_on_the_order_of_images() -> None:
    images = pictures(8)
    shuffled = images.subset([5, 2, 7, 0, 1, 6, 3, 4])
    made = [
        make_int8(network(), SPEC, (64, 64), Int8Options(calibration=one, everything=True), Silence())
        for one in (images, shuffled)
    ]
    assert made[0].record == made[1].record
    assert made[0].model == made[1].model


def test_every_layer_has_a_row_with_its_reason() -> None:
    options = Int8Options(calibration=pictures(6), budget=Budget(0.02, 0.5))
    result = make_int8(network(), SPEC, (64, 64), options, Silence())
    rows = {row["layer"]: row for row in layer_rows(result)}
    assert set(rows) == {layer.name for layer in result.survey.layers}
    assert rows["hm_last"]["reason"] == "last convolution of head 'hm'"
    assert rows["hm_last"]["precision"] == "fp16"
    for name in result.search.layers:
        assert rows[name]["precision"] == "int8"
        assert rows[name]["loss"] is not None
        assert set(rows[name]["thresholds"]) == set(METHODS)
    assert all(row["reason"] for row in rows.values())


def test_a_tensor_of_zeros_is_named_and_its_layer_stays_fp16() -> None:
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name in ("expand.w", "expand.b"):
            values = onnx.numpy_helper.to_array(tensor) * 0 - (tensor.name == "expand.b")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    options = Int8Options(calibration=pictures(), everything=True)
    result = make_int8(model, SPEC, (64, 64), options, Silence())
    assert "tensor 'r2' was zero on every calibration image" in result.notes
    assert "project" not in layers_in_int8(result.model)
    assert result.survey.excluded["project"] == "its input was zero on every calibration image"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(network(opset=13), folder / "net.onnx")
    (folder / "images").mkdir()
    for row, array in enumerate(arrays(8)):
        cv2.imwrite(str(folder / "images" / f"{row}.png"), array)
    return folder


def int8(source: Path, output: Path, flavour: str = "none", **options: object) -> EngineBundle:
    settings = BuildOptions(
        "int8",
        flavour=flavour,  # type: ignore[arg-type]
        calibration=source / "images",
        int8=Int8Options(**{"budget": Budget(0.05, 0.8), **options}),  # type: ignore[arg-type]
    )
    return build(source / "net.onnx", SPEC, output, settings)


@pytest.fixture(scope="module")
def bundle(source: Path) -> EngineBundle:
    return int8(source, source / "bundle", "rtx")


def test_a_bundle_holds_graph_plan_record_and_report(bundle: EngineBundle) -> None:
    loaded = EngineBundle.load(bundle.path)
    names = {record.file for record in loaded.manifest.files}
    assert {
        "calibration.json",
        "calibration.cache",
        "int8.json",
        "int8.md",
        "layers.json",
    } <= names
    assert len(loaded.manifest.plans) == 1
    graph = onnx.load(loaded.model_path)
    summary = loaded.manifest.calibration
    assert summary is not None
    assert summary.int8_share == pytest.approx(share_in_int8(graph, 512, 512), abs=1e-6)
    assert summary.int8_share > 0.2
    assert summary.mode == "faithful"
    rows = {row["name"]: row for row in json.loads((bundle.path / "layers.json").read_text())}
    layers = {
        name for name, row in rows.items() if row["precision"] == "int8" and row["op"] != "QuantizeLinear"
    }
    assert layers == layers_in_int8(graph)
    assert rows["hm_last"]["reason"] == "last convolution of head 'hm'"
    assert "| hm_last |" in (bundle.path / "int8.md").read_text()


def test_the_cache_of_a_bundle_holds_the_scales_of_its_graph(bundle: EngineBundle) -> None:
    graph = onnx.load(bundle.model_path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    scales = {
        n.input[0]: float(constants[n.input[1]]) for n in graph.graph.node if n.op_type == "QuantizeLinear"
    }
    assert read_cache(bundle.path / "calibration.cache").scales == scales


def test_a_detector_runs_the_bundle_near_fp32(source: Path, bundle: EngineBundle, tmp_path: Path) -> None:
    plain = build(source / "net.onnx", SPEC, tmp_path / "fp32", BuildOptions("fp32", flavour="none"))
    pictures_ = arrays(4, seed=9)
    with (
        Detector.load(bundle.path, mode="faithful", threads=1) as one,
        Detector.load(plain.path, threads=1) as other,
    ):
        found = agreement(other.detect_batch(pictures_), one.detect_batch(pictures_), threshold=0.3)
    assert found.reference > 20
    assert 0.7 < found.f1 <= 1.0


def test_a_record_is_used_again_and_gives_the_same_graph(
    source: Path, bundle: EngineBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("centernet_trt.builder.int8.quantise.collect_statistics", never)
    monkeypatch.setattr("centernet_trt.builder.int8.quantise.collect_histograms", never)
    again = int8(source, tmp_path / "again", record=bundle.path / "calibration.json")
    assert again.model_path.read_bytes() == bundle.model_path.read_bytes()
    assert read_record(again.path / "calibration.json") == read_record(bundle.path / "calibration.json")


def test_a_record_of_something_else_is_refused(source: Path, bundle: EngineBundle, tmp_path: Path) -> None:
    record = bundle.path / "calibration.json"
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(network(seed=3), other / "net.onnx")
    (other / "images").symlink_to(source / "images")
    with pytest.raises(CalibrationError, match="something else: the model"):
        int8(other, tmp_path / "a", record=record)
    (tmp_path / "c" / "images").mkdir(parents=True)
    (tmp_path / "c" / "net.onnx").write_bytes((source / "net.onnx").read_bytes())
    for path in sorted((source / "images").iterdir())[:6]:
        (tmp_path / "c" / "images" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CalibrationError, match=r"the images \(8 then, 6 now; 2 missing, 6\.png first"):
        int8(tmp_path / "c", tmp_path / "b", record=record)
    assert not (tmp_path / "b").exists()


def test_scales_of_tensorrts_cache_are_taken_as_they_are(source: Path, tmp_path: Path) -> None:
    scales = {"image": 0.0078125, "r0": 0.03125, "a3": 0.0625, "elsewhere": 1.0}
    cache = tmp_path / "old.cache"
    cache.write_text(format_cache(scales))
    made = int8(source, tmp_path / "made", cache=cache, everything=True)
    graph = onnx.load(made.model_path)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    found = {
        n.input[0]: float(constants[n.input[1]]) for n in graph.graph.node if n.op_type == "QuantizeLinear"
    }
    assert found == {name: scales[name] for name in ("image", "r0", "a3")}
    assert "no scale for r6" in (made.path / "int8.md").read_text()


def test_the_cache_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "other.cache"
    cache.write_text(format_cache({"conv1_out": 0.1}))
    with pytest.raises(
        CalibrationError, match="belongs to another model: none of its 1 tensors is in this graph"
    ):
        int8(source, tmp_path / "made", cache=cache)


def test_int8_without_images_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="int8 needs images") as caught:
        build(source / "net.onnx", SPEC, tmp_path / "x", BuildOptions("int8", flavour="none"))
    assert "--calibration" in caught.value.hint


def test_annotated_calibration_images_give_a_labelled_drop(source: Path, tmp_path: Path) -> None:
    """Half of what fp32 finds is called the truth."""
    reference = LossEvaluator(network(), SPEC, find_images(source / "images").images).reference
    ids = {"images": [{"id": row + 1, "file_name": f"{row}.png"} for row in range(8)]}
    rows = []
    for row, found in enumerate(reference):
        for one in found[:10:2].to_coco(row + 1):
            rows.append({**one, "id": len(rows) + 1, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]})
    labels = {"annotations": rows, "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]}
    file = source / "instances.json"
    options = BuildOptions(
        "int8", flavour="none", calibration=file, int8=Int8Options(budget=Budget(0.05, 0.5))
    )
    file.write_text(json.dumps({**ids, **labels}))
    made = build(source / "net.onnx", SPEC, tmp_path / "a", options)
    labelled = json.loads((made.path / "int8.json").read_text())["labelled"]
    assert labelled["images"] == 8
    assert labelled["reference_ap"] > 0.4
    assert labelled["low"] <= labelled["drop"] <= labelled["high"]
    file.write_text(json.dumps({**ids, **labels, "categories": [{"id": 7, "name": "x"}]}))
    made = build(source / "net.onnx", SPEC, tmp_path / "b", options)
    data = json.loads((made.path / "int8.json").read_text())
    assert data["labelled"] is None
    assert any("category ids" in note for note in data["notes"])


def test_the_labelled_drop_is_that_of_a_repaired_file(source: Path) -> None:
    """The same labels once with sound ids, once with ids of text, from 0 and without areas; some images alone count."""
    images = find_images(source / "images")
    evaluator = LossEvaluator(network(), SPEC, images.images[:6])
    worse = [found[::2] for found in evaluator.reference]
    drops = []
    for name in ("sound", "spoilt"):
        rows: list[dict[str, object]] = []
        ids = [f"image {row}" if name == "spoilt" else row + 1 for row in range(8)]
        for row, found in enumerate(evaluator.reference):
            for one in found[:10].to_coco(ids[row]):
                box = one["bbox"]
                rest = {} if name == "spoilt" else {"iscrowd": 0, "area": box[2] * box[3]}
                rows.append({**one, "id": len(rows) + (name == "sound"), **rest})
        listed = [{"id": ids[row], "file_name": f"{row}.png"} for row in range(8)]
        categories = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
        file = source / f"{name}.json"
        file.write_text(json.dumps({"images": listed, "annotations": rows, "categories": categories}))
        stub = SimpleNamespace(
            images=evaluator.images,
            reference=evaluator.reference,
            faithful_detections=lambda *_: worse,
            compare=evaluator.compare,
        )
        options = Int8Options(calibration=find_images(file))
        result: Any = SimpleNamespace(evaluator=stub, options=options)
        measured = measure(result, network(), SPEC)
        assert measured.labelled is not None, measured.notes
        assert any("repaired while reading" in note for note in measured.notes) == (name == "spoilt")
        drops.append(measured.labelled)
    assert drops[0] == drops[1]
    assert drops[0].images == 6
    assert drops[0].drop > 0


def test_a_budget_that_cannot_be_met_leaves_with_exit_code_3(source: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(SPEC.model_dump_json())
    words = ["build", str(source / "net.onnx"), "--spec", str(tmp_path / "spec.json"), "--flavour", "none"]
    words += ["--precision", "int8", "--calibration", str(source / "images"), "--output", str(tmp_path / "x")]
    done = CliRunner().invoke(app, [*words, "--max-drop", "0", "--min-agreement", "1"])
    assert done.exit_code == 3, done.output
    assert "no layer can be int8 inside a drop of 0" in " ".join(done.output.split())
    assert not (tmp_path / "x").exists()


def test_a_typed_graph_outside_the_budget_is_reported_as_such_and_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Int8Options(calibration=pictures(6), budget=Budget(0.05, 0.5))
    result = make_int8(network(), SPEC, (64, 64), options, Silence())
    typed = to_fp16(result.model, scales="fp16").model
    assert result.inside_budget(measure(result, typed, SPEC).loss)
    nothing = [found[:0] for found in result.evaluator.reference]
    monkeypatch.setattr(result.evaluator, "faithful_detections", lambda *_: nothing)
    measured = measure(result, typed, SPEC)
    assert measured.notes == ()
    assert not result.inside_budget(measured.loss)
    with pytest.raises(
        BudgetError, match=r"the last has a drop of 0\.\d+ and an agreement of 0\.0000"
    ) as caught:
        while True:
            result = result.narrower(measured.loss)
    assert "--max-drop" in caught.value.hint
