"""Agreement of embeddings and landmarks, and a search that keeps its hands off the layers that they need."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import onnx_graphs as graphs
from helpers.int8_network import network, pictures
from helpers.tiny_centernet import tiny_spec
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.int8.detection_loss import LossEvaluator, further_heads
from centernet_trt.builder.int8.quantise import Int8Options, make_int8
from centernet_trt.builder.int8.search import Budget
from centernet_trt.builder.prepare import Silence
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.spec import ModelSpec

HEADS = {
    "heatmap": {"tensor": "hm"},
    "box": {"tensor": "wh"},
    "offset": {"tensor": "reg"},
    "extra": [
        {"kind": "raw", "name": "embedding", "tensor": "id", "channels": 2},
        {"kind": "points", "name": "landmarks", "tensor": "kp", "points": 1},
    ],
}


def spec(**heads: Any) -> ModelSpec:
    return tiny_spec(threshold=0.3, heads={**HEADS, **heads})


def found(embedding: list[float], landmarks: list[float], score: float = 0.5) -> Detections:
    extra = {"embedding": np.array([embedding], np.float32), "landmarks": np.array([landmarks], np.float32)}
    box = np.array([[0, 0, 10, 40]], np.float32)
    return Detections(box, np.array([score], np.float32), np.zeros(1, np.int32), extra)


@pytest.mark.parametrize("score", [0.5, 0.01])
def test_errors_are_relative_to_the_values_and_to_the_box(score: float) -> None:
    right = [found([3, 4], [5, 5], score)]
    assert further_heads(right, right, spec()) == {"embedding": 1.0, "landmarks": 1.0}
    # 1 of a vector of length 5; 4 pixels of a box of 10x40, whose mean side is 20.
    off = [found([3, 5], [5, 9], score)]
    assert further_heads(right, off, spec()) == pytest.approx({"embedding": 0.8, "landmarks": 0.8})
    assert further_heads(right, right, tiny_spec()) == {}
    assert np.isnan(further_heads(right, [found([3, np.nan], [5, 5], score)], spec())["embedding"])


def with_embedding() -> ModelProto:
    """The network with a branch that int8 damages and boxes do not see: a channel 200 times the others, taken off again."""
    made = network()
    constants = {
        "mid.w": graphs.normal(8, 8, 3, 3, seed=90, scale=0.2),
        "gain": np.array([300.0] + [1.0] * 7, np.float32).reshape(1, 8, 1, 1),
        "deep.w": graphs.normal(8, 8, 3, 3, seed=91, scale=0.2),
        "id.w": graphs.normal(2, 8, 1, 1, seed=92),
    }
    constants["deep.w"][:, 0] = 0.0
    for name, value in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    made.graph.node.extend(
        [
            helper.make_node("Conv", ["r6", "mid.w"], ["m0"], name="id_mid", pads=[1] * 4),
            helper.make_node("Sigmoid", ["m0"], ["m1"], name="id_sigmoid"),
            helper.make_node("Mul", ["m1", "gain"], ["m2"], name="id_gain"),
            helper.make_node("Conv", ["m2", "deep.w"], ["m3"], name="id_deep", pads=[1] * 4),
            helper.make_node("Conv", ["m3", "id.w"], ["id"], name="id_last"),
        ]
    )
    made.graph.output.append(helper.make_tensor_value_info("id", 1, ["batch", 2, None, None]))
    made = g.name_nodes(made)
    refresh_shapes(made)
    return made


def test_the_search_leaves_the_layers_of_an_embedding_alone() -> None:
    model, images = with_embedding(), pictures()
    wanted = spec(extra=HEADS["extra"][:1])
    options = Int8Options(calibration=images, budget=Budget(max_drop=1.0, min_agreement=0.5))
    rules = replace(options.rules, equalise=False)
    result = make_int8(model, wanted, (64, 64), replace(options, rules=rules), Silence())
    assert result.search.layers
    assert result.search.loss.heads["embedding"] >= 0.5
    # Measured on the whole graph, not taken from the search.
    again = LossEvaluator(model, wanted, images.images).evaluate(result.model)
    assert again.heads["embedding"] == pytest.approx(result.search.loss.heads["embedding"])
    everything = make_int8(model, wanted, (64, 64), replace(options, rules=rules, everything=True), Silence())
    assert "id_deep" in everything.search.layers
    assert everything.search.loss.heads["embedding"] < 0.5
    assert "id_deep" not in result.search.layers
    kept = replace(rules, keep_fp32=("stem",))
    assert (
        "stem"
        not in make_int8(model, wanted, (64, 64), replace(options, rules=kept), Silence()).search.layers
    )
