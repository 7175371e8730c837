"""The limits of a build: what differs too much fails, says which head, and leaves the old bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_centernet import scene, tiny_model, tiny_spec
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.calibration.limits import (
    FEWEST_BOXES,
    BoxAgreement,
    ImageComparison,
    check_limits,
)
from centernet_trt.errors import ModelError, ToleranceError
from centernet_trt.runtime import Detector, EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.manifest import Manifest, Precision, ShapeRange
from centernet_trt.runtime.spec import MAX_TOP_K

SIDE = ShapeRange(min=32, opt=64, max=64)


def behind(head: str, *rows: tuple[str, list[str]], **constants: float) -> ModelProto:
    """The tiny network with further nodes behind a head: (operator, inputs), where `.` is the result before."""
    model = tiny_model()
    (maker,) = (node for node in model.graph.node if node.name == head)
    maker.output[0] = last = f"{head}/0"
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    for number, (op, inputs) in enumerate(rows, 1):
        result = head if number == len(rows) else f"{head}/{number}"
        inputs = [last if name == "." else name for name in inputs]
        model.graph.node.append(helper.make_node(op, inputs, [result], name=f"{head}.{op}.{number}"))
        last = result
    return model


def cancelling(head: str, size: float) -> ModelProto:
    """A head whose digits fp16 loses: a large number is added and taken off again."""
    return behind(head, ("Add", [".", "big"]), ("Sub", [".", "big"]), big=size)


def built(model: ModelProto, folder: Path, precision: Precision = "fp16", **options: Any) -> Manifest:
    onnx.save(model, folder / "net.onnx")
    wanted = BuildOptions(precision, height=SIDE, width=SIDE, flavour="none", **options)
    return build(folder / "net.onnx", tiny_spec(), folder / "b", wanted).manifest


def test_a_head_beyond_the_limit_fails_by_name_and_the_old_bundle_stays(tmp_path: Path) -> None:
    built(tiny_model(), tmp_path)
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(
        ToleranceError, match=r"at most 0\.06 of .*on 4 images and a black frame, got head 'wh' by 0\.\d"
    ) as failed:
        built(cancelling("wh", 3000), tmp_path)
    assert "--keep-fp32" in failed.value.hint
    assert "'hm'" not in failed.value.message
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert EngineBundle.load(tmp_path / "b").manifest.precision == "fp16"


def test_fp32_and_named_nodes_make_it_right(tmp_path: Path) -> None:
    model = cancelling("wh", 3000)
    assert built(model, tmp_path, "fp32").precision == "fp32"
    manifest = built(model, tmp_path, keep_fp32=("wh.Add.1", "wh.Sub.2"))
    assert manifest.kept_fp32 == dict.fromkeys(("wh.Add.1", "wh.Sub.2"), "requested by --keep-fp32")
    with Detector.load(tmp_path / "b", mode="faithful", threads=1) as detector:
        found = detector.detect(scene(48, 48), threshold=0.5)
    level = 128 / 255
    assert found.xyxy[0, 2] - found.xyxy[0, 0] == pytest.approx(4 * (8 * level + 1), abs=0.02)
    with pytest.raises(ModelError, match=r"no node 'wh\.Ad\.1'; near names: wh\.Add\.1"):
        built(model, tmp_path, keep_fp32=("wh.Ad.1",))


def test_the_limit_moves_either_way(tmp_path: Path) -> None:
    assert built(cancelling("wh", 3000), tmp_path, max_difference=2.0).precision == "fp16"
    with pytest.raises(ToleranceError, match=r"at most 1e-06 .* head 'hm' by .*head 'wh' by"):
        built(tiny_model(), tmp_path, max_difference=1e-6)


def test_boxes_decide_where_heads_are_within_their_limit(tmp_path: Path) -> None:
    """Scores that fp16 rounds to steps of 1/8 make neighbours equal, and each of them a peak."""
    model = cancelling("hm", 200)
    with pytest.raises(
        ToleranceError, match=r"F1 of 0\.\d+, expected at least 0\.9 .*head 'hm' differs most"
    ):
        built(model, tmp_path)
    # Whoever takes larger differences of heads takes those of boxes too, and is told of them.
    assert any("F1 of 0." in note for note in built(model, tmp_path, max_difference=0.5).notes)
    assert not built(tiny_model(), tmp_path).notes


def test_a_black_frame_alone_shows_it(tmp_path: Path) -> None:
    """1 / (mean^2 + 1e-5) is 10 on images and 1e5, infinite in fp16, on a black frame; infinity / infinity is NaN."""
    model = tiny_model()
    (maker,) = (node for node in model.graph.node if node.name == "hm")
    maker.output[0] = "raw"
    for name, value in (("eps", 1e-5), ("one", 1.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    for op, inputs, output, attributes in (
        ("GlobalAveragePool", ["image"], "pooled", {}),
        ("ReduceMean", ["pooled"], "mean", {"axes": [1], "keepdims": 1}),
        ("Mul", ["mean", "mean"], "square", {}),
        ("Add", ["square", "eps"], "bound", {}),
        ("Reciprocal", ["bound"], "large", {}),
        ("Add", ["large", "one"], "larger", {}),
        ("Div", ["large", "larger"], "share", {}),
        ("Mul", ["raw", "share"], "hm", {}),
    ):
        model.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
    assert built(model, tmp_path, "fp32").precision == "fp32"
    with pytest.raises(ToleranceError, match="head 'hm' by NaN or infinite values on a black frame"):
        built(model, tmp_path)


def test_few_boxes_leave_the_decision_to_the_heads_and_the_build_says_so(tmp_path: Path) -> None:
    model = behind("hm", ("Sub", [".", "low"]), low=4.0)
    (note,) = built(model, tmp_path).notes
    assert note.startswith(
        "0 boxes of the source stand above score 0.3 on 4 images and a black frame, fewer than 20"
    )


def comparison(error: float, boxes: BoxAgreement | None, half: bool = False) -> ImageComparison:
    return ImageComparison({"hm": (error, "a.png"), "wh": (0.0, "a.png")}, boxes, 3, half)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("fp16", 0.06), ("int8", 0.5)])
def test_each_precision_has_its_limit(precision: Precision, limit: float) -> None:
    many = BoxAgreement(0.3, 100, 100, 200)
    assert check_limits(comparison(limit, many), precision) == []
    for error in (limit * 1.01, float("nan"), float("inf")):
        with pytest.raises(ToleranceError, match="head 'hm'"):
            check_limits(comparison(error, many), precision)


def test_what_a_caller_accepts_is_a_note_but_never_nan() -> None:
    many = BoxAgreement(0.3, 100, 100, 200)
    (note,) = check_limits(comparison(0.7, many), "fp16", max_difference=1.0)
    assert "expected at most 0.06" in note
    assert "head 'hm' by 0.7 on a.png" in note
    for value in (float("nan"), float("inf")):
        with pytest.raises(ToleranceError, match="by NaN or infinite values"):
            check_limits(comparison(value, None), "int8", max_difference=float("inf"))


def test_a_source_in_fp16_has_the_limit_of_fp16() -> None:
    assert check_limits(comparison(0.01, BoxAgreement(0.3, 100, 100, 200), half=True), "fp32") == []


@pytest.mark.parametrize("count", [FEWEST_BOXES - 1, FEWEST_BOXES])
def test_boxes_count_from_twenty(count: int) -> None:
    lost = BoxAgreement(0.3, count, count, 0)
    if count < FEWEST_BOXES:
        assert "heads alone decided" in check_limits(comparison(0.0, lost), "fp16")[0]
    else:
        with pytest.raises(ToleranceError, match=r"F1 of 0\.000"):
            check_limits(comparison(0.0, lost), "fp16")


def row_of_boxes(scores: Any, shift: float = 0.0) -> Detections:
    """Boxes side by side, 10 pixels wide, best first."""
    left = np.arange(len(scores), dtype=np.float32)[:, None] * 10 + shift
    xyxy = np.concatenate([left, left * 0, left + 10, left * 0 + 10], axis=1).astype(np.float32)
    return Detections(xyxy, np.asarray(scores, np.float32), np.zeros(len(scores), np.int32))


def test_boxes_are_counted_in_both_directions() -> None:
    found = BoxAgreement(0.3).add(row_of_boxes([0.9, 0.8, 0.7, 0.6]), row_of_boxes([0.9, 0.8]))
    assert (found.source, found.typed, found.found) == (4, 2, 4)
    assert found.f1 == pytest.approx(2 / 3)
    assert BoxAgreement(0.3).f1 == 1.0
    assert BoxAgreement(0.3).add(row_of_boxes([0.9]), row_of_boxes([0.9], shift=8)).f1 == 0.0


def test_rounding_at_the_threshold_and_at_the_end_of_a_decode_loses_nothing() -> None:
    assert BoxAgreement(0.3).add(row_of_boxes([0.9, 0.3001]), row_of_boxes([0.9, 0.2999])).f1 == 1.0
    scores = np.full(MAX_TOP_K, 0.5, np.float32)
    full = BoxAgreement(0.3).add(row_of_boxes(scores), row_of_boxes(scores, shift=5000))
    assert (full.source, full.typed) == (0, 0)


def test_empty_boxes_do_not_count() -> None:
    empty = row_of_boxes([0.9, 0.8])
    empty.xyxy[1, 2] = empty.xyxy[1, 0]
    found = BoxAgreement(0.3).add(empty, empty)
    assert (found.source, found.f1) == (1, 1.0)
