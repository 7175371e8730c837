"""Constant conditions are resolved, others refused where nodes must be typed; the oracle is ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.onnx_graphs import Node, model, normal, op_types
from helpers.tiny_centernet import tiny_model, tiny_spec
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, checker, helper, numpy_helper

from centernet_trt.builder.build import BuildOptions
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.guess.spec import guess_spec
from centernet_trt.builder.passes.branches import inline_constant_branches
from centernet_trt.builder.prepare import prepare
from centernet_trt.builder.source import read_source
from centernet_trt.errors import ModelError
from centernet_trt.runtime.manifest import ShapeRange


def branch(
    name: str, nodes: list[Any], outputs: list[str], constants: dict[str, NDArray[Any]] | None = None
) -> GraphProto:
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    tensors = [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
    return helper.make_graph(nodes, name, [], values, tensors)


def scaled(name: str, factor: float, source: str = "x", output: str = "o") -> GraphProto:
    """A branch that multiplies; both branches use the same names inside."""
    return branch(name, [Node("Mul", [source, "k"], [output])], [output], {"k": np.array(factor, np.float32)})


def condition(cond: str, output: str = "y", **branches: GraphProto) -> Any:
    chosen = {"then_branch": scaled("t", 2), "else_branch": scaled("e", 3), **branches}
    return Node("If", [cond], [output], name=f"if_{output}", **chosen)


def same(source: ModelProto, made: ModelProto, size: tuple[int, int] = (16, 16)) -> None:
    checker.check_model(made, full_check=True)
    feeds = {"x": normal(2, 3, *size)}
    for name, wanted in run_model(source, feeds).items():
        np.testing.assert_array_equal(run_model(made, feeds)[name], wanted)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("kind", ["initialiser", "constant", "computed"])
def test_a_constant_condition(taken: bool, kind: str) -> None:
    nodes: list[Any] = [condition("c")]
    constants = {"c": np.array(taken)}
    if kind == "constant":
        nodes.insert(0, Node("Constant", [], ["c"], value=numpy_helper.from_array(constants.pop("c"))))
    elif kind == "computed":
        constants = {"n": np.array(not taken)}
        nodes.insert(0, Node("Not", ["n"], ["c"]))
    source = model(nodes, ["y"], constants)
    made = inline_constant_branches(source)
    assert op_types(made) == ["Mul"]
    same(source, made)
    assert "If" in op_types(source)


def test_two_ifs_that_share_names_and_one_inside_the_other() -> None:
    inner_branches = {f"{w}_branch": scaled(w, f, "m", "i") for w, f in (("then", 5), ("else", 7))}
    inner = condition("c", "o", **inner_branches)
    nested = branch("n", [Node("Relu", ["a"], ["m"]), inner], ["o"])
    nodes = [condition("d", "a"), condition("c", "y", then_branch=nested), Node("Add", ["y", "a"], ["z"])]
    source = model(nodes, ["z"], {"c": np.array(True), "d": np.array(False)})
    made = inline_constant_branches(source)
    assert sorted(op_types(made)) == ["Add", "Mul", "Mul", "Relu"]
    same(source, made)


def test_a_branch_that_hands_on_an_outer_tensor_or_a_constant() -> None:
    outer = branch("t", [Node("Identity", ["r"], ["o"])], ["o"])
    both = branch("t2", [Node("Abs", ["x"], ["p"])], ["p", "q"], {"q": normal(1, 3, 1, 1)})
    other = branch("e2", [Node("Neg", ["x"], ["p"]), Node("Neg", ["p"], ["q"])], ["p", "q"])
    nodes = [
        Node("Relu", ["x"], ["r"]),
        condition("c", "u", then_branch=outer),
        Node("If", ["c"], ["v", "w"], name="two", then_branch=both, else_branch=other),
        Node("Sum", ["u", "v", "w"], ["y"]),
    ]
    source = model(nodes, ["y"], {"c": np.array(True)})
    made = inline_constant_branches(source)
    assert "If" not in op_types(made)
    same(source, made)


def on_size(axis: int, equal: int) -> ModelProto:
    """As squeeze is exported: the condition asks for a size."""
    nodes = [
        Node("Shape", ["x"], ["s"]),
        Node("Gather", ["s", "axis"], ["n"]),
        Node("Equal", ["n", "equal"], ["c"]),
        condition("c"),
    ]
    return model(nodes, ["y"], {"axis": np.array(axis), "equal": np.array(equal)})


@pytest.mark.parametrize("equal", [1, 3])
@pytest.mark.parametrize("axis", [1, -3])
def test_a_condition_on_channels_is_constant(axis: int, equal: int) -> None:
    source = on_size(axis, equal)
    made = inline_constant_branches(source, free_sizes=True)
    assert op_types(made) == ["Mul"]
    same(source, made)


@pytest.mark.parametrize("axis", [0, 2, 3, -1])
def test_a_condition_on_a_free_size_stays(axis: int) -> None:
    source = on_size(axis, 16)
    assert inline_constant_branches(source, free_sizes=True) is source
    fixed = inline_constant_branches(source)
    assert ("If" in op_types(fixed)) == (
        axis == 0
    )  # the batch of the test's input is free, its sides are not
    same(source, fixed)


def in_front(nodes: list[Any], constants: dict[str, Any], size: tuple[int, int] | None = None) -> ModelProto:
    """The tiny network behind nodes that make `y` of `x`."""
    made = tiny_model(size)
    made.graph.input[0].name = "x"
    for node in made.graph.node:
        node.input[0] = "y"
    heads = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*nodes, *heads])
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return made


def options(precision: Any) -> BuildOptions:
    side = ShapeRange.of(64, 64, 64)
    return BuildOptions(precision, ShapeRange.of(1, 1, 2), side, side, flavour="none")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_behind_a_constant_condition_is_built(precision: str, tmp_path: Path) -> None:
    source = in_front([condition("c")], {"c": np.array(False)})
    onnx.save(source, tmp_path / "m.onnx")
    assert "If" not in op_types(read_source(tmp_path / "m.onnx"))
    found = prepare(tmp_path / "m.onnx", tiny_spec(), options(precision))
    assert "If" not in op_types(found.model)
    assert found.comparison["hm"].max_rel < (1e-6 if precision == "fp32" else 5e-3)


def test_the_wrong_branch_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the result is compared with still has its condition."""
    onnx.save(in_front([condition("c")], {"c": np.array(False)}), tmp_path / "m.onnx")
    wrong = in_front([condition("c")], {"c": np.array(True)})
    monkeypatch.setattr(
        "centernet_trt.builder.pass_list.inline_constant_branches",
        lambda model, **_: inline_constant_branches(wrong) if "If" in op_types(model) else model,
    )
    with pytest.raises(ModelError, match="of the prepared graph"):
        prepare(tmp_path / "m.onnx", tiny_spec(), options("fp32"))


def test_a_condition_on_the_image_is_refused_where_nodes_are_typed(tmp_path: Path) -> None:
    nodes = [
        Node("ReduceMax", ["x"], ["most"], keepdims=0),
        Node("Greater", ["most", "limit"], ["c"]),
        condition("c"),
    ]
    onnx.save(in_front(nodes, {"limit": np.array(9, np.float32)}), tmp_path / "m.onnx")
    assert "If" in op_types(prepare(tmp_path / "m.onnx", tiny_spec(), options("fp32")).model)
    with pytest.raises(ModelError, match=r"control flow that depends on its input: 'if_y' \(If\)") as caught:
        prepare(tmp_path / "m.onnx", tiny_spec(), options("fp16"))
    assert "--precision fp32" in caught.value.hint


def test_a_loop_is_refused_where_nodes_are_typed(tmp_path: Path) -> None:
    def value(name: str, kind: int = 1) -> Any:
        return helper.make_tensor_value_info(name, kind, None if kind == 1 else [])

    body = helper.make_graph(
        [Node("Relu", ["in"], ["out"]), Node("Identity", ["go"], ["on"])],
        "body",
        [value("i", 7), value("go", 9), value("in")],
        [value("on", 9), value("out")],
    )
    loop = Node("Loop", ["count", "start", "x"], ["y"], name="loop", body=body)
    onnx.save(in_front([loop], {"count": np.array(2), "start": np.array(True)}), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"control flow that depends on its input: 'loop' \(Loop\)"):
        prepare(tmp_path / "m.onnx", tiny_spec(), options("fp16"))


PLUGINS = {
    "EfficientNMS_TRT": ("", 4), "BatchedNMSDynamic_TRT": ("TRT", 4), "BatchedNMS_TRT": ("trt.plugins", 4),
    "NonMaxSuppressionPlugin": ("acme", 1), "Plugin": ("", 2), "CenterNetDecode": ("acme.ops", 3),
}  # fmt: skip


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_behind_the_heads_is_cut_off(kind: str, imported: bool, tmp_path: Path) -> None:
    """What is built is the network in front of it, guessed and with a spec, as if the plugin were not there."""
    domain, count = PLUGINS[kind]
    source = tiny_model()
    source.graph.node.extend(
        [
            Node("Sigmoid", ["hm"], ["scores"], name="sigmoid"),
            Node(kind, ["wh", "reg", "scores"], [f"out{i}" for i in range(count)], name="nms", domain=domain),
        ]
    )
    del source.graph.output[:]
    source.graph.output.extend(
        helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, ["batch", None]) for i in range(count)
    )
    if imported and domain:
        source.opset_import.append(helper.make_opsetid(domain, 1))
    path = tmp_path / "m.onnx"
    path.write_bytes(source.SerializeToString())
    guessed = guess_spec(read_source(path)).require_spec()
    assert set(guessed.heads.tensors) == {"hm", "wh", "reg"}
    found = prepare(path, tiny_spec(), options("fp16"))
    plain = tiny_model()
    feeds = {"image": np.random.default_rng(0).random((1, 3, 64, 64), np.float32)}
    for name, wanted in run_model(plain, feeds).items():
        np.testing.assert_allclose(run_model(found.model, feeds)[name], wanted, atol=2e-2)
    with pytest.raises(ModelError, match=f"'nms' .*{kind}"):
        load_model(path)
