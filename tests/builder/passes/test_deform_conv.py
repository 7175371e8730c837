from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.deform_layers import data, error, graph, run, standard
from helpers.input_profiles import input_profile
from helpers.int8_network import network, pictures
from helpers.onnx_graphs import Node, normal, op_types
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper, shape_inference

from centernet_trt.builder.export.export import export_model
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.int8.layers import layers_in_int8
from centernet_trt.builder.int8.quantise import Int8Options
from centernet_trt.builder.options import BuildOptions
from centernet_trt.builder.passes.deform_conv import FOREIGN_OPS, has_deform_conv, standardise_deform_conv
from centernet_trt.builder.passes.deform_conv_lowering import column_bytes, lower_deform_conv
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.prepare import prepare
from centernet_trt.builder.profiles import ProfileRequest
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.errors import ModelError
from centernet_trt.runtime.presets import spec_from_mapping
from centernet_trt.runtime.trt.flavours import load_flavour

Array = NDArray[Any]
DOMAIN = "some.exporter"

KEYS = ("strides", "pads", "dilations", "group", "offset_group")


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([(3, 3), (1, 1), (3, 5), (2, 2)]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    group=st.sampled_from([1, 2]),
    offset_group=st.sampled_from([1, 2, 4]),
    mask=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_lowering_equals_deform_conv(**case: Any) -> None:
    feeds, constants = data(size=(13, 12), **case)
    source = standard(feeds, constants, kernel_shape=case["kernel"], **{key: case[key] for key in KEYS})
    lowered = lower_deform_conv(source)
    checker.check_model(lowered, full_check=True)
    assert "DeformConv" not in op_types(lowered)
    assert error(run(lowered, feeds), run(source, feeds)) < 3e-6


def test_the_attributes_may_be_left_out() -> None:
    feeds, constants = data(pads=(0, 0, 0, 0))
    source = standard(feeds, constants)
    assert error(run(lower_deform_conv(source), feeds), run(source, feeds)) < 2e-6


def test_places_on_the_border_and_far_outside() -> None:
    # Offsets in quarters hit -1, 0, H - 1 and H exactly: where the border rules of samplers differ.
    feeds, constants = data(size=(5, 5), batch=1)
    rng = np.random.default_rng(3)
    feeds["offset"] = (rng.integers(-28, 29, feeds["offset"].shape) / 4).astype(np.float32)
    feeds["offset"].reshape(-1)[::50] = 1e9
    feeds["offset"].reshape(-1)[1::50] = -1e30
    source = standard(feeds, constants, pads=[1] * 4)
    lowered = lower_deform_conv(source)
    found = run(lowered, feeds)
    assert np.isfinite(found).all()
    assert error(found, run(source, feeds)) < 2e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1)])
def test_tiny_maps(size: tuple[int, int]) -> None:
    feeds, constants = data(size=size, scale=0.4)
    source = standard(feeds, constants, pads=[1] * 4)
    assert error(run(lower_deform_conv(source), feeds), run(source, feeds)) < 2e-6


def test_one_lowered_graph_serves_every_size_and_batch() -> None:
    feeds, constants = data()
    source = standard(feeds, constants, pads=[1] * 4)
    lowered = lower_deform_conv(source)
    for batch, size in ((1, (4, 4)), (3, (16, 5)), (2, (33, 64))):
        feeds, _ = data(batch=batch, size=size)
        assert error(run(lowered, feeds), run(source, feeds)) < 4e-6


def test_at_the_size_of_the_networks() -> None:
    feeds, constants = data(batch=1, channels=64, out=64, size=(128, 128))
    source = standard(feeds, constants, pads=[1] * 4)
    assert error(run(lower_deform_conv(source), feeds), run(source, feeds)) < 1e-5


def test_no_offsets_and_a_full_mask_is_a_convolution() -> None:
    feeds, constants = data()
    feeds["offset"][:] = 0
    feeds["mask"][:] = 1
    lowered = lower_deform_conv(standard(feeds, constants, pads=[1] * 4))
    plain = graph(Node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4), {"x": feeds["x"]}, constants)
    assert error(run(lowered, feeds), run(plain, {"x": feeds["x"]})) < 2e-6


def test_an_fp16_node_samples_in_fp32() -> None:
    feeds, constants = data()
    half = {name: value.astype(np.float16) for name, value in constants.items()}
    source = standard(feeds, half, pads=[1] * 4)
    for value in (*source.graph.input, *source.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    lowered = lower_deform_conv(source)
    checker.check_model(lowered, full_check=True)
    sampler = next(node for node in lowered.graph.node if node.op_type == "GridSample")
    inferred = shape_inference.infer_shapes(lowered, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert [types[name] for name in (*sampler.input, *sampler.output)] == [TensorProto.FLOAT] * 3
    exact = run(standard(feeds, constants, pads=[1] * 4), feeds)
    found = run(lowered, {name: value.astype(np.float16) for name, value in feeds.items()})
    assert error(found.astype(np.float32), exact) < 5e-3


def test_column_bytes_is_the_size_of_the_samples() -> None:
    feeds, constants = data()
    lowered = lower_deform_conv(standard(feeds, constants, pads=[1] * 4))
    columns = next(node.output[0] for node in lowered.graph.node if node.output[0].endswith("/columns"))
    lowered.graph.output[0].name = columns
    del lowered.graph.node[-1]
    assert run(lowered, feeds).nbytes == column_bytes(8, (3, 3), 9, 11, batch=2)
    assert column_bytes(64, (3, 3), 128, 128) == 37_748_736


def test_graphs_without_are_returned_as_they_are() -> None:
    plain = graph(Node("Relu", ["x"], ["y"]), {"x": normal(1, 2, 3, 3)}, {})
    assert not has_deform_conv(plain)
    assert standardise_deform_conv(plain) is plain
    assert lower_deform_conv(plain) is plain


def test_computed_weights_are_refused() -> None:
    feeds, constants = data()
    feeds["w"] = constants.pop("w")
    with pytest.raises(ModelError, match="expected weights that are a constant"):
        lower_deform_conv(standard(feeds, constants))


# Spellings -------------------------------------------------------------------------------------------------------

COMMON = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}
SPELLINGS = [
    # CaoWGG/TensorRT-CenterNet, FairMOT
    ("DCNv2", "x offset mask w b", {**COMMON, "deformable_group": 2, "groups": 1}),
    ("DCNv2", "x offset mask w b", {**COMMON, "deformable_groups": 2}),
    # mmcv, mmdeploy
    ("MMCVModulatedDeformConv2d", "x offset mask w b", {**COMMON, "groups": 1, "deform_groups": 2}),
    ("MMCVModulatedDeformConv2d", "x offset mask w", {**COMMON, "groups": 2, "deform_groups": 2}),
    ("MMCVDeformConv2d", "x offset w", {**COMMON, "groups": 1, "deform_groups": 2, "im2col_step": 32}),
    ("MMCVDeformConv2d", "x offset w", {**COMMON, "padding": [1, 1, 2, 2], "deform_groups": 2}),
    # torchvision's order of inputs, and the standard's names outside its own domain
    ("deform_conv2d", "x w offset mask b", {**COMMON, "offset_group": 2}),
    (
        "DeformConv",
        "x w offset b mask",
        {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2], "offset_group": 2},
    ),
    ("DCN", "x offset mask w b", {**COMMON, "deformable_groups": 2}),
    ("_DCNv2", "x offset mask w b", {**COMMON, "deformable_groups": 2}),
]


@pytest.mark.parametrize("domain", [DOMAIN, "mmcv", "mmdeploy"])
@pytest.mark.parametrize(("kind", "names", "attributes"), SPELLINGS)
def test_every_spelling_becomes_the_standard_operator(
    kind: str, names: str, attributes: dict[str, Any], domain: str
) -> None:
    inputs = names.split()
    group = attributes.get("groups", 1)
    geometry: dict[str, Any] = {
        "strides": (2, 1), "pads": (1, 2, 1, 2), "dilations": (1, 2), "group": group, "offset_group": 2,
    }  # fmt: skip
    feeds, constants = data(mask="mask" in inputs, bias="b" in inputs, **geometry)
    wanted = run(standard(feeds, constants, **geometry), feeds)
    node = Node(kind, inputs, ["y"], name="dcn", domain=domain, **attributes)
    for opset in (11, 19):
        source = graph(node, feeds, constants, opset=opset, domain=domain)
        assert has_deform_conv(source)
        made = standardise_deform_conv(source)
        checker.check_model(made, full_check=True)
        assert {opset.domain for opset in made.opset_import} == {""}
        assert [(n.op_type, n.name) for n in made.graph.node if n.op_type == "DeformConv"] == [
            ("DeformConv", "dcn")
        ]
        np.testing.assert_array_equal(run(made, feeds), wanted)
        assert source.graph.node[0].op_type == kind  # the source is left alone


STATED: dict[str, Any] = {"strides": (2, 1), "pads": (1, 2, 1, 2), "dilations": (1, 2), "offset_group": 2}
ATTRIBUTE_SPELLINGS: list[dict[str, Any]] = [
    {
        "stride_h": 2, "stride_w": 1, "pad_h": 1, "pad_w": 2, "dilation_h": 1, "dilation_w": 2,
        "deformable_groups": 2,
    },
    {
        "stride_h": "2", "stride_w": "1", "padding_h": "1", "padding_w": "2", "dilation_h": "1", "dilation_w": "2",
        "deformable_groups": "2", "name": "DCNv2",
    },
    {"stride": "[2, 1]", "padding": "(1, 2)", "dilation": "1,2", "n_offset_grps": 2, "n_weight_grps": 1},
    {"strides": [2, 1], "pads_begin": [1, 2], "pads_end": [1, 2], "dilations": [1, 2], "deformable_group": 2},
    {"stride": [2, 1], "pad": [1, 2], "dilate": [1, 2], "num_deformable_group": 2, "num_filter": 6, "no_bias": 0},
    {"strideH": 2, "strideW": 1, "padH": 1, "padW": 2, "dilationH": 1, "dilationW": 2, "deformableGroups": 2},
    {
        "stride": [2.0, 1.0], "paddings": [1, 2], "dilations": [1, 2], "deformable_groups": 2, "im2col_step": 64,
        "kernel_size": [3, 3], "out_channels": 6, "in_channels": 8,
    },
    {"info": '{"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "deformable_group": 2}', "name": "DCNv2"},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["DCNv2", "DCNv2Plugin", "Plugin", "ModulatedDeformConv2d"])
@pytest.mark.parametrize("attributes", ATTRIBUTE_SPELLINGS)
def test_every_spelling_of_the_attributes(kind: str, attributes: dict[str, Any]) -> None:
    feeds, constants = data(**STATED)
    wanted = run(standard(feeds, constants, **STATED), feeds)
    named = {**attributes, "name": "DCNv2"} if kind == "Plugin" else attributes
    node = Node(kind, ["x", "offset", "mask", "w", "b"], ["y"], name="dcn", domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in named.items())
    made = standardise_deform_conv(graph(node, feeds, constants, domain=DOMAIN))
    np.testing.assert_array_equal(run(made, feeds), wanted)


@pytest.mark.parametrize("masked", [True, False])
def test_the_numbers_that_torchvision_gives_as_inputs(masked: bool) -> None:
    feeds, constants = data(**STATED)
    truth = feeds if masked else {name: value for name, value in feeds.items() if name != "mask"}
    wanted = run(standard(truth, constants, **STATED), truth)
    scalars = dict(
        zip(["s", "t", "p", "q", "d", "e", "g", "o", "m"], [2, 1, 1, 2, 1, 2, 1, 2, masked], strict=True)
    )
    given = {name: np.array(value) for name, value in scalars.items()}
    inputs = ["x", "w", "offset", "mask", "b", *scalars]
    node = Node("deform_conv2d", inputs, ["y"], name="dcn", domain="torchvision")
    made = standardise_deform_conv(graph(node, feeds, constants | given, domain="torchvision"))
    np.testing.assert_array_equal(run(made, feeds), wanted)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"stride": 1, "padding": 1, "activation": "relu"}, "the attribute activation = relu is unknown"),
        ({"stride": 1, "padding": 1, "dilation": 1, "dilation_rate": 2}, "dilation_rate = 2 is unknown"),
        ({"stride": 1, "pads": [1, 1, 1, 1], "auto_pad": "SAME_UPPER"}, "expected auto_pad = NOTSET"),
        ({"stride": 1, "padding": 1, "layout": "NHWC"}, "expected layout = NCHW, got NHWC"),
        ({"stride": 1, "padding": 1, "pad_h": 2, "pad_w": 2}, "contradict each other: pad"),
        ({"stride": 1, "pad_h": 1}, "expected pad of both axes"),
        ({"stride": "one", "padding": 1}, "expected whole numbers as stride, got one"),
        ({"stride": 1.5, "padding": 1}, "expected whole numbers as stride, got 1.5"),
        ({"stride": 1, "padding": 1, "kernel_size": 5}, r"the kernel says \[5\]"),
        ({"stride": 1, "padding": 1, "out_channel": 7}, "output channels says"),
        ({"stride": 1, "padding": 1, "no_bias": 1}, "there is no bias"),
        ({"info": "stride=1"}, "as a JSON object"),
    ],
)
def test_attributes_that_cannot_be_understood_are_refused(attributes: dict[str, Any], said: str) -> None:
    feeds, constants = data()
    node = Node("DCNv2", ["x", "offset", "mask", "w", "b"], ["y"], name="dcn", domain=DOMAIN, **attributes)
    with pytest.raises(ModelError, match=said) as caught:
        standardise_deform_conv(graph(node, feeds, constants, domain=DOMAIN))
    assert "deformable convolution 'dcn'" in caught.value.message
    assert caught.value.hint


def test_numbers_as_inputs_of_an_unknown_operator_are_refused() -> None:
    feeds, constants = data()
    given = {name: np.array(1) for name in ("s", "p", "d")}
    node = Node("DCNv2", ["x", "offset", "mask", "w", "b", *given], ["y"], name="dcn", domain=DOMAIN)
    with pytest.raises(ModelError, match=r"got the numbers \[1, 1, 1\] as inputs"):
        standardise_deform_conv(graph(node, feeds, constants | given, domain=DOMAIN))


@pytest.mark.parametrize(
    ("channels", "attributes", "said"),
    [
        (
            27,
            {"stride": 2, "padding": 1},
            "expected 18 channels of offsets .* got 27: offsets and mask in one",
        ),
        (18, {"stride": 2, "padding": 1, "deformable_groups": 2}, "expected 36 channels of offsets for 2"),
        (
            18,
            {"stride": 2, "padding": 1, "dilation": 2},
            "give a map of another size than that of its offsets",
        ),
        (18, {"stride": 2}, "give a map of another size"),
        (18, {"stride": 1, "padding": 1}, "give a map of another size"),
    ],
)
def test_attributes_that_do_not_fit_the_offsets(channels: int, attributes: dict[str, Any], said: str) -> None:
    constants: dict[str, Array] = {"ow": normal(channels, 4, 3, 3), "w": normal(6, 4, 3, 3, seed=2)}
    predict = Node("Conv", ["x", "ow"], ["offset"], pads=[1] * 4, strides=[2, 2])
    made = graph(predict, {"x": normal(1, 4, 8, 8)}, constants, domain=DOMAIN)
    made.graph.node.append(
        Node("DCNv2", ["x", "offset", "w"], ["y"], name="dcn", domain=DOMAIN, **attributes)
    )
    with pytest.raises(ModelError, match=said):
        standardise_deform_conv(made)


def test_single_numbers_stand_for_both_axes() -> None:
    feeds, constants = data(strides=(2, 2), pads=(1, 1, 1, 1))
    wanted = run(standard(feeds, constants, strides=[2, 2], pads=[1] * 4), feeds)
    node = Node(
        "DCNv2", ["x", "offset", "mask", "w", "b"], ["y"], domain=DOMAIN, stride=2, padding=[1], dilation=1
    )
    made = standardise_deform_conv(graph(node, feeds, constants, domain=DOMAIN))
    np.testing.assert_array_equal(run(made, feeds), wanted)


def lost_attributes(kind: str, kernel: int = 3) -> tuple[ModelProto, ModelProto]:
    """What a fall-through export leaves, behind the convolution that predicts offsets and mask; and the truth."""
    constants: dict[str, Array] = {
        "ow": normal(27, 4, kernel, kernel, scale=0.3),
        "ob": normal(27, seed=1),
        "w": normal(6, 4, 3, 3, seed=2),
        "b": normal(6, seed=3),
        "sizes": np.array([9, 9, 9], np.int64),
    }
    pads = [kernel // 2] * 4
    nodes = [
        Node("Conv", ["x", "ow", "ob"], ["raw"], kernel_shape=[kernel] * 2, pads=pads, strides=[2, 2]),
        Node("Split", ["raw", "sizes"], ["dy", "dx", "logits"], axis=1),
        Node("Concat", ["dy", "dx"], ["offset"], axis=1),
        Node("Sigmoid", ["logits"], ["mask"]),
    ]
    lost = Node(kind, ["x", "offset", "mask", "w", "b"], ["y"], name="dcn", domain=DOMAIN)
    kept = Node("DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], pads=[1] * 4, strides=[2, 2])
    feeds = {"x": normal(1, 4, 8, 8)}
    made = [graph(nodes[0], feeds, constants, domain=DOMAIN) for _ in range(2)]
    for model, last in zip(made, (lost, kept), strict=True):
        model.graph.node.extend([*nodes[1:], last])
    return made[0], made[1]


@pytest.mark.parametrize("kind", ["_DCNv2", "DCN"])
def test_lost_attributes_are_found_in_the_offset_convolution(kind: str) -> None:
    lost, kept = lost_attributes(kind)
    feeds = {"x": normal(1, 4, 8, 8, scale=1)}
    np.testing.assert_array_equal(run(standardise_deform_conv(lost), feeds), run(kept, feeds))


def test_lost_attributes_that_nothing_tells_are_an_error() -> None:
    lost, _ = lost_attributes("_DCNv2", kernel=1)
    with pytest.raises(ModelError, match="has lost its stride") as caught:
        standardise_deform_conv(lost)
    assert "stride_i" in caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "attributes", "said"),
    [
        ("x offset mask b b", {"stride": 1}, "0 weights"),
        ("x w", {"stride": 1}, "1 computed inputs"),
        ("x offset mask w b", {"stride": 0}, "positive numbers"),
        ("x offset mask w b", {"padding": [1, 2, 3]}, "one, two or four"),
        ("x offset mask w b", {"stride": 1, "groups": 4}, "expected weights that divide into 4 groups"),
    ],
)
def test_nodes_that_make_no_sense(inputs: str, attributes: dict[str, Any], said: str) -> None:
    feeds, constants = data()
    node = Node("DCNv2", inputs.split(), ["y"], name="dcn", domain=DOMAIN, **attributes)
    with pytest.raises(ModelError, match=said):
        standardise_deform_conv(graph(node, feeds, constants, domain=DOMAIN))


def test_the_list_of_foreign_operators() -> None:
    assert {"DCN", "DCNv2", "_DCNv2", "MMCVModulatedDeformConv2d", "DeformConv"} <= FOREIGN_OPS


# TensorRT for RTX ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("offset_group", [1, 2])
def test_rtx_builds_the_lowered_graph_with_dynamic_sizes(precision: str, offset_group: int) -> None:
    pytest.importorskip("tensorrt_rtx")
    channels = 18 * offset_group
    constants: dict[str, Array] = {
        "stem": normal(4, 3, 1, 1, seed=3),
        "ow": normal(27 * offset_group, 4, 3, 3),
        "w": normal(6, 4, 3, 3, seed=2),
        "sizes": np.array([channels, channels // 2], np.int64),
    }
    nodes = [
        Node("Conv", ["x", "stem"], ["x4"], name="stem"),  # images have three channels
        Node("Conv", ["x4", "ow"], ["raw"], name="predict", pads=[1] * 4),
        Node("Split", ["raw", "sizes"], ["offset", "logits"], name="split", axis=1),
        Node("Sigmoid", ["logits"], ["mask"], name="sigmoid"),
        Node(
            "DeformConv",
            ["x4", "w", "offset", "", "mask"],
            ["y"],
            name="dcn",
            pads=[1] * 4,
            offset_group=offset_group,
        ),
    ]
    source = graph(nodes[0], {"x": normal(1, 3, 8, 8)}, constants)
    source.graph.node.extend(nodes[1:])
    lowered = lower_deform_conv(source)
    if precision == "fp16":
        typed = to_fp16(lowered)
        lowered = typed.model
        assert "dcn/samples" in typed.kept
        assert {"dcn/grid", "dcn/place_x", "dcn/cells_y"} <= typed.kept.keys()
    plan = build_plan(lowered, "x", [input_profile("1:2:4", "8:32:64")], flavour=load_flavour("rtx"))
    assert len(plan.data) > 1000
    assert plan.log == []


def test_a_public_export_is_loaded_and_made_standard(tmp_path: Path) -> None:
    # DCNv2 in the ONNX domain, as the forks' symbolics write it: no checker would take it.
    source = export_model("resdcn_18", None, classes=3)
    wanted = run(source, {"input": normal(1, 3, 64, 64, scale=1)})
    foreign = onnx.ModelProto.FromString(source.SerializeToString())
    for node in foreign.graph.node:
        if node.op_type == "DeformConv":
            x, weight, offset, bias, mask = node.input
            node.op_type = "DCNv2"
            del node.attribute[:]
            del node.input[:]
            node.input.extend([x, offset, mask, weight, bias])
            values = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "deformable_groups": 1}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
    path = tmp_path / "public.onnx"
    path.write_bytes(foreign.SerializeToString())
    made = standardise_deform_conv(load_model(path, foreign_ops=FOREIGN_OPS))
    checker.check_model(made, full_check=True)
    np.testing.assert_array_equal(run(made, {"input": normal(1, 3, 64, 64, scale=1)}), wanted)


def test_int8_around_a_lowered_deformable_convolution(tmp_path: Path) -> None:
    """Calibration asks for tensors that exist only since the lowering, so the graph must state their types."""
    source = network()
    rng = np.random.default_rng(0)
    (neck,) = (node for node in source.graph.node if node.name == "neck")
    for name, channels in (("offset", 18), ("mask", 9)):
        weights = (0.1 * rng.normal(size=(channels, 8, 3, 3))).astype(np.float32)
        source.graph.initializer.append(numpy_helper.from_array(weights, f"{name}.w"))
        node = Node("Conv", ["r5", f"{name}.w"], [name], name=name, pads=[1] * 4)
        source.graph.node.insert(list(source.graph.node).index(neck), node)
    neck.op_type = "DeformConv"
    neck.input[:] = ["r5", "neck.w", "offset", "neck.b", "mask"]
    spec = spec_from_mapping(
        {
            "input": {
                "size": {"rule": "pad", "multiple": 32},
                "resize": {"policy": "keep_res"},
                "scale": 1 / 255,
            },
            "heads": {"heatmap": {"tensor": "hm"}, "box": {"tensor": "wh"}, "offset": {"tensor": "reg"}},
        }
    )
    onnx.save(source, tmp_path / "net.onnx")
    profile = ProfileRequest.parse("batch=1,height=64:64:128,width=64:64:128")
    int8 = Int8Options(calibration=pictures(4), everything=True)
    options = BuildOptions("int8", profiles=(profile,), calibration=tmp_path, int8=int8)
    prepared = prepare(tmp_path / "net.onnx", spec, options, pictures(4), lower_deform_conv=True)
    assert "DeformConv" not in op_types(prepared.model)
    assert {"neck/conv", "offset", "mask"} <= layers_in_int8(prepared.model)
