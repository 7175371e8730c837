from typing import Any

import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, bn, bn_constants, model, normal, op_types, small_centernet
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.graph.compare import compare_models
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import fold_constants, remove_identities
from centernet_trt.errors import ModelError

SHAPES = {"x": (2, 3, 16, 16)}


def assert_same(source: ModelProto, made: ModelProto, shapes: dict[str, Any] | None = None) -> None:
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == [value.name for value in source.graph.output]
    for name, error in compare_models(source, made, shapes=shapes or SHAPES).items():
        assert error.magnitude > 0.01, name
        assert error.max_rel <= 1e-5, (name, error)


def test_all_passes_on_a_little_centernet() -> None:
    source = small_centernet()
    before = source.SerializeToString()
    made = fold_batch_norm(remove_identities(fold_constants(source)))
    types = op_types(made)
    assert "BatchNormalization" not in types
    assert "Identity" not in types
    assert "Dropout" not in types
    assert types.count("Mul") == 0
    assert len(types) == 10
    assert_same(source, made)
    assert source.SerializeToString() == before


@settings(max_examples=25, deadline=None)
@given(
    group=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 3),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_norm_goes_into_any_convolution(
    group: int, per_group: int, kernel: int, bias: bool, transposed: bool, seed: int
) -> None:
    channels, made = 4, group * per_group
    shape = (channels, per_group) if transposed else (made, channels // group)
    constants = {
        "w": normal(*shape, kernel, kernel, seed=seed),
        "b": normal(made, seed=seed + 1),
        **bn_constants("n", made, seed),
    }
    operator = "ConvTranspose" if transposed else "Conv"
    nodes = [
        Node(operator, ["x", "w", *(["b"] if bias else [])], ["c"], group=group),
        bn("c", "y", "n", epsilon=1e-3),
    ]
    if not bias:
        del constants["b"]
    source = model(nodes, ["y"], constants, inputs={"x": ["b", 4, 6, 5]})
    folded = fold_batch_norm(source)
    assert op_types(folded) == [operator]
    assert len(folded.graph.initializer) == 2
    assert_same(source, folded, {"x": (2, 4, 6, 5)})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c_shape", [None, (), (5,), (1, 5), (2, 1), (2, 5)])
def test_batch_norm_after_gemm(transposed: int, c_shape: tuple[int, ...] | None) -> None:
    constants = {"w": normal(5, 7) if transposed else normal(7, 5), **bn_constants("n", 5)}
    inputs = ["x", "w"]
    if c_shape is not None:
        constants["c"] = normal(*c_shape) if c_shape else np.array(0.7, np.float32)
        inputs.append("c")
    nodes = [Node("Gemm", inputs, ["g"], alpha=1.5, beta=0.5, transB=transposed), bn("g", "y", "n")]
    source = model(nodes, {"y": [2, 5]}, constants, inputs={"x": [2, 7]})
    folded = fold_batch_norm(source)
    rows_differ = c_shape in ((2, 1), (2, 5))
    assert op_types(folded) == (["Gemm", "Mul", "Add"] if rows_differ else ["Gemm"])
    assert_same(source, folded, {"x": (2, 7)})


def test_batch_norm_goes_into_a_deformable_convolution() -> None:
    constants = {"w": normal(4, 3, 3, 3), "o": normal(1, 18, 14, 14), **bn_constants("n", 4)}
    nodes = [Node("DeformConv", ["x", "w", "o"], ["c"], kernel_shape=[3, 3]), bn("c", "y", "n")]
    source = model(nodes, ["y"], constants, opset=19, inputs={"x": [1, 3, 16, 16]})
    folded = fold_batch_norm(source)
    assert op_types(folded) == ["DeformConv"]
    assert_same(source, folded, {"x": (1, 3, 16, 16)})


def test_two_batch_norms_in_a_row() -> None:
    constants = {"w": normal(4, 3, 3, 3), **bn_constants("n", 4), **bn_constants("o", 4, 5)}
    source = model([Node("Conv", ["x", "w"], ["c"]), bn("c", "d", "n"), bn("d", "y", "o")], ["y"], constants)
    folded = fold_batch_norm(source)
    assert op_types(folded) == ["Conv"]
    assert_same(source, folded)


@pytest.mark.parametrize("why", ["no convolution", "two users", "an output", "computed weights"])
def test_other_batch_norms_become_mul_and_add(why: str) -> None:
    constants = {"w": normal(3, 3, 1, 1), **bn_constants("n", 3)}
    nodes = [Node("Conv", ["x", "w"], ["c"]), bn("c", "y", "n")]
    outputs = ["y"]
    if why == "no convolution":
        nodes[0] = Node("Relu", ["x"], ["c"])
        del constants["w"]
    elif why == "two users":
        nodes.append(Node("Relu", ["c"], ["z"]))
        outputs.append("z")
    elif why == "an output":
        outputs.append("c")
    else:
        nodes.insert(0, Node("Abs", ["w"], ["w_abs"]))
        nodes[1].input[1] = "w_abs"
    source = model(nodes, outputs, constants)
    folded = fold_batch_norm(source)
    assert "BatchNormalization" not in op_types(folded)
    assert op_types(folded).count("Mul") == op_types(folded).count("Add") == 1
    assert_same(source, folded)


def test_shared_weights_are_not_spoiled() -> None:
    constants = {"w": normal(3, 3, 1, 1), **bn_constants("n", 3)}
    nodes = [
        Node("Conv", ["x", "w"], ["c"]),
        bn("c", "y", "n"),
        Node("Conv", ["y", "w"], ["z"]),
    ]
    source = model(nodes, ["z"], constants)
    folded = fold_batch_norm(source)
    assert op_types(folded) == ["Conv", "Conv"]
    assert_same(source, folded)


def test_batch_norm_in_training_mode_is_refused() -> None:
    constants = {"w": normal(3, 3, 1, 1), **bn_constants("n", 3)}
    node = bn("x", "y", "n", training_mode=1)
    node.output.extend(["mean", "var"])
    with pytest.raises(ModelError, match="'n' is in training mode"):
        fold_batch_norm(model([node], ["y"], constants))
    old = bn("x", "y", "n")
    old.output.extend(["mean", "var", "saved_mean", "saved_var"])
    with pytest.raises(ModelError, match="training mode"):
        fold_batch_norm(model([old], ["y"], constants, opset=13))


def test_a_negative_variance_is_refused_and_computed_parameters_stay() -> None:
    constants = bn_constants("n", 3)
    constants["n_v"][1] = -1
    with pytest.raises(ModelError, match="variance of -1"):
        fold_batch_norm(model([bn("x", "y", "n")], ["y"], constants))
    constants = bn_constants("n", 3)
    nodes = [Node("Abs", ["n_s"], ["abs"]), bn("x", "y", "n")]
    nodes[1].input[1] = "abs"
    assert "BatchNormalization" in op_types(fold_batch_norm(model(nodes, ["y"], constants)))


def test_constants_are_folded_but_not_qdq_or_random() -> None:
    constants = {
        "w": normal(4, 3, 1, 1),
        "two": np.array(2, np.float32),
        "s": np.array(0.02, np.float32),
        "z": np.array(0, np.int8),
    }
    nodes = [
        Node("Constant", [], ["half"], value_float=0.5),
        Node("Mul", ["two", "half"], ["one"]),
        Node("Mul", ["w", "one"], ["w1"]),
        Node("QuantizeLinear", ["w1", "s", "z"], ["wq"]),
        Node("DequantizeLinear", ["wq", "s", "z"], ["wd"]),
        Node("Conv", ["x", "wd"], ["y"]),
    ]
    source = model(nodes, ["y"], constants)
    folded = fold_constants(source)
    assert op_types(folded) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert {tensor.name for tensor in folded.graph.initializer} == {"w1", "s", "z"}
    assert_same(source, folded)
    noise = model([Node("RandomNormal", [], ["r"], shape=[1]), Node("Add", ["x", "r"], ["y"])], ["y"])
    assert op_types(fold_constants(noise)) == ["RandomNormal", "Add"]


def test_a_shape_is_no_constant() -> None:
    nodes = [Node("Shape", ["x"], ["s"]), Node("Expand", ["k", "s"], ["e"]), Node("Add", ["x", "e"], ["y"])]
    source = model(nodes, ["y"], {"k": normal(1, 3, 1, 1)}, inputs={"x": [1, 3, 4, 4]})
    assert op_types(fold_constants(source)) == ["Shape", "Expand", "Add"]


def test_constants_that_are_outputs_or_huge_or_unknown_stay() -> None:
    nodes = [
        Node("Constant", [], ["k"], value=numpy_helper.from_array(normal(1, 1, 1, 1))),
        Node("Relu", ["x"], ["y"]),
    ]
    assert op_types(fold_constants(model(nodes, ["y", "k"]))) == ["Constant", "Relu"]
    nodes = [
        Node("Expand", ["k", "s"], ["e"]),
        Node("ReduceMax", ["e"], ["m"]),
        Node("Add", ["x", "m"], ["y"]),
    ]
    constants = {"k": normal(1), "s": np.array([5_000_000])}
    assert "Expand" in op_types(fold_constants(model(nodes, ["y"], constants)))
    nodes = [Node("Odd", ["k"], ["e"], domain="mine"), Node("Add", ["x", "e"], ["y"])]
    assert "Odd" in op_types(fold_constants(model(nodes, ["y"], {"k": normal(1)}, domains=["mine"])))
    # An operator that ONNX Runtime refuses (the shapes do not fit) stays for the checker to complain about.
    nodes = [Node("Add", ["k", "l"], ["e"]), Node("Add", ["x", "e"], ["y"])]
    source = model(nodes, ["y"], {"k": normal(3), "l": normal(2)})
    assert op_types(fold_constants(source)) == ["Add", "Add"]


@pytest.mark.parametrize("order", ["output first", "output last"])
def test_identity_chains_keep_output_names(order: str) -> None:
    nodes = [
        Node("Identity", ["x"], ["x1"]),
        Node("Identity", ["x1"], ["x2"]),
        Node("Conv", ["x2", "w"], ["t"]),
        *(
            [Node("Identity", ["t"], ["y"]), Node("Identity", ["t"], ["a"])]
            if order == "output first"
            else [Node("Identity", ["t"], ["a"]), Node("Identity", ["a"], ["y"])]
        ),
        Node("Relu", ["a"], ["z"]),
        Node("Identity", ["y"], ["y_again"]),
        Node("Identity", ["x2"], ["x_out"]),
    ]
    source = model(nodes, ["y", "z", "y_again", "x_out"], {"w": normal(3, 3, 1, 1)})
    made = remove_identities(source)
    # Two outputs of one tensor, and an output that is an input, each need a node.
    assert sorted(op_types(made)) == ["Conv", "Identity", "Identity", "Relu"]
    assert_same(source, made)


def test_identity_inside_a_subgraphs_view() -> None:
    branch = helper.make_graph(
        [Node("Neg", ["i"], ["n"])], "branch", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    nodes = [
        Node("Relu", ["x"], ["r"]),
        Node("Identity", ["r"], ["i"]),
        Node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    source = model(nodes, ["y"], {"c": np.array(True)})
    made = remove_identities(source)
    assert op_types(made) == ["Relu", "If"]
    np.testing.assert_equal(compare_models(source, made, shapes=SHAPES)["y"].max_abs, 0.0)


def test_dropout_in_training_or_with_a_used_mask_stays() -> None:
    constants = {"ratio": np.array(0.5, np.float32), "train": np.array(True), "eval": np.array(False)}
    nodes = [
        Node("Dropout", ["x", "ratio", "train"], ["a"]),
        Node("Dropout", ["a", "ratio", "eval"], ["b"]),
        Node("Dropout", ["b"], ["c", "mask"]),
        Node("Where", ["mask", "c", "a"], ["y"]),
    ]
    assert op_types(remove_identities(model(nodes, ["y"], constants))) == ["Dropout", "Dropout", "Where"]
