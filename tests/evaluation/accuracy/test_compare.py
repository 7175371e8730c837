"""Verification: errors by hand, and planted differences that must be found in their own stage."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import scene, tiny_model
from onnx import numpy_helper

from centernet_trt.cli.verify import side_by_side
from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.bootstrap import ApDrop
from centernet_trt.evaluation.accuracy.compare import (
    Comparison,
    Side,
    bundle_side,
    graph_side,
    verify,
)
from centernet_trt.evaluation.accuracy.tensor_error import ErrorSum
from centernet_trt.evaluation.accuracy.tolerances import (
    DEFAULTS,
    Tolerances,
    boxes_sentence,
    check_tolerances,
    checks_table,
    first_failure,
    heads_table,
    to_json,
)
from centernet_trt.runtime import Detections


def error_of(reference: Any, candidate: Any) -> Any:
    total = ErrorSum()
    total.add(np.asarray(reference, np.float32), np.asarray(candidate, np.float32))
    return total.result()


def test_errors_by_hand() -> None:
    found = error_of([3.0, -4.0], [3.0, -4.5])
    assert (found.max_abs, found.mean_abs, found.magnitude, found.count) == (0.5, 0.25, 4.0, 2)
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert found.cosine == pytest.approx((9 + 18) / (5 * math.sqrt(9 + 20.25)))
    assert found.max_rel == 0.125
    same = error_of([1.0, 2.0], [1.0, 2.0])
    assert same.identical
    assert (same.sqnr_db, same.cosine) == (None, pytest.approx(1.0))
    zero = error_of([0.0], [0.0])
    assert (zero.cosine, zero.max_rel, zero.sqnr_db) == (1.0, 0.0, None)
    assert error_of([0.0], [1.0]).sqnr_db == -999.0


def test_errors_add_up_over_images() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4, 100)).astype(np.float32)
    total = ErrorSum()
    for first, second in zip(a, b, strict=True):
        total.add(first, second)
    assert total.result().to_json() == pytest.approx(error_of(a, b).to_json())
    with pytest.raises(InputError, match="expected tensors of one shape"):
        total.add(a, b[:1])


def test_uniform_noise_has_the_sqnr_of_the_textbook() -> None:
    # A step d adds noise of variance d^2 / 12 to a signal of variance 1.
    signal = np.random.default_rng(2).normal(size=400_000)
    step = 0.05
    found = error_of(signal, np.round(signal / step) * step)
    assert found.sqnr_db == pytest.approx(10 * math.log10(12 / step**2), abs=0.1)


def test_infinities_count_apart() -> None:
    found = error_of([np.inf, np.nan, 1.0, np.inf], [np.inf, np.nan, 2.0, 5.0])
    assert (found.unequal, found.count, found.max_abs) == (1, 1, 1.0)
    assert not found.identical


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for row, size in enumerate([(64, 96), (70, 130)]):
        paths.append(tmp_path / f"{row}.png")
        paths[-1].write_bytes(cv2.imencode(".png", scene(*size))[1].tobytes())
    return paths


def checked(found: Comparison, drop: ApDrop | None = None, **over: Any) -> tuple[str, dict[str, bool]]:
    tolerances = Tolerances(**{**DEFAULTS["fp32"].__dict__, **over})
    checks = check_tolerances(found, drop, tolerances)
    return first_failure(checks), {f"{check.stage}: {check.what}": check.passed for check in checks}


def changed_model(tensor: str, add: float) -> bytes:
    model = tiny_model()
    (found,) = (t for t in model.graph.initializer if t.name == tensor)
    values = numpy_helper.to_array(found) + np.float32(add)
    found.CopyFrom(numpy_helper.from_array(values, tensor))
    return bytes(model.SerializeToString())


def test_a_bundle_is_its_own_source(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    reference = graph_side("tiny.onnx", tiny_model().SerializeToString(), bundle.manifest)
    calls: list[tuple[int, int]] = []
    found = verify(reference, bundle_side(bundle, "faithful"), images, progress=lambda *n: calls.append(n))
    assert found.preprocess is not None
    assert found.preprocess.identical
    assert all(error.max_abs < 1e-6 for error in found.heads.values())
    assert (found.decode.images, found.decode.box) == (0, 0.0)
    assert found.whole.f1 == 1.0
    assert calls == [(0, 2), (1, 2)]
    failure, passed = checked(found)
    assert failure == ""
    assert all(passed.values())


@pytest.mark.parametrize(("tensor", "head"), [("hm.bias", "hm"), ("wh.bias", "wh"), ("reg.bias", "reg")])
def test_a_changed_head_is_named(tmp_path: Path, images: list[Path], tensor: str, head: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    reference = graph_side("changed.onnx", changed_model(tensor, 0.5), bundle.manifest)
    found = verify(reference, bundle_side(bundle, "fast"), images)
    failure, passed = checked(found)
    assert failure.startswith(f"the first stage that differs is network (SQNR of {head}:")
    assert passed["preprocess: input tensor"]
    assert passed["decode: boxes of the same heads"]
    assert [name for name, good in passed.items() if not good and "SQNR" in name] == [
        f"network: SQNR of {head}"
    ]


def test_changed_preprocessing_is_named_and_blames_nothing_else(tmp_path: Path, images: list[Path]) -> None:
    first = write_tiny_bundle(tmp_path / "a")
    spec = first.manifest.spec
    second = write_tiny_bundle(tmp_path / "b", input={**spec.input.model_dump(), "channel_order": "rgb"})
    found = verify(bundle_side(first, "fast"), bundle_side(second, "fast"), images)
    failure, passed = checked(found)
    assert failure.startswith("the first stage that differs is preprocess (input tensor:")
    # Fed with the same input, networks and decodes agree; from image to boxes they do not.
    assert all(good for name, good in passed.items() if name.startswith(("network", "decode")))
    assert not passed["whole: agreement above score 0.3"]


def test_another_input_size_is_named(tmp_path: Path, images: list[Path]) -> None:
    first = write_tiny_bundle(tmp_path / "a")
    size = {"rule": "pad", "multiple": 64}
    second = write_tiny_bundle(tmp_path / "b", input={**first.manifest.spec.input.model_dump(), "size": size})
    found = verify(bundle_side(first, "fast"), bundle_side(second, "fast"), images)
    assert found.preprocess is None
    assert found.resized == ("0.png", "1.png")
    assert "other sizes for 2 images" in checked(found)[0]


def test_a_changed_decode_is_named(tmp_path: Path, images: list[Path]) -> None:
    first, second = write_tiny_bundle(tmp_path / "a"), write_tiny_bundle(tmp_path / "b", cell_offset=0.5)
    found = verify(bundle_side(first, "fast"), bundle_side(second, "fast"), images)
    failure, passed = checked(found)
    assert failure.startswith("the first stage that differs is decode")
    assert found.decode.box == pytest.approx(2.0)  # half a cell of four pixels
    assert passed["network: SQNR of hm"]


def test_a_drop_in_ap_has_a_tolerance(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    found = verify(bundle_side(bundle, "faithful"), bundle_side(bundle, "fast"), images)
    drop = ApDrop(0.3, 0.29, 0.01, 0.002, 0.018, images=2, samples=10)
    failure, _ = checked(found, drop)
    assert "drop in AP: expected <= 0.001, got +0.0100 (+0.0020 to +0.0180)" in failure
    assert checked(found, drop, ap_drop=0.02)[0] == ""
    with pytest.raises(InputError, match="0 to 1"):
        checked(found, agreement=1.5)


def test_class_lists_that_differ_are_refused(tmp_path: Path, images: list[Path]) -> None:
    first = write_tiny_bundle(tmp_path / "a")
    for names, words in (
        (["blue", "red"], "number 1 is 'green' in one and 'red'"),
        (["blue"], "2 and 1 of them"),
    ):
        second = write_tiny_bundle(tmp_path / "b", class_names=names)
        with pytest.raises(InputError, match=words):
            verify(bundle_side(first, "fast"), bundle_side(second, "fast"), images)
    with pytest.raises(InputError, match="at least one image, got none"):
        verify(bundle_side(first, "fast"), bundle_side(first, "fast"), [])


def test_heads_are_matched_by_meaning_not_by_name(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "a")
    model = tiny_model()
    for node, value in zip(model.graph.node, model.graph.output, strict=True):
        node.output[0] = value.name = f"other/{value.name}"
    names = {
        "heatmap": {"tensor": "other/hm"},
        "box": {"tensor": "other/wh"},
        "offset": {"tensor": "other/reg"},
    }
    spec = bundle.manifest.spec.model_validate({**bundle.manifest.spec.model_dump(), "heads": names})
    manifest = bundle.manifest.model_copy(update={"spec": spec})
    onnx.checker.check_model(model)
    found = verify(
        graph_side("renamed", model.SerializeToString(), manifest), bundle_side(bundle, "fast"), images
    )
    assert set(found.heads) == {"hm", "wh", "reg"}
    assert checked(found)[0] == ""
    without = spec.model_copy(update={"heads": spec.heads.model_copy(update={"offset": None})})
    side = Side("no offset", without, "fp32", np.float32, lambda tensor: {})
    with pytest.raises(InputError, match="the same heads in both models"):
        list(_roles(side, bundle_side(bundle, "fast")))


def _roles(a: Side, b: Side) -> Any:
    from centernet_trt.evaluation.accuracy.compare import _same_heads

    return _same_heads(a.spec, b.spec)


def test_the_worst_image_is_the_one_that_differs(tmp_path: Path, images: list[Path]) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    side = bundle_side(bundle, "fast")
    widths: list[int] = []

    def run(tensor: Any) -> Any:
        heads = side.run(tensor)
        widths.append(tensor.shape[3])
        if tensor.shape[3] == 160:  # the second image's input
            heads["hm"] = heads["hm"] - 3
        return heads

    broken = Side("broken", side.spec, "fp32", side.dtype, run)
    found = verify(side, broken, images, threshold=0.5)
    assert found.images[found.worst] == "1.png"
    result = to_json(found, check_tolerances(found, None, DEFAULTS["fp32"]), None, DEFAULTS["fp32"])
    assert result["worst"] == "1.png"
    assert result["passed"] is False
    assert "SQNR of hm" in checks_table(result).markdown()
    assert heads_table(result).rows[1][4].text == "identical"
    assert "Least similar: 1.png." in boxes_sentence(result)


def test_both_sides_are_drawn() -> None:
    box = Detections(
        np.array([[10, 10, 60, 50]], np.float32), np.array([0.9], np.float32), np.array([0], np.int32)
    )
    none = box[:0]
    image = np.zeros((80, 100, 3), np.uint8)
    drawn = side_by_side(image, ("a", box), ("a name much longer than the image is wide", none), 0.5)
    assert drawn.shape == (80 + 34, 208, 3)
    left, right = drawn[34:, :100], drawn[34:, 108:]
    assert left.any()
    assert not right.any()
    assert (side_by_side(image, ("a", box), ("b", box), 0.95)[34:, :100] == 0).all()
    assert side_by_side(np.zeros((900, 2800, 3), np.uint8), ("a", none), ("b", none), 0).shape[1] == 1408
