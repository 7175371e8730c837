"""Constants too small for fp16: which nodes they keep fp32, and that the result is then right."""

from typing import Any

import numpy as np
import pytest
from helpers.onnx_graphs import Node, model, normal
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.passes.fp16 import to_fp16

Constants = dict[str, NDArray[Any]]


def f32(value: Any) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def l2(*bound: NodeProto, last: str = "n") -> list[NodeProto]:
    """x by the norm of its channels, which these nodes bound: from `n` to `last`."""
    return [
        Node("ReduceL2", ["x"], ["n"], name="norm", axes=[1], keepdims=1),
        *bound,
        Node("Div", ["x", last], ["y"], name="div"),
    ]


SMALL = {"eps": f32(1e-12)}
CASES: dict[str, tuple[list[NodeProto], Constants, set[str]]] = {
    "a clipped norm": (
        l2(Node("Clip", ["n", "eps"], ["b"], name="bound"), last="b"),
        SMALL,
        {"bound", "div"},
    ),
    "the larger of both": (
        l2(Node("Max", ["n", "eps"], ["b"], name="bound"), last="b"),
        SMALL,
        {"bound", "div"},
    ),
    "a sum": (l2(Node("Add", ["n", "eps"], ["b"], name="bound"), last="b"), SMALL, {"bound", "div"}),
    "expanded": (
        l2(
            Node("Clip", ["n", "eps"], ["b"], name="bound"),
            Node("Shape", ["x"], ["s"], name="shape"),
            Node("Expand", ["b", "s"], ["e"], name="expand"),
            last="e",
        ),
        SMALL,
        {"bound", "expand", "div"},
    ),
    "chosen by a comparison": (
        l2(
            Node("Less", ["n", "eps"], ["low"], name="less"),
            Node("Where", ["low", "eps", "n"], ["b"], name="where"),
            last="b",
        ),
        SMALL,
        {"less", "where", "div"},
    ),
    "a root of a variance": (
        [
            Node("Mul", ["x", "x"], ["q"], name="square"),
            Node("ReduceMean", ["q"], ["v"], name="mean", axes=[1], keepdims=1),
            Node("Add", ["v", "eps"], ["b"], name="bound"),
            Node("Sqrt", ["b"], ["d"], name="root"),
            Node("Div", ["x", "d"], ["y"], name="div"),
        ],
        SMALL,
        {"bound", "root", "div"},
    ),
    "a reciprocal, then a product": (
        l2(
            Node("Add", ["n", "eps"], ["b"], name="bound"),
            Node("Reciprocal", ["b"], ["r"], name="reciprocal"),
            Node("Mul", ["x", "r"], ["p"], name="product"),
        )[:-1]
        + [Node("Relu", ["p"], ["y"], name="after")],
        SMALL,
        {"bound", "reciprocal", "product"},
    ),
    "a power": (
        [
            Node("Mul", ["x", "x"], ["q"], name="square"),
            Node("ReduceSum", ["q", "axes"], ["v"], name="sum", keepdims=1),
            Node("Add", ["v", "eps"], ["b"], name="bound"),
            Node("Pow", ["b", "minus"], ["r"], name="power"),
            Node("Mul", ["x", "r"], ["y"], name="product"),
        ],
        {**SMALL, "minus": f32(-0.5), "axes": np.array([1])},
        {"bound", "power", "product"},
    ),
    "a logarithm": (
        [
            Node("Abs", ["x"], ["a"], name="abs"),
            Node("Add", ["a", "eps"], ["b"], name="bound"),
            Node("Log", ["b"], ["l"], name="log"),
            Node("Neg", ["l"], ["y"], name="after"),
        ],
        SMALL,
        {"bound", "log"},
    ),
    "a scale and its inverse": (
        [
            Node("Mul", ["x", "down"], ["a"], name="down"),
            Node("Div", ["a", "down"], ["y"], name="up"),
        ],
        {"down": f32(3e-8)},
        {"down", "up"},
    ),
    "one divisor of many": (
        [Node("Div", ["x", "d"], ["y"], name="div")],
        {"d": f32([1, 1e-9, 2]).reshape(1, 3, 1, 1)},
        {"div"},
    ),
    "weights": (
        [Node("Conv", ["x", "w"], ["a"], name="tiny"), Node("Mul", ["a", "k"], ["y"], name="back")],
        {"w": normal(3, 3, 1, 1, scale=1e-7), "k": f32(1e7)},
        {"tiny", "back"},
    ),
    "a normalisation's epsilon": (
        [Node("InstanceNormalization", ["x", "one", "zero"], ["y"], name="in", epsilon=1e-10)],
        {"one": f32([1, 1, 1]), "zero": f32([0, 0, 0])},
        {"in"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_small_constants_keep_their_nodes_and_the_readers(name: str) -> None:
    nodes, constants, kept = CASES[name]
    source = model(nodes, ["y"], constants)
    result = to_fp16(source)
    assert result.kept.keys() == kept
    assert all("fp16" in reason for reason in result.kept.values())
    assert_right(source, result.model)


def assert_right(source: ModelProto, typed: ModelProto) -> None:
    """On noise, on zeros, and on both side by side."""
    noise = np.random.default_rng(0).uniform(0, 1, (1, 3, 16, 16)).astype(np.float16).astype(np.float32)
    half = noise.copy()
    half[..., :8] = 0
    for x in (noise, np.zeros_like(noise), half):
        expected = run_model(source, {"x": x})["y"]
        found = run_model(typed, {"x": x})["y"].astype(np.float32)
        scale = max(float(np.nanmax(np.abs(expected))), 1e-9)
        within = np.abs(expected) < 65504
        np.testing.assert_allclose(found[within], expected[within], rtol=5e-3, atol=5e-3 * scale)
        assert not np.isnan(found).any()


@pytest.mark.parametrize(
    "constants",
    [
        pytest.param({"w": normal(3, 3, 1, 1), "b": f32([1e-9, 0, 0.5])}, id="a bias that is nearly 0"),
        pytest.param({"w": normal(3, 3, 1, 1), "b": f32([1e-9] * 3)}, id="no bias to speak of"),
        pytest.param(
            {"w": normal(3, 3, 1, 1) * f32([1, 1e-12, 1]).reshape(3, 1, 1, 1), "b": f32([0, 0, 0])},
            id="a channel that training switched off",
        ),
    ],
)
def test_values_that_count_for_nothing_keep_nothing(constants: Constants) -> None:
    assert to_fp16(model([Node("Conv", ["x", "w", "b"], ["y"])], ["y"], constants)).kept == {}


def test_usual_epsilons_cost_nothing() -> None:
    """1e-5 loses a thousandth of its value; LayerNormalization computes in float32 by definition."""
    nodes = [
        Node("Add", ["x", "eps"], ["a"]),
        Node("Clip", ["a", "low", "high"], ["b"]),
        Node("Transpose", ["b"], ["t"], perm=[0, 2, 3, 1]),
        Node("LayerNormalization", ["t", "one"], ["n"], axis=-1, epsilon=1e-6),
        Node("Transpose", ["n"], ["y"], perm=[0, 3, 1, 2]),
    ]
    constants = {"eps": f32(1e-5), "low": f32(1e-4), "high": f32(1 - 1e-4), "one": f32([1, 1, 1])}
    assert to_fp16(model(nodes, ["y"], constants)).kept == {}
