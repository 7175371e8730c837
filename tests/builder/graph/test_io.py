import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, model, normal, op_types, small_centernet
from onnx import TensorProto, ValueInfoProto

from centernet_trt.builder.graph.compare import random_feeds, run_model
from centernet_trt.builder.graph.edit import name_nodes
from centernet_trt.builder.graph.io import keep_heads, make_dynamic, set_input_size
from centernet_trt.errors import ModelError


def dims(value: ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def fixed_model() -> onnx.ModelProto:
    nodes = [Node("Conv", ["x", "w"], ["c"], pads=[1] * 4, strides=[2, 2]), Node("Relu", ["c"], ["y"])]
    return model(nodes, {"y": [10, 4, 8, 8]}, {"w": normal(4, 3, 3, 3)}, inputs={"x": [10, 3, 16, 16]})


def test_make_dynamic_frees_batch_and_size_and_all_that_follows() -> None:
    source = fixed_model()
    before = source.SerializeToString()
    stale = source.graph.value_info.add()
    stale.CopyFrom(onnx.helper.make_tensor_value_info("c", TensorProto.FLOAT, [10, 4, 8, 8]))
    made = make_dynamic(source, "x", size=True)
    assert dims(made.graph.input[0]) == ["batch", 3, "height", "width"]
    assert dims(made.graph.output[0])[:2] == ["batch", 4]
    (c,) = made.graph.value_info
    assert dims(c)[:2] == ["batch", 4]
    assert 8 not in dims(c)
    assert run_model(made, {"x": normal(3, 3, 32, 64)})["y"].shape == (3, 4, 16, 32)
    del source.graph.value_info[:]
    assert source.SerializeToString() == before


def test_make_dynamic_keeps_what_is_not_asked_for() -> None:
    assert dims(make_dynamic(fixed_model(), "x", size=False).graph.input[0]) == ["batch", 3, 16, 16]
    assert dims(make_dynamic(fixed_model(), "x", size=False).graph.output[0]) == ["batch", 4, 8, 8]
    assert dims(make_dynamic(fixed_model(), "x", batch=False, size=True).graph.input[0])[0] == 10


def test_set_input_size_fixes_a_dynamic_size() -> None:
    made = set_input_size(make_dynamic(fixed_model(), "x", size=True), "x", 64, 32)
    assert dims(made.graph.input[0]) == ["batch", 3, 64, 32]
    assert dims(made.graph.output[0]) == ["batch", 4, 32, 16]
    with pytest.raises(ModelError, match="0x32"):
        set_input_size(made, "x", 0, 32)


def test_input_errors() -> None:
    with pytest.raises(ModelError, match=r"no input 'image'; it has 'x'"):
        make_dynamic(fixed_model(), "image", size=True)
    flat = model([Node("Relu", ["x"], ["y"])], {"y": [1, 2]}, inputs={"x": [1, 2]})
    with pytest.raises(ModelError, match="rank 2"):
        make_dynamic(flat, "x", size=True)
    grey = model(
        [Node("Abs", ["x"], ["y"])], {"y": [1, 1, 2, 2]}, inputs={"x": [1, 1, 2, 2]}, kind=TensorProto.UINT8
    )
    with pytest.raises(ModelError, match="UINT8"):
        make_dynamic(grey, "x", size=True)


def test_a_size_that_contradicts_the_graph() -> None:
    nodes = [Node("Add", ["x", "grid"], ["y"])]
    source = model(nodes, {"y": [1, 3, 16, 16]}, {"grid": normal(1, 3, 16, 16)}, inputs={"x": [1, 3, 16, 16]})
    with pytest.raises(ModelError, match="shape inference fails"):
        set_input_size(source, "x", 20, 20)


def test_keep_heads_cuts_in_the_order_asked_for() -> None:
    source = small_centernet()
    before = source.SerializeToString()
    made = keep_heads(source, ["wh", "logits"])
    assert [value.name for value in made.graph.output] == ["wh", "logits"]
    assert "Sigmoid" not in op_types(made)
    assert dims(made.graph.output[1])[1:] == [2, 32, 32]
    feeds = random_feeds(source, {"x": (1, 3, 16, 16)})
    full, cut = run_model(source, feeds), run_model(made, feeds)
    np.testing.assert_array_equal(full["wh"], cut["wh"])
    np.testing.assert_allclose(full["hm"], 1 / (1 + np.exp(-cut["logits"])), rtol=1e-5)
    assert source.SerializeToString() == before


def test_keep_heads_drops_constants_and_inputs_that_only_others_need() -> None:
    nodes = [Node("Relu", ["x"], ["y"]), Node("Mul", ["z", "k"], ["w"])]
    shape = [1, 3, 4, 4]
    source = model(nodes, ["y", "w"], {"k": normal(1)}, inputs={"x": shape, "z": shape})
    made = keep_heads(source, ["y"])
    assert [value.name for value in made.graph.input] == ["x"]
    assert not made.graph.initializer
    assert op_types(made) == ["Relu"]


def test_keep_heads_follows_names_captured_by_subgraphs() -> None:
    branch = onnx.helper.make_graph(
        [Node("Neg", ["r"], ["n"])], "branch", [], [onnx.helper.make_tensor_value_info("n", 1, [1, 3, 4, 4])]
    )
    nodes = [
        Node("Relu", ["x"], ["r"]),
        Node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        Node("Abs", ["x"], ["gone"]),
    ]
    source = model(nodes, ["y", "gone"], {"c": np.array(True)}, inputs={"x": [1, 3, 4, 4]})
    assert op_types(keep_heads(source, ["y"])) == ["Relu", "If"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["expected at least one head, got none"]),
        (["wh", "wh"], ["more than once", "wh"]),
        (["logit"], ["logit", "near names: logits", "hm, wh"]),
        (["x"], ["input or constant"]),
        (["w0"], ["input or constant"]),
        (["zzzzz"], ["outputs are hm, wh"]),
    ],
)
def test_keep_heads_errors(names: list[str], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        keep_heads(small_centernet(), names)
    for word in words:
        assert word in caught.value.message


def test_keep_heads_of_a_constant_branch_and_of_unknown_type() -> None:
    nodes = [Node("Relu", ["x"], ["y"]), Node("Abs", ["k"], ["q"])]
    with pytest.raises(ModelError, match="do not depend on any input"):
        keep_heads(model(nodes, ["y"], {"k": normal(1, 1, 1, 1)}), ["q"])
    nodes = [Node("Odd", ["x"], ["o"], domain="mine"), Node("Relu", ["o"], ["y"])]
    with pytest.raises(ModelError, match=r"domain mine that ONNX does not define.*'o' \(mine.Odd\)"):
        keep_heads(model(nodes, ["y"], domains=["mine"]), ["o"])


def test_name_nodes_is_stable_and_unique() -> None:
    nodes = [
        Node("Relu", ["x"], ["a"]),
        Node("Relu", ["a"], ["b"], name="Relu/a"),
        Node("Relu", ["b"], ["y"], name="Relu/a"),
    ]
    source = model(nodes, ["y"])
    once = name_nodes(source)
    assert [node.name for node in once.graph.node] == ["Relu/a_1", "Relu/a", "Relu/a_2"]
    assert name_nodes(once).SerializeToString() == once.SerializeToString()
    assert source.graph.node[0].name == ""
