"""A precision that is stated is the precision that is built: fp16 exports as fp32, and what the result is compared with."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import variants
from helpers.onnx_graphs import Node, bn, bn_constants, normal
from helpers.tiny_centernet import tiny_model, tiny_spec
from onnx import ModelProto, TensorProto, helper, numpy_helper

from centernet_trt.builder.build import BuildOptions, build, requested_layers
from centernet_trt.builder.graph import load
from centernet_trt.builder.graph.compare import own_spread, random_feeds, run_model
from centernet_trt.builder.graph.source_comparison import compare_with_source
from centernet_trt.builder.passes.fp32 import holds_fp16, to_fp32
from centernet_trt.builder.passes.qdq import repair_quantised
from centernet_trt.builder.prepare import Prepared, prepare
from centernet_trt.errors import ModelError
from centernet_trt.runtime.manifest import ShapeRange

SIDE = ShapeRange.of(64, 64, 64)
FP32 = BuildOptions("fp32", ShapeRange.of(1, 1, 2), SIDE, SIDE, flavour="none")
FP16 = TensorProto.FLOAT16


def prepared(model: ModelProto, folder: Path) -> Prepared:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return prepare(path, tiny_spec(), FP32)


def halved(model: ModelProto) -> ModelProto:
    """The model as `.half()` and an export make it."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = FP16
    return model


def with_layers(model: ModelProto, nodes: list[Any], constants: dict[str, Any]) -> ModelProto:
    """Put nodes between the image and the heads; they make `y` of `image`."""
    heads = list(model.graph.node)
    for node in heads:
        node.input[0] = "y"
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *heads])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def normed() -> ModelProto:
    constants = {"c.w": normal(3, 3, 3, 3), **bn_constants("n", 3)}
    nodes = [Node("Conv", ["image", "c.w"], ["c"], pads=[1] * 4), bn("c", "y", "n")]
    return halved(with_layers(tiny_model(), nodes, constants))


def cast_inside() -> ModelProto:
    """fp32 inputs and outputs; a part computes in fp16, with a constant and a filled tensor of its own."""
    half = numpy_helper.from_array(np.array(0.3, np.float16))
    fill = numpy_helper.from_array(np.array([0.125], np.float16))
    nodes = [
        Node("Cast", ["image"], ["h"], to=FP16),
        Node("Constant", [], ["k"], value=half),
        Node("Mul", ["h", "k"], ["m"]),
        Node("Shape", ["m"], ["s"]),
        Node("ConstantOfShape", ["s"], ["f"], value=fill),
        Node("Add", ["m", "f"], ["a"]),
        Node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    return with_layers(tiny_model(), nodes, {})


def branches() -> ModelProto:
    """fp16 in a branch, behind a condition that only the image decides."""
    parts = []
    for what, number in (("then", 1.5), ("else", 0.5)):
        value = helper.make_tensor_value_info(f"{what}_y", FP16, None)
        constant = numpy_helper.from_array(np.array(number, np.float16), f"{what}_k")
        nodes = [Node("Mul", ["image", f"{what}_k"], [f"{what}_y"])]
        parts.append(helper.make_graph(nodes, what, [], [value], [constant]))
    nodes = [
        Node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        Node("ReduceMax", ["wide"], ["most"], keepdims=0),
        Node("Greater", ["most", "limit"], ["bright"]),
        Node("If", ["bright"], ["y"], then_branch=parts[0], else_branch=parts[1]),
    ]
    made = halved(with_layers(tiny_model(), nodes, {}))
    made.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "limit"))
    return made


CASES = {
    "whole": variants.half_exported,
    "batch norm": normed,
    "cast inside": cast_inside,
    "branch": branches,
}


@pytest.mark.parametrize("name", CASES)
def test_an_fp16_export_built_as_fp32_is_fp32(name: str, tmp_path: Path) -> None:
    source = CASES[name]()
    onnx.checker.check_model(source, full_check=True)
    found = prepared(source, tmp_path)
    assert not holds_fp16(found.model)
    assert {found.input.dtype, *(head.dtype for head in found.heads)} == {"float32"}
    assert {row["precision"] for row in requested_layers(found.model, {})} & {"fp16"} == set()
    assert any("exported in fp16" in note for note in found.notes)
    # The oracle: the source in ONNX Runtime, whose every operator rounds to fp16.
    image = {"image": np.random.default_rng(0).random((1, 3, 64, 64)).astype(np.float16)}
    result = run_model(found.model, image)
    for head, wanted in run_model(source, image).items():
        np.testing.assert_allclose(result[head], wanted.astype(np.float32), atol=5e-3 * abs(wanted).max())


def test_the_weights_keep_their_numbers() -> None:
    source = variants.half_exported()
    wide = {tensor.name: tensor for tensor in to_fp32(source).graph.initializer}
    for tensor in source.graph.initializer:
        np.testing.assert_array_equal(
            numpy_helper.to_array(wide[tensor.name]), numpy_helper.to_array(tensor).astype(np.float32)
        )


def test_the_manifest_of_such_a_build(tmp_path: Path) -> None:
    onnx.save(variants.half_exported(), tmp_path / "half.onnx")
    manifest = build(tmp_path / "half.onnx", tiny_spec(), tmp_path / "b", FP32).manifest
    assert (manifest.precision, manifest.input.dtype) == ("fp32", "float32")
    assert [row.name for row in manifest.passes].count("fp32") == 1


def test_an_fp32_graph_has_no_such_pass(tmp_path: Path) -> None:
    found = prepared(tiny_model(), tmp_path)
    assert "fp32" not in [row.name for row in found.passes]
    assert not [note for note in found.notes if "exported in fp16" in note]


# The reference ---------------------------------------------------------------------------------------------------


def old_resize() -> ModelProto:
    scales = {"up": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        Node("Upsample", ["image", "up"], ["u"], mode="linear"),
        Node("MaxPool", ["u"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    model = with_layers(tiny_model(opset=9), nodes, scales)
    model.ir_version = 4
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )
    return model


def test_a_wrong_conversion_of_an_old_opset_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(old_resize(), tmp_path).comparison["hm"].max_rel < 1e-5
    monkeypatch.setattr(load, "_restore_resize", lambda model: None)
    with pytest.raises(ModelError, match=r"head '(hm|wh)' of the prepared graph: expected at most 1e-04"):
        prepared(old_resize(), tmp_path)


def test_a_wrong_pass_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "centernet_trt.builder.pass_list.fold_batch_norm", lambda model: _scaled(model, 1.001)
    )
    with pytest.raises(ModelError, match="of the prepared graph") as caught:
        prepared(tiny_model(), tmp_path)
    assert "defect of a pass" in caught.value.hint


def _scaled(model: ModelProto, factor: float) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            value = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def cancelling(*, folded: bool = False) -> ModelProto:
    """Small differences of large numbers: fp32 leaves few digits. `folded`: as a pass could write it, with more digits."""
    level = np.full(3, 0 if folded else 3e4, np.float32)
    nodes = [
        Node("Conv", ["image", "c.weight", "c.bias"], ["big"], kernel_shape=[3, 3], pads=[1] * 4),
        Node("Sub", ["big", "level"], ["y"]),
    ]
    constants = {"c.weight": normal(3, 3, 3, 3), "c.bias": level, "level": level[0]}
    return with_layers(tiny_model(), nodes, constants)


def test_a_difference_within_the_spread_of_the_source_is_a_note() -> None:
    source = cancelling()
    spec = tiny_spec()
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"name": "image"})})
    notes: list[str] = []
    found = compare_with_source(source, cancelling(folded=True), spec, (64, 64), "fp32", notes)
    assert found["hm"].max_rel > 1e-4  # the case is one
    assert own_spread(source, {"image": (1, 3, 64, 64)})["hm"] > 1e-4
    (note,) = notes
    assert re.search("the heads hm, wh differ from the source by up to .* by itself varies by", note)
    with pytest.raises(ModelError, match=r"which varies by .* by itself"):
        compare_with_source(source, _scaled(cancelling(), 1.1), spec, (64, 64), "fp32")


def test_a_stable_graph_has_next_to_no_spread() -> None:
    assert max(own_spread(tiny_model(), {"image": (1, 3, 64, 64)}).values()) < 1e-5


def test_quantisation_is_compared_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repair of Q/DQ is a rewrite: one that loses the scale of a tensor shows in the manifest."""
    model = tiny_model()
    constants = {"scale": np.array(1 / 64, np.float32), "zero": np.array(128, np.uint8)}
    nodes = [
        Node("QuantizeLinear", ["image", "scale", "zero"], ["q"], name="q"),
        Node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d"),
    ]
    onnx.save(with_layers(model, nodes, constants), tmp_path / "q.onnx")
    options = BuildOptions("int8", ShapeRange.of(1, 1, 1), SIDE, SIDE, flavour="none")
    right = prepare(tmp_path / "q.onnx", tiny_spec(), options).comparison["hm"].max_rel
    monkeypatch.setattr(
        "centernet_trt.builder.pass_list.repair_quantised", lambda model: _coarser(repair_quantised(model))
    )
    wrong = prepare(tmp_path / "q.onnx", tiny_spec(), options).comparison["hm"].max_rel
    assert right < 2e-3
    assert wrong > 2 * right


def _coarser(model: ModelProto) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.array(1 / 16, np.float32), "scale"))
    return model


def test_feeds_are_the_same_for_both() -> None:
    half, single = variants.half_exported(), tiny_model()
    for a, b in zip(
        random_feeds(half, {"image": (1, 3, 8, 8)}).values(),
        random_feeds(single, {"image": (1, 3, 8, 8)}).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a.astype(np.float32), b)
