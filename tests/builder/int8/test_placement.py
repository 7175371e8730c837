"""Which layers may be int8, where Q/DQ go, and that TensorRT takes them."""

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from helpers.input_profiles import input_profile
from helpers.int8_network import LAYERS, network
from onnx import ModelProto, TensorProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.graph.shapes import check, refresh_shapes
from centernet_trt.builder.int8.layers import Rules, layers_in_int8, share_in_int8, survey
from centernet_trt.builder.int8.placement import (
    SMALLEST_SCALE,
    activation_scale,
    place,
    raise_opset,
    residual_skips,
    weight_scales,
)
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.runtime.trt.flavours import load_flavour

ALL = Rules(last_convs=True, smallest_share=0.0)
X = np.random.default_rng(0).uniform(0, 1, (2, 3, 64, 64)).astype(np.float32)


def thresholds(model: ModelProto) -> dict[str, float]:
    """The largest magnitude of every tensor on one input."""
    probe = g.copy_model(model)
    names = [n for node in model.graph.node for n in node.output]
    del probe.graph.output[:]
    probe.graph.output.extend(graphs.helper.make_tensor_value_info(n, 1, None) for n in names)
    found = run_model(probe, {"image": X})
    return {name: float(np.abs(value).max()) for name, value in found.items()} | {"image": 1.0}


def placed(layers: tuple[str, ...] = LAYERS) -> ModelProto:
    model = network()
    return place(model, thresholds(model), layers)


def test_the_survey_counts_every_layer_and_says_why_some_stay() -> None:
    model = network()
    found = survey(model, 64, 64)
    assert [layer.name for layer in found.layers] == list(LAYERS)
    assert found.multiply_adds == count_complexity(model, 64, 64).multiply_adds
    assert {layer.name: layer.kind for layer in found.layers}["up"] == "transposed"
    assert {layer.name: layer.kind for layer in found.layers}["dw"] == "depthwise"
    last = {"hm_last": "hm", "wh_last": "wh", "reg_last": "reg"}
    assert found.excluded == {layer: f"last convolution of head {head!r}" for layer, head in last.items()}
    assert [unit.tensor for unit in found.units] == ["image", "r0", "r1", "r2", "a3", "r4", "r5", "r6"]


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        (Rules(smallest_share=0.0), {"hm_last", "wh_last", "reg_last"}),
        (Rules(last_convs=True, smallest_share=0.02), {"hm_last", "wh_last", "reg_last"}),
        (ALL, set()),
    ],
)
def test_rules_exclude_layers(rules: Rules, gone: set[str]) -> None:
    assert set(survey(network(), 64, 64, rules).excluded) == gone


def test_readers_of_one_tensor_share_one_pair() -> None:
    made = placed()
    ops = graphs.op_types(made)
    assert ops.count("QuantizeLinear") == 9  # image r0 r1 r2 a3 r4 r5 r6 r7; r6 has three readers
    assert ops.count("DequantizeLinear") == 9 + len(LAYERS)
    # The readers that stay fp16 read the tensor itself.
    some = placed(("hm_mid",))
    readers = {node.name: node.input[0] for node in some.graph.node if node.name in ("hm_mid", "wh_last")}
    assert readers == {"hm_mid": "r6/dequantised", "wh_last": "r6"}


def test_nothing_stands_between_a_convolution_and_its_relu() -> None:
    made = placed()
    uses = g.consumers(made.graph)
    for node in made.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            assert all(user.op_type not in ("QuantizeLinear",) for user in uses.get(node.output[0], []))


def test_scales_are_positive_and_zero_points_zero_and_no_bias_is_int() -> None:
    made = placed()
    constants = g.initializers(made.graph)
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert (g.as_array(constants[node.input[1]]) > 0).all()
            if len(node.input) > 2:
                assert (g.as_array(constants[node.input[2]]) == 0).all()
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert TensorProto.INT32 not in kinds
    assert TensorProto.INT8 in kinds


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_within_half_a_step_of_their_own_channel(layer: str) -> None:
    model, made = network(), placed((layer,))
    before = g.as_array(g.initializers(model.graph)[f"{layer}.w"])
    (node,) = [n for n in made.graph.node if n.op_type == "DequantizeLinear" and f"{layer}.w" in n.name]
    constants = g.initializers(made.graph)
    axis = g.attribute(node, "axis")
    assert axis == (1 if layer == "up" else 0)
    steps = g.as_array(constants[node.input[0]])
    scales = g.as_array(constants[node.input[1]])
    assert scales.shape == (before.shape[axis],)
    shape = [-1 if i == axis else 1 for i in range(4)]
    assert (np.abs(steps * scales.reshape(shape) - before) <= 0.502 * scales.reshape(shape)).all()
    assert np.abs(steps).max() == 127
    moved = np.moveaxis(np.abs(steps.astype(int)), axis, 0).reshape(before.shape[axis], -1)
    assert (moved.max(axis=1) == 127).all()  # every channel uses its range


def test_int8_stays_near_fp32() -> None:
    before, after = run_model(network(), {"image": X}), run_model(placed(), {"image": X})
    for name, value in before.items():
        error = np.sqrt(np.mean((after[name] - value) ** 2)) / np.sqrt(np.mean(value**2))
        assert 1e-4 < error < 0.1, name


def test_a_corrected_bias_keeps_the_mean() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1, (32, 16, 1, 1)).astype(np.float32)
    model = g.name_nodes(
        graphs.model(
            [graphs.Node("Conv", ["x", "w"], ["y"], name="c"), graphs.Node("Relu", ["y"], ["out"])],
            ["out"],
            {"w": weight},
            inputs={"x": ["n", 16, 8, 8]},
            opset=19,
        )
    )
    refresh_shapes(model)
    x = (rng.normal(0, 0.3, (4, 16, 8, 8)) + rng.uniform(2, 4, (1, 16, 1, 1))).astype(np.float32)
    means = {"x": x.mean(axis=(0, 2, 3)).tolist()}
    errors = []
    for given in (None, means):
        made = place(model, {"x": 6.0}, ["c"], means=given)
        probe = [model, made]
        for one in probe:
            del one.graph.output[:]
            one.graph.output.append(graphs.helper.make_tensor_value_info("y", 1, None))
        a, b = (run_model(one, {"x": x})["y"].mean(axis=(0, 2, 3)) for one in probe)
        errors.append(np.abs(a - b).mean())
    assert errors[1] < 0.3 * errors[0]


def test_scales_are_fp16_numbers_where_fp16_holds_them() -> None:
    assert np.float16(activation_scale(1.2345)) == activation_scale(1.2345)
    assert activation_scale(0.0) == SMALLEST_SCALE
    assert activation_scale(1e7) == np.float32(1e7 / 127)  # too large for fp16
    weight = graphs.normal(4, 3, 1, 1)
    assert (weight_scales(weight, 0).astype(np.float16) == weight_scales(weight, 0)).all()
    weight[2] *= 1e-4  # one tiny channel: fp16 would be subnormal there, so all stay exact
    np.testing.assert_allclose(weight_scales(weight, 0), np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    weight[2] = 0
    assert (weight_scales(weight, 0) > 0).all()


def test_the_fp16_graph_has_no_cast_at_fp16_scales_and_one_at_tiny_ones() -> None:
    model = network()
    typed = to_fp16(place(model, thresholds(model), LAYERS), scales="fp16")
    assert typed.casts == 0
    assert layers_in_int8(typed.model) == set(LAYERS)
    small = g.copy_model(model)
    for tensor in small.graph.initializer:
        if tensor.name == "expand.w":
            weights = g.as_array(tensor).copy()
            weights[3] *= 1e-4
            tensor.CopyFrom(graphs.numpy_helper.from_array(weights, tensor.name))
    mixed = to_fp16(place(small, thresholds(small), LAYERS), scales="fp16")
    assert mixed.casts == 1
    assert layers_in_int8(mixed.model) == set(LAYERS)


def test_the_share_is_counted_in_the_graph() -> None:
    model = network()
    found = survey(model, 64, 64, ALL)
    chosen = ("down", "hm_mid")
    expected = (
        sum(layer.multiply_adds for layer in found.layers if layer.name in chosen) / found.multiply_adds
    )
    assert share_in_int8(placed(chosen), 64, 64) == pytest.approx(expected)
    assert share_in_int8(model, 64, 64) == 0.0
    assert share_in_int8(placed(), 64, 64) == 1.0


def test_only_the_skip_of_an_addition_is_quantised() -> None:
    model = network()
    assert residual_skips(model, {"project"}) == [("residual", "r1")]
    assert residual_skips(model, {"expand"}) == []
    made = place(model, thresholds(model), ["project"], skips=[("residual", "r1")])
    (add,) = [node for node in made.graph.node if node.name == "residual"]
    assert list(add.input) == ["c3", "r1/dequantised"]


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_has_a_scale_for_each_output(trans: int) -> None:
    weight = graphs.normal(5, 12) if trans else graphs.normal(12, 5)
    nodes = [
        graphs.Node("Flatten", ["x"], ["f"]),
        graphs.Node("Gemm", ["f", "w"], ["out"], name="fc", transB=trans),
    ]
    model = g.name_nodes(
        graphs.model(nodes, {"out": ["n", 5]}, {"w": weight}, inputs={"x": ["n", 3, 2, 2]}, opset=19)
    )
    refresh_shapes(model)
    made = place(model, {"f": 1.0}, ["fc"], means={"f": [0.1] * 12})
    scale = next(t for t in made.graph.initializer if t.name == "w/scale")
    assert list(scale.dims) == [5]
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(run_model(made, {"x": x})["out"], run_model(model, {"x": x})["out"], atol=0.05)


def test_older_graphs_are_raised_and_keep_their_tensor_names() -> None:
    old = network(opset=13)
    raised = raise_opset(old)
    assert g.main_opset(raised) == 19
    assert [n.name for n in raised.graph.node] == [n.name for n in old.graph.node]
    assert [list(n.output) for n in raised.graph.node] == [list(n.output) for n in old.graph.node]
    # One that is not raised works too, at the price of casts.
    typed = to_fp16(place(old, thresholds(old), LAYERS), scales="fp16")
    assert typed.casts > 0


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_tensorrt_builds_a_plan_of_every_kind_of_layer(precision: str) -> None:
    made = placed()
    made = to_fp16(made, scales="fp16").model if precision == "fp16" else made
    check(made, full=True)
    plan = build_plan(made, "image", [input_profile("1:1:2", "64:64:128")], flavour=load_flavour("rtx"))
    assert len(plan.data) > 1000


def test_quantised_weights_count_as_parameters() -> None:
    model = network()
    made = place(model, thresholds(model), LAYERS)
    before, after = (count_complexity(graph, 64, 64) for graph in (model, made))
    assert after.parameters >= before.parameters > 1000
    # Correcting a bias makes one where there was none.
    added = {node.name for node in made.graph.node if len(node.input) == 3 and node.op_type == "Conv"}
    grown = {node.name for node in model.graph.node if node.name in added and len(node.input) < 3}
    assert (after.parameters == before.parameters) == (not grown)
    assert after.multiply_adds == before.multiply_adds
