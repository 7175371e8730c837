"""What is guessed of graphs as users bring them, and what is left to the user."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import variants
from helpers.tiny_centernet import tiny_model
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.graph.io import set_input_size
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.guess.spec import guess_spec
from centernet_trt.errors import SpecError

OFFICIAL = {
    "plain": tiny_model,
    "fixed size": lambda: tiny_model(size=(64, 96)),
    "identities": variants.with_identities,
    "concatenated": variants.concatenated,
    "channels last": variants.channels_last,
    "sigmoid baked in": variants.baked_sigmoid,
    "peaks baked in": variants.baked_peaks,
    "decode baked in": lambda: set_input_size(variants.baked_decode(), "image", 64, 64),
    "fp16": variants.half_exported,
}


@pytest.mark.parametrize("make", OFFICIAL.values(), ids=OFFICIAL.keys())
def test_the_official_heads_are_found_behind_everything(
    make: Callable[[], ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make(), path)
    guess = guess_spec(load_model(path))
    spec = guess.require_spec()
    assert guess.family == "official"
    assert guess.reasons
    # The heads are the convolutions' results, or copies of them.
    names = [name.removesuffix("_2") for name in spec.heads.tensors]
    assert names == ["hm", "wh", "reg"]
    assert spec.heads.heatmap.activation == "logits"
    assert spec.class_names == ("0", "1")
    assert spec.input.name == "image"


def test_a_fixed_size_becomes_the_size_rule() -> None:
    spec = guess_spec(tiny_model(size=(64, 96))).require_spec()
    assert spec.input.size.model_dump() == {"rule": "fixed", "width": 96, "height": 64}
    assert spec.input.resize.policy == "fix_res"
    assert guess_spec(tiny_model()).require_spec().input.resize.policy == "keep_res"


def test_mmdetection_names() -> None:
    names = {"hm": "center_heatmap", "wh": "wh", "reg": "offset"}
    guess = guess_spec(variants.renamed(names, "bbox_head."))
    assert guess.family == "mmdet"
    spec = guess.require_spec()
    assert spec.heads.tensors == ("center_heatmap", "wh", "offset")
    assert spec.input.channel_order == "rgb"


def test_numbered_outputs_are_told_by_their_weights() -> None:
    model = variants.renamed({"hm": "508", "wh": "511", "reg": "514"})
    for n, name in zip(model.graph.node, ("hm.2", "wh.2", "reg.2"), strict=True):
        for i, kind in ((1, "weight"), (2, "bias")):
            for tensor in model.graph.initializer:
                if tensor.name == n.input[i]:
                    tensor.name = f"{name}.{kind}"
            n.input[i] = f"{name}.{kind}"
    spec = guess_spec(model).require_spec()
    assert spec.heads.tensors == ("508", "511", "514")


def test_numbered_outputs_without_any_name_are_doubtful() -> None:
    guess = guess_spec(variants.renamed({"hm": "508", "wh": "511", "reg": "514"}, "onnx::Conv_"))
    assert guess.spec is None
    with pytest.raises(SpecError) as error:
        guess.require_spec()
    # The heatmap shows by its bias of -2; which of the two others is the size, nothing says.
    for words in ("508: 2 channels", "511 or 514", "[heads.box] tensor = ...", "--spec"):
        assert words in str(error.value)


def one_conv(heads: dict[str, int], biases: dict[str, float] | None = None) -> ModelProto:
    """A graph of one convolution a head, with these channels and biases."""
    nodes, tensors = [], []
    for name, channels in heads.items():
        weight = np.zeros((channels, 3, 4, 4), dtype=np.float32)
        bias = np.full(channels, (biases or {}).get(name, 0.0), dtype=np.float32)
        tensors += [numpy_helper.from_array(weight, f"{name}_w"), numpy_helper.from_array(bias, f"{name}_b")]
        nodes.append(
            helper.make_node("Conv", ["x", f"{name}_w", f"{name}_b"], [name], strides=[4, 4], name=name)
        )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info(name, 1, None) for name in heads],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_ltrb_heads() -> None:
    spec = guess_spec(one_conv({"cls": 80, "ltrb": 4})).require_spec()
    assert (spec.heads.box.encoding, spec.heads.box.units) == ("ltrb", "input")
    assert spec.class_names[0] == "person"
    assert spec.input.resize.policy == "letterbox"


def test_no_offset_head_means_half_a_cell() -> None:
    spec = guess_spec(one_conv({"hm": 3, "wh": 2})).require_spec()
    assert spec.heads.offset is None
    assert spec.cell_offset == 0.5


def test_two_class_heatmaps_are_told_by_their_bias() -> None:
    guess = guess_spec(one_conv({"a": 2, "wh": 2, "off": 2}, {"a": -2.19}))
    assert guess.roles["heatmap"].tensor == "a"
    assert "by a negative bias" in " ".join(guess.reasons)


def test_further_heads_are_kept_raw() -> None:
    spec = guess_spec(one_conv({"hm": 3, "wh": 2, "reg": 2, "dep": 1, "rot": 8})).require_spec()
    assert [(extra.name, extra.channels) for extra in spec.heads.extra] == [("dep", 1), ("rot", 8)]


def test_two_heatmaps_are_doubtful() -> None:
    guess = guess_spec(one_conv({"stack0_hm": 80, "stack1_hm": 80, "wh": 2, "reg": 2}))
    assert any("stack0_hm or stack1_hm" in doubt for doubt in guess.doubts)


def test_two_pairs_without_names_are_doubtful() -> None:
    guess = guess_spec(one_conv({"hm": 80, "p": 2, "q": 2}))
    assert any("which is the size and which the offset, p or q" in doubt for doubt in guess.doubts)


def test_a_classifier_is_no_centernet() -> None:
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(SpecError, match="no tensor of the graph could be a CenterNet head"):
        guess_spec(model)


@pytest.mark.shared
def test_the_real_models(shared: Path) -> None:
    coco = guess_spec(load_model(shared / "assets" / "mb3_centernet_coco" / "mb3_centernet.onnx"))
    assert coco.family == "ttf-ltrb"
    assert coco.require_spec().heads.tensors == ("hm", "wh_ltrb")
    face = guess_spec(load_model(shared / "assets" / "centerface" / "centerface.onnx"))
    assert face.family == "centerface"
    # 536 is the logit of 537.
    assert face.require_spec().heads.tensors == ("536", "538", "539", "540")
