"""A small CenterNet with one deformable convolution before its heads, as the various exporters spell it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

STRIDES = {"DCNv2": {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "deformable_groups": 1}}
STRIDES["DeformConv2d"] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "deform_groups": 1}
SPELLINGS = tuple(STRIDES)
"""Operator types that exporters put into the ONNX domain, though ONNX does not define them."""


def deform_centernet(spelling: str) -> ModelProto:
    """Input `image`, stride 4, heads hm, wh and reg of two channels; the deformable convolution is of `spelling`."""
    random = np.random.default_rng(0)
    tensors: list[TensorProto] = []

    def weights(name: str, out: int, channels: int, side: int, bias: float = 0.0) -> list[str]:
        values = 0.2 * random.standard_normal((out, channels, side, side))
        tensors.append(numpy_helper.from_array(values.astype(np.float32), f"{name}.weight"))
        tensors.append(numpy_helper.from_array(np.full(out, bias, np.float32), f"{name}.bias"))
        return [f"{name}.weight", f"{name}.bias"]

    def conv(
        name: str, source: str, out: int, channels: int, side: int, bias: float = 0.0, **attributes: Any
    ) -> onnx.NodeProto:
        inputs = [source, *weights(name, out, channels, side, bias)]
        return helper.make_node("Conv", inputs, [name], name=name, **attributes)

    nodes = [
        conv("stem", "image", 8, 3, 4, strides=[4, 4]),
        conv("offset", "stem", 18, 8, 3, pads=[1] * 4),
        conv("logits", "stem", 9, 8, 3, pads=[1] * 4),
        helper.make_node("Sigmoid", ["logits"], ["mask"], name="mask"),
        helper.make_node(
            spelling,
            ["stem", "offset", "mask", *weights("dcn", 8, 8, 3)],
            ["dcn"],
            name="dcn",
            **STRIDES[spelling],
        ),
        # Boxes of some size, for boxes without area agree with nothing.
        *(conv(name, "dcn", 2, 8, 1, bias) for name, bias in (("hm", 0.0), ("wh", 20.0), ("reg", 0.5))),
    ]
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "deformable",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, None, None])
            for name in ("hm", "wh", "reg")
        ],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_deform_centernet(folder: Path, spelling: str) -> Path:
    """Write it into a folder; its path. No checker would take it."""
    path = folder / "deformable.onnx"
    path.write_bytes(deform_centernet(spelling).SerializeToString())
    return path
