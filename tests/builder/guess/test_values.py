"""Heads behind whatever follows their convolution: the guessed tensor and activation give the graph's own values."""

from collections.abc import Callable

import numpy as np
import pytest
from helpers.head_graphs import SIDE, HeadGraph, f32, ints
from onnx import ModelProto, helper

from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.guess.spec import guess_spec
from centernet_trt.runtime.host.decode import to_score


def heads_of(model: ModelProto) -> None:
    """Check that the guess's tensors give the values of the outputs hm, wh and reg."""
    guess = guess_spec(model)
    heads = guess.require_spec().heads
    assert heads.offset is not None
    tensors = [heads.heatmap.tensor, heads.box.tensor, heads.offset.tensor]
    wide = ModelProto()
    wide.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    wide.graph.output.extend(
        helper.make_tensor_value_info(name, 1, None) for name in tensors if name not in known
    )
    image = np.random.default_rng(0).normal(0, 3, (1, 3, SIDE, SIDE)).astype(np.float32)
    found = run_model(wide, {"image": image}, mode="fast")
    score = to_score(found[tensors[0]], heads.heatmap.activation)
    np.testing.assert_allclose(score, found["hm"], atol=2e-6)
    for name, tensor in zip(("wh", "reg"), tensors[1:], strict=True):
        np.testing.assert_array_equal(found[tensor], found[name])


def sigmoid_of(graph: HeadGraph, source: str) -> None:
    graph.add("Sigmoid", [source], "hm")


def reciprocal(graph: HeadGraph, source: str) -> None:
    graph.add("Neg", [source], "neg")
    graph.add("Exp", ["neg"], "exp")
    graph.add("Add", ["exp", f32(1)], "plus")
    graph.add("Reciprocal", ["plus"], "hm")


def divided(graph: HeadGraph, source: str) -> None:
    graph.add("Mul", [source, f32(-1)], "neg")
    graph.add("Exp", ["neg"], "exp")
    graph.add("Add", [f32(1), "exp"], "plus")
    graph.add("Div", [f32(1), "plus"], "hm")


def power(graph: HeadGraph, source: str) -> None:
    graph.add("Neg", [source], "neg")
    graph.add("Softplus", ["neg"], "soft")
    graph.add("Neg", ["soft"], "log")
    graph.add("Exp", ["log"], "hm")


def tangent(graph: HeadGraph, source: str) -> None:
    graph.add("Mul", [source, f32(0.5)], "scaled")
    graph.add("Tanh", ["scaled"], "tanh")
    graph.add("Mul", ["tanh", f32(0.5)], "halved")
    graph.add("Add", ["halved", f32(0.5)], "hm")


def pair_softmax(graph: HeadGraph, source: str) -> None:
    """Sigmoid as the second of two softmax terms."""
    graph.add("Mul", [source, f32(0)], "zero")
    graph.add("Exp", ["zero"], "e0")
    graph.add("Neg", [source], "neg")
    graph.add("Exp", ["neg"], "e1")
    graph.add("Add", ["e0", "e1"], "sum")
    graph.add("Div", ["e0", "sum"], "hm")


def clamped(graph: HeadGraph, source: str) -> None:
    graph.add("Sigmoid", [source], "prob")
    graph.add("Clip", ["prob", f32(1e-4), f32(1 - 1e-4)], "hm")


@pytest.mark.parametrize("spell", [sigmoid_of, reciprocal, divided, power, tangent, pair_softmax, clamped])
def test_sigmoids_are_recognised_by_their_values(spell: Callable[[HeadGraph, str], None]) -> None:
    graph = HeadGraph().sizes()
    spell(graph, graph.head("logit", 3, output=False))
    graph.output("hm")
    model = graph.model()
    assert guess_spec(model).require_spec().heads.heatmap.model_dump() == {
        "tensor": "logit",
        "activation": "logits",
    }
    if spell is not clamped:
        heads_of(model)


def hard(graph: HeadGraph, source: str) -> None:
    graph.add("HardSigmoid", [source], "hm")


def squared(graph: HeadGraph, source: str) -> None:
    graph.add("Sigmoid", [source], "prob")
    graph.add("Mul", ["prob", "prob"], "hm")


def halved(graph: HeadGraph, source: str) -> None:
    graph.add("Sigmoid", [source], "prob")
    graph.add("Mul", ["prob", f32(0.5)], "hm")


def steeper(graph: HeadGraph, source: str) -> None:
    graph.add("Mul", [source, f32(2)], "double")
    graph.add("Sigmoid", ["double"], "hm")


def complement(graph: HeadGraph, source: str) -> None:
    graph.add("Sigmoid", [source], "prob")
    graph.add("Sub", [f32(1), "prob"], "hm")


def softmax(graph: HeadGraph, source: str) -> None:
    graph.add("Softmax", [source], "hm", axis=1)


def exponential(graph: HeadGraph, source: str) -> None:
    graph.add("Exp", [source], "hm")


def log_sigmoid(graph: HeadGraph, source: str) -> None:
    graph.add("Neg", [source], "neg")
    graph.add("Softplus", ["neg"], "soft")
    graph.add("Neg", ["soft"], "hm")


@pytest.mark.parametrize("spell", [hard, squared, halved, complement, softmax, exponential, log_sigmoid])
def test_other_bounded_values_are_asked_about(spell: Callable[[HeadGraph, str], None]) -> None:
    graph = HeadGraph().sizes()
    spell(graph, graph.head("logit", 3, output=False))
    graph.output("hm")
    guess = guess_spec(graph.model())
    assert guess.spec is None
    assert any('[heads.heatmap] tensor = "hm", activation = "probability"' in doubt for doubt in guess.doubts)


def test_a_temperature_belongs_to_the_logits() -> None:
    graph = HeadGraph().sizes()
    steeper(graph, graph.head("logit", 3, output=False))
    graph.output("hm")
    heads_of(graph.model())
    assert guess_spec(graph.model()).require_spec().heads.heatmap.tensor == "double"


def upsampled(graph: HeadGraph) -> None:
    for name, channels in (("hm_conv", 3), ("wh_conv", 2), ("reg_conv", 2)):
        graph.head(name, channels, output=False)
    for source, name in (("hm_conv", "hm_up"), ("wh_conv", "wh"), ("reg_conv", "reg")):
        graph.add("Resize", [source, "", f32([1, 1, 2, 2])], name, mode="linear")
    graph.add("Sigmoid", ["hm_up"], "hm")


def upsampled_behind_the_sigmoid(graph: HeadGraph) -> None:
    graph.head("logit", 3, output=False)
    graph.add("Sigmoid", ["logit"], "prob")
    graph.add("Resize", ["prob", "", f32([1, 1, 2, 2])], "hm", mode="nearest")
    for name in ("wh", "reg"):
        graph.head(f"{name}_conv", 2, output=False)
        graph.add("Resize", [f"{name}_conv", "", f32([1, 1, 2, 2])], name, mode="nearest")


def shuffled(graph: HeadGraph) -> None:
    for name, channels in (("hm", 3), ("wh", 2), ("reg", 2)):
        graph.head(f"{name}_conv", 4 * channels, output=False)
        target = f"{name}_map" if name == "hm" else name
        graph.add("DepthToSpace", [f"{name}_conv"], target, blocksize=2, mode="CRD")
    graph.add("Sigmoid", ["hm_map"], "hm")


def shuffled_by_hand(graph: HeadGraph) -> None:
    cells = SIDE // 4
    for name, channels in (("hm", 3), ("wh", 2), ("reg", 2)):
        graph.head(f"{name}_conv", 4 * channels, output=False)
        graph.add("Reshape", [f"{name}_conv", ints(-1, channels, 2, 2, cells, cells)], f"{name}_six")
        graph.add("Transpose", [f"{name}_six"], f"{name}_turned", perm=[0, 1, 4, 2, 5, 3])
        target = f"{name}_map" if name == "hm" else name
        graph.add("Reshape", [f"{name}_turned", ints(-1, channels, 2 * cells, 2 * cells)], target)
    graph.add("Sigmoid", ["hm_map"], "hm")


def sums(graph: HeadGraph) -> None:
    for name, channels in (("hm", 3), ("wh", 2), ("reg", 2)):
        graph.head(f"{name}_a", channels, output=False)
        graph.head(f"{name}_b", channels, output=False)
        graph.add("Add", [f"{name}_a", f"{name}_b"], f"{name}_map" if name == "hm" else name)
    graph.add("Sigmoid", ["hm_map"], "hm")


def products(graph: HeadGraph) -> None:
    graph.head("logit", 3, output=False)
    sigmoid_of(graph, "logit")
    for name in ("wh", "reg"):
        graph.head(f"{name}_a", 2, output=False)
        graph.head(f"{name}_b", 1, output=False)
        graph.add("Exp", [f"{name}_b"], f"{name}_gain")
        graph.add("Mul", [f"{name}_a", f"{name}_gain"], name)


def joined(graph: HeadGraph) -> None:
    """Width and height by a convolution each."""
    graph.head("logit", 3, output=False)
    sigmoid_of(graph, "logit")
    for name, parts in (("wh", ("width", "height")), ("reg", ("reg_x", "reg_y"))):
        for part in parts:
            graph.head(part, 1, output=False)
        graph.add("Concat", list(parts), name, axis=1)


def skipped(graph: HeadGraph) -> None:
    """Convolution and SiLU, a residual of the features behind the box."""
    graph.head("logit", 3, output=False)
    sigmoid_of(graph, "logit")
    for name in ("wh", "reg"):
        graph.head(f"{name}_conv", 2, output=False)
        graph.add("Sigmoid", [f"{name}_conv"], f"{name}_gate")
        graph.add("Mul", [f"{name}_conv", f"{name}_gate"], name)


def split(graph: HeadGraph) -> None:
    """One convolution makes all heads, and is split."""
    graph.head("all", 7, output=False)
    graph.nodes.append(helper.make_node("Split", ["all", "counts"], ["logit", "wh", "reg"], axis=1))
    graph.constants["counts"] = ints(3, 2, 2)
    sigmoid_of(graph, "logit")


def sliced(graph: HeadGraph) -> None:
    """The heatmap without the background class, the sizes without their spare channels."""
    graph.head("hm_all", 4, output=False)
    graph.add("Sigmoid", ["hm_all"], "hm_prob")
    graph.add("Slice", ["hm_prob", ints(1), ints(4), ints(1)], "hm")
    graph.head("sizes", 4, output=False)
    graph.add("Slice", ["sizes", ints(0), ints(2), ints(1)], "wh")
    graph.add("Slice", ["sizes", ints(2), ints(4), ints(1)], "reg")


def linear(graph: HeadGraph) -> None:
    """Linear layers on channels last, as transformers have them."""
    graph.head("unused", 1, output=False)
    graph.add("Transpose", [graph.features], "last", perm=[0, 2, 3, 1])
    for name, channels in (("logit", 3), ("wh", 2), ("reg", 2)):
        graph.add("MatMul", ["last", f32(graph.rng.normal(0, 0.5, (8, channels)))], f"{name}_linear")
        graph.add("Add", [f"{name}_linear", f32(graph.rng.normal(0, 0.5, channels))], f"{name}_plus")
        graph.add("Transpose", [f"{name}_plus"], name, perm=[0, 3, 1, 2])
    sigmoid_of(graph, "logit")


def linear_on_rows(graph: HeadGraph) -> None:
    """Linear layers on a sequence of cells, unfolded to maps behind them."""
    cells = SIDE // 4
    graph.head("unused", 1, output=False)
    graph.add("Reshape", [graph.features, ints(0, 8, -1)], "folded")
    graph.add("Transpose", ["folded"], "rows", perm=[0, 2, 1])
    for name, channels in (("logit", 3), ("wh", 2), ("reg", 2)):
        graph.add("MatMul", ["rows", f32(graph.rng.normal(0, 0.5, (8, channels)))], f"{name}_linear")
        graph.add("Transpose", [f"{name}_linear"], f"{name}_turned", perm=[0, 2, 1])
        graph.add("Reshape", [f"{name}_turned", ints(-1, channels, cells, cells)], name)
    sigmoid_of(graph, "logit")


def cascaded(graph: HeadGraph) -> None:
    """The heatmap is an input of the box's convolution."""
    graph.head("logit", 3, output=False)
    sigmoid_of(graph, "logit")
    graph.add("Concat", [graph.features, "hm"], "both", axis=1)
    graph.conv("both", "wh", (11, 2))
    graph.head("reg", 2)


@pytest.mark.parametrize(
    "make",
    [
        upsampled,
        upsampled_behind_the_sigmoid,
        shuffled,
        shuffled_by_hand,
        sums,
        products,
        joined,
        skipped,
        cascaded,
        split,
        sliced,
        linear,
        linear_on_rows,
    ],
)
def test_heads_behind_what_follows_their_convolution(make: Callable[[HeadGraph], None]) -> None:
    graph = HeadGraph()
    make(graph)
    graph.output("hm", "wh", "reg")
    model = graph.model()
    heads_of(model)
    stride = guess_spec(model).require_spec().stride
    assert stride == (
        2 if make in (upsampled, upsampled_behind_the_sigmoid, shuffled, shuffled_by_hand) else 4
    )


def test_a_product_of_two_heatmaps_is_asked_about() -> None:
    graph = HeadGraph().sizes()
    for name in ("cls", "centerness"):
        graph.head(name, 1, output=False)
        graph.add("Sigmoid", [name], f"{name}_prob")
    graph.add("Mul", ["cls_prob", "centerness_prob"], "hm")
    graph.output("hm")
    guess = guess_spec(graph.model())
    assert guess.roles["heatmap"].tensor == "hm"
    assert any(doubt.startswith("is hm a probability?") for doubt in guess.doubts)


def test_an_embedding_is_taken_behind_its_normalisation() -> None:
    graph = HeadGraph().sizes()
    graph.head("hm", 1)
    graph.head("raw", 16, output=False)
    graph.add("ReduceL2", ["raw"], "norm", axes=[1], keepdims=1)
    graph.add("Clip", ["norm", f32(1e-12)], "bounded")
    graph.add("Shape", ["raw"], "shape")
    graph.add("Expand", ["bounded", "shape"], "wide")
    graph.add("Div", ["raw", "wide"], "id")
    graph.output("id")
    spec = guess_spec(graph.model()).require_spec()
    assert [(one.name, one.tensor, one.channels) for one in spec.heads.extra] == [("id", "id", 16)]


def test_values_changed_behind_a_transposition_are_asked_about() -> None:
    graph = HeadGraph()
    for name in ("hm", "wh", "reg"):
        graph.head(name, 2, output=False)
        graph.add("Transpose", [name], f"{name}_nhwc", perm=[0, 2, 3, 1])
        graph.add("Add", [f"{name}_nhwc", f32([1, 2])], f"{name}_out")
        graph.output(f"{name}_out")
    guess = guess_spec(graph.model())
    assert any("Add behind its transposition" in doubt for doubt in guess.doubts)


@pytest.mark.parametrize("op", ["Mul", "Div", "Add"])
def test_arithmetic_between_a_head_and_a_decode_is_asked_about(op: str) -> None:
    graph = HeadGraph()
    for name in ("hm", "wh", "reg"):
        graph.head(name, 2, output=False)
        source = graph.add(op, [name, f32(2)], f"{name}_changed") if name == "wh" else name
        graph.add("Reshape", [source, ints(0, 2, -1)], f"{name}_flat")
        graph.add("Gather", [f"{name}_flat", ints(0, 5, 9)], f"{name}_picked", axis=2)
        graph.output(f"{name}_picked", rank=3)
    guess = guess_spec(graph.model())
    assert any(doubt.startswith("where does the box end?") for doubt in guess.doubts)


def test_sizes_that_inference_does_not_know_come_from_a_run() -> None:
    """Features sampled on a grid that the graph makes of computed shapes, a decode behind the heads."""
    graph = HeadGraph()
    graph.conv("image", "stem", (3, 8), 4)
    graph.add("Shape", ["stem"], "shape")
    graph.add("Gather", ["shape", ints(0)], "batch")
    graph.add("Concat", ["batch", ints(1, 1, 1)], "tiles", axis=0)
    ys, xs = np.meshgrid(np.linspace(-0.9, 0.9, 16), np.linspace(-0.9, 0.9, 16), indexing="ij")
    graph.add("Tile", [f32(np.stack([xs, ys], axis=-1)[None]), "tiles"], "grid")
    graph.add("NonZero", ["grid"], "places")
    graph.add("Shape", ["places"], "count")
    graph.add("Gather", ["count", ints(1)], "many")
    graph.add("Div", ["many", ints(2 * 16)], "rows")
    graph.add("Div", ["rows", "batch"], "height")
    graph.add("Concat", ["batch", "height", ints(16, 2)], "wanted", axis=0)
    graph.add("Reshape", ["grid", "wanted"], "reshaped")
    graph.features = graph.add("GridSample", ["stem", "reshaped"], "sampled")
    for name, channels in (("hm", 3), ("wh", 2), ("reg", 2)):
        graph.head(name, channels, output=False)
    graph.add("Sigmoid", ["hm"], "prob")
    graph.add("MaxPool", ["prob"], "pooled", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    graph.add("Equal", ["prob", "pooled"], "peak")
    graph.add("Cast", ["peak"], "mask", to=1)
    graph.add("Mul", ["prob", "mask"], "peaks")
    for source, name in (("peaks", "scores"), ("wh", "sizes"), ("reg", "offsets")):
        graph.add("Reshape", [source, ints(0, -1)], name)
        graph.output(name, rank=2)
    spec = guess_spec(graph.model()).require_spec()
    assert spec.heads.tensors == ("hm", "wh", "reg")
    assert spec.heads.heatmap.activation == "logits"
