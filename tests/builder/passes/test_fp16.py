from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, bn, bn_constants, model, normal, op_types, small_centernet
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from centernet_trt.builder.graph.compare import compare_models, random_feeds, run_model
from centernet_trt.builder.graph.shapes import element_types
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fp16 import Fp16Result, to_fp16
from centernet_trt.errors import ModelError

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
X = {"x": (1, 3, 16, 16)}


def typed(source: ModelProto, **options: Any) -> Fp16Result:
    before = source.SerializeToString()
    result = to_fp16(source, **options)
    assert source.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    names = {value.name: value.type.tensor_type.elem_type for value in result.model.graph.output}
    assert list(names) == [value.name for value in source.graph.output]
    return result


def casts(made: ModelProto) -> list[tuple[str, str, int]]:
    return [
        (node.input[0], node.output[0], node.attribute[0].i)
        for node in made.graph.node
        if node.op_type == "Cast"
    ]


def assert_no_cast_follows_a_cast(made: ModelProto) -> None:
    targets = {target for _, target, _ in casts(made)}
    assert not [source for source, _, _ in casts(made) if source in targets]
    assert len({(source, kind) for source, _, kind in casts(made)}) == len(casts(made))


def close(
    source: ModelProto, made: ModelProto, bound: float = 5e-3, shapes: dict[str, Any] | None = None
) -> None:
    for name, error in compare_models(source, made, shapes=shapes or X).items():
        assert error.max_rel <= bound, (name, error)


def test_everything_becomes_fp16() -> None:
    source = small_centernet()
    result = typed(source)
    types = element_types(result.model)
    # Resize's scales are the one thing that ONNX has in fp32 only.
    assert [name for name, kind in types.items() if kind == FP32] == ["scales"]
    assert Counter(types.values())[FP16] >= 25
    assert result.kept == {}
    assert result.casts == 0
    assert {value.type.tensor_type.elem_type for value in result.model.graph.input} == {FP16}
    assert {tensor.name for tensor in result.model.graph.initializer} == {
        tensor.name for tensor in source.graph.initializer
    }


def test_fp16_is_close_to_fp32_but_not_equal() -> None:
    source = fold_batch_norm(small_centernet())
    made = typed(source).model
    close(source, made)
    assert all(error.max_rel > 1e-5 for error in compare_models(source, made, shapes=X).values())


def test_fp32_inputs_and_outputs_are_cast_once() -> None:
    result = typed(small_centernet(), io_types="fp32")
    graph = result.model.graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {FP32}
    assert sorted(casts(result.model)) == [
        ("hm/fp16", "hm", FP32),
        ("wh/fp16", "wh", FP32),
        ("x", "x/fp16", FP16),
    ]
    assert result.casts == 3
    close(small_centernet(), result.model)


@settings(max_examples=25, deadline=None)
@given(
    names=st.sets(
        st.sampled_from(["stem", "bn0", "Clip/r0", "body", "Add/a1", "Resize/u", "hm_conv", "Sigmoid/hm"])
    ),
    io_types=st.sampled_from(["fp16", "fp32"]),
)
def test_any_islands_are_typed_right_and_cast_once(names: set[str], io_types: str) -> None:
    source = small_centernet()
    result = typed(source, keep_fp32=names, io_types=io_types)
    assert result.kept == dict.fromkeys(names, "requested by keep_fp32")
    types = element_types(result.model)
    for node in result.model.graph.node:
        if node.op_type != "Cast":
            wanted = FP32 if node.name in names else FP16
            assert {types[name] for name in node.output} == {wanted}, node.name
    assert_no_cast_follows_a_cast(result.model)
    assert result.casts == len(casts(result.model))
    close(source, result.model)


def test_islands_next_to_each_other_share_their_cast() -> None:
    nodes = [
        Node("Relu", ["x"], ["a"]),
        Node("Sin", ["a"], ["b"], name="sin"),
        Node("Cos", ["a"], ["c"], name="cos"),
        Node("Add", ["b", "c"], ["d"], name="add"),
        Node("Neg", ["d"], ["y"]),
        Node("Abs", ["d"], ["z"]),
    ]
    result = typed(model(nodes, ["y", "z"]), keep_fp32=["sin", "cos", "add"])
    assert casts(result.model) == [("a", "a/fp32", FP32), ("d", "d/fp16", FP16)]


def test_an_island_that_is_an_output_and_used_inside() -> None:
    nodes = [Node("Sin", ["x"], ["s"], name="sin"), Node("Relu", ["s"], ["y"])]
    result = typed(model(nodes, ["s", "y"]), keep_fp32=["sin"])
    assert casts(result.model) == [("x", "x/fp32", FP32), ("s/fp32", "s", FP16)]
    assert result.model.graph.node[-1].input[0] == "s"


def test_unknown_keep_fp32_names_near_ones() -> None:
    with pytest.raises(ModelError, match=r"'hm_con'; near names: hm_conv"):
        to_fp16(small_centernet(), keep_fp32=["hm_con"])


def test_constants_that_overflow_keep_their_node_and_say_so() -> None:
    constants = {"k": np.array([1e6], np.float32), "inf": np.array([np.inf], np.float32)}
    nodes = [
        Node("Div", ["x", "k"], ["a"], name="big"),
        Node("Min", ["a", "inf"], ["b"], name="infinite"),
        Node("Mul", ["b", "k"], ["y"], name="back"),
    ]
    result = typed(model(nodes, ["y"], constants))
    assert result.kept == {"big": "constant 'k' overflows fp16", "back": "constant 'k' overflows fp16"}
    assert next(t for t in result.model.graph.initializer if t.name == "k").data_type == FP32
    # Between the two lies 1e-6, a subnormal of fp16.
    assert run_model(result.model, {"x": np.ones((1, 3, 16, 16), np.float16)})["y"].max() == pytest.approx(
        1, rel=2e-2
    )


def test_clip_bounds_beyond_fp16_are_brought_to_its_edge() -> None:
    largest = float(np.finfo(np.float32).max)
    constants = {"lo": np.array(0, np.float32), "hi": np.array(largest, np.float32)}
    result = typed(model([Node("Clip", ["x", "lo", "hi"], ["y"])], ["y"], constants))
    assert result.kept == {}
    assert {t.name: float(onnx.numpy_helper.to_array(t)) for t in result.model.graph.initializer} == {
        "lo": 0.0,
        "hi": 65504.0,
    }


def test_a_constant_used_in_both_types_is_held_twice() -> None:
    nodes = [Node("Mul", ["x", "k"], ["a"], name="half"), Node("Add", ["a", "k"], ["y"], name="full")]
    result = typed(model(nodes, ["y"], {"k": normal(1)}), keep_fp32=["full"])
    assert {t.name: t.data_type for t in result.model.graph.initializer} == {"k": FP32, "k/fp16": FP16}


def test_casts_of_the_source_are_retyped_not_wrapped() -> None:
    nodes = [
        Node("Greater", ["x", "k"], ["m"]),
        Node("Cast", ["m"], ["f"], to=FP32),
        Node("Mul", ["x", "f"], ["a"]),
        Node("Cast", ["a"], ["h"], to=FP16),
        Node("Relu", ["h"], ["r"]),
        Node("Cast", ["r"], ["s"], to=FP32),
        Node("Neg", ["s"], ["y"]),
    ]
    source = model(nodes, ["y"], {"k": np.array([0.5], np.float32)})
    result = typed(source)
    assert casts(result.model) == [("m", "f", FP16)]
    assert result.casts == 0
    assert "Identity" not in op_types(result.model)
    close(source, result.model)


def test_constant_nodes_and_fill_values_are_typed() -> None:
    nodes = [
        Node("Constant", [], ["k"], value_float=0.5),
        Node("Shape", ["x"], ["s"]),
        Node("ConstantOfShape", ["s"], ["zeros"]),
        Node(
            "ConstantOfShape",
            ["s"],
            ["threes"],
            value=onnx.numpy_helper.from_array(np.array([3], np.float32)),
        ),
        Node(
            "ConstantOfShape",
            ["s"],
            ["huge"],
            name="huge",
            value=onnx.numpy_helper.from_array(np.array([1e9], np.float32)),
        ),
        Node("Sum", ["x", "zeros", "threes", "k"], ["y"]),
        Node("Min", ["y", "huge"], ["z"]),
    ]
    source = model(nodes, ["y", "z"])
    result = typed(source)
    types = element_types(result.model)
    assert {types[name] for name in ("k", "zeros", "threes", "y")} == {FP16}
    assert result.kept == {"huge": "its fill value overflows fp16"}
    made = run_model(result.model, {"x": np.zeros((1, 3, 16, 16), np.float16)})
    assert made["y"].max() == made["z"].max() == 3.5


def test_resize_roi_and_scales_stay_fp32() -> None:
    constants = {"roi": np.zeros(8, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [Node("Resize", ["x", "roi", "scales"], ["y"], mode="linear")]
    source = model(nodes, {"y": ["batch", 3, 32, 32]}, constants)
    result = typed(source)
    assert {t.name: t.data_type for t in result.model.graph.initializer} == {"roi": FP32, "scales": FP32}
    assert result.kept == {}
    close(source, result.model)


def test_sampling_and_its_grid_stay_fp32_but_not_the_offsets() -> None:
    rows, columns = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    constants = {
        "w": normal(2, 3, 3, 3, scale=0.02),
        "base": np.stack([columns, rows], -1)[None].astype(np.float32),
        "w2": normal(2, 3, 1, 1),
    }
    nodes = [
        Node("Conv", ["x", "w"], ["offset"], name="offset", pads=[1] * 4),
        Node("Transpose", ["offset"], ["t"], name="t", perm=[0, 2, 3, 1]),
        Node("Add", ["t", "base"], ["grid"], name="grid"),
        Node("GridSample", ["x", "grid"], ["g"], name="sample", align_corners=1),
        Node("Conv", ["g", "w2"], ["y"], name="after"),
    ]
    source = model(nodes, ["y"], constants)
    result = typed(source)
    assert result.kept == {
        "sample": "samples at fp32 positions",
        "grid": "makes the grid of sample",
        "t": "makes the grid of sample",
    }
    assert_no_cast_follows_a_cast(result.model)
    close(source, result.model)


def test_arithmetic_on_shapes_stays_fp32() -> None:
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Cast", ["s"], ["f"], name="cast", to=FP32),
        Node("Mul", ["f", "two"], ["m"], name="double"),
        Node("Cast", ["m"], ["i"], name="back", to=TensorProto.INT64),
        Node("Resize", ["x", "", "", "i"], ["y"], mode="nearest"),
    ]
    constants = {"two": np.array([1, 1, 257, 1], np.float32)}
    source = model(nodes, {"y": [1, 3, None, None]}, constants)
    result = typed(source)
    assert set(result.kept) == {"cast", "double", "back"}
    # 16 * 257 = 4112 is a multiple of 16, but 4112 + 1 would not survive fp16; here all stay exact in fp32.
    assert run_model(result.model, random_feeds(source, X))["y"].shape == (1, 3, 4112, 16)


def test_operators_without_float16_stay_and_say_so() -> None:
    nodes = [Node("Range", ["a", "b", "c"], ["r"], name="range"), Node("Add", ["x", "r"], ["y"])]
    constants = {
        "a": np.array(0, np.float32),
        "b": np.array(16, np.float32),
        "c": np.array(1, np.float32),
    }
    result = typed(model(nodes, ["y"], constants))
    assert result.kept == {"range": "Range (opset 17) has no float16 for its input start"}
    seeded = model(
        [Node("RandomNormalLike", ["i"], ["r"], name="r", dtype=1), Node("Add", ["x", "r"], ["y"])],
        ["y"],
        {"i": np.zeros((1, 1, 1, 1), np.int64)},
    )
    assert typed(seeded).kept == {"r": "the output type of RandomNormalLike does not follow its inputs"}


def qdq_model(opset: int, scale: float = 0.02) -> ModelProto:
    constants = {
        "s": np.array(scale, np.float32),
        "z": np.array(0, np.int8),
        "w": normal(4, 3, 3, 3),
        "ws": np.full(4, 0.01, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        Node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        Node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        Node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], name="wq", axis=0),
        Node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], name="wdq", axis=0),
        Node("Conv", ["xd", "wd"], ["y"], name="conv"),
    ]
    return model(nodes, ["y"], constants, opset=opset)


@pytest.mark.parametrize("opset", [13, 19])
def test_quantisation_stays_fp32_with_exact_scales(opset: int) -> None:
    source = qdq_model(opset)
    result = typed(source)
    assert set(result.kept) == {"q", "dq", "wq", "wdq"}
    assert set(result.kept.values()) == {"int8 scales stay exact in fp32"}
    types = element_types(result.model)
    assert types["s"] == types["ws"] == FP32
    assert types["xq"] == types["wq"] == TensorProto.INT8
    assert types["y"] == FP16
    close(source, result.model)


def test_quantisation_in_fp16_where_it_can_be() -> None:
    result = typed(qdq_model(19), scales="fp16")
    assert result.kept == {}
    assert casts(result.model) == []
    assert element_types(result.model)["s"] == FP16
    close(qdq_model(19), result.model, 2e-2)
    assert set(typed(qdq_model(13), scales="fp16").kept) == {"q", "dq", "wq", "wdq"}
    tiny = typed(qdq_model(19, scale=1e-6), scales="fp16").kept
    assert tiny == dict.fromkeys(("q", "dq"), "scale 's' is too small for fp16")


def test_batch_norm_that_was_not_folded_is_typed_whole() -> None:
    source = model([bn("x", "y", "n")], ["y"], bn_constants("n", 3))
    result = typed(source)
    assert {t.data_type for t in result.model.graph.initializer} == {FP16}
    close(source, result.model)


def test_a_typed_graph_stays_as_it_is() -> None:
    once = typed(small_centernet()).model
    again = typed(once)
    assert again.casts == 0
    assert [n.SerializeToString() for n in again.model.graph.node] == [
        n.SerializeToString() for n in once.graph.node
    ]


def test_subgraphs_old_opsets_and_unknown_operators_are_refused() -> None:
    branch = helper.make_graph(
        [Node("Neg", ["x"], ["n"])], "branch", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    nested = model(
        [Node("If", ["c"], ["y"], name="iffy", then_branch=branch, else_branch=branch)],
        ["y"],
        {"c": np.array(True)},
    )
    with pytest.raises(ModelError, match=r"subgraphs cannot be typed fp16: iffy \(If\)"):
        to_fp16(nested)
    with pytest.raises(ModelError, match="opset 11"):
        to_fp16(model([Node("Relu", ["x"], ["y"])], ["y"], opset=11))
    odd = model(
        [Node("Odd", ["x"], ["o"], domain="mine"), Node("Relu", ["o"], ["y"])], ["y"], domains=["mine"]
    )
    with pytest.raises(ModelError, match=r"tensor 'o' is unknown; node Odd/o \(mine.Odd\)"):
        to_fp16(odd)
    constant = model([Node("Relu", ["x"], ["y"])], {"y": None, "k": [1]}, {"k": normal(1)}, valid=False)
    with pytest.raises(ModelError, match="output 'k' is a constant"):
        to_fp16(constant)
