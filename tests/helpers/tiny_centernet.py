"""A CenterNet without training: its heads are plain functions of the image, so the right answer is known.

Input (N, 3, H, W), stride 4. The heatmap's class 0 is 4 times the mean of channel 0 over a cell's 4x4 pixels minus
2 (in logits), class 1 the same of channel 1. Box width and height, in cells, come from channel 2: 8 * mean + 1 and
4 * mean + 2. The offset is (0.25, 0.75) everywhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from centernet_trt.runtime.presets import spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec

STRIDE = 4


def tiny_model(size: tuple[int, int] | None = None, opset: int = 17) -> ModelProto:
    """The network; `size` (height, width) fixes its input, None leaves it dynamic."""

    def conv(name: str, rows: list[tuple[int, float, float]]) -> tuple[onnx.NodeProto, list[TensorProto]]:
        weight = np.zeros((len(rows), 3, STRIDE, STRIDE), dtype=np.float32)
        for out, (channel, gain, _) in enumerate(rows):
            weight[out, channel] = gain / STRIDE**2
        bias = np.array([row[2] for row in rows], dtype=np.float32)
        node = helper.make_node(
            "Conv", ["image", f"{name}.weight", f"{name}.bias"], [name], name=name, strides=[STRIDE, STRIDE]
        )
        return node, [
            numpy_helper.from_array(weight, f"{name}.weight"),
            numpy_helper.from_array(bias, f"{name}.bias"),
        ]

    parts = [
        conv("hm", [(0, 4.0, -2.0), (1, 4.0, -2.0)]),
        conv("wh", [(2, 8.0, 1.0), (2, 4.0, 2.0)]),
        conv("reg", [(0, 0.0, 0.25), (0, 0.0, 0.75)]),
    ]
    height, width = size or ("height", "width")
    graph = helper.make_graph(
        [node for node, _ in parts],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, height, width])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, None, None])
            for name in ("hm", "wh", "reg")
        ],
        [tensor for _, tensors in parts for tensor in tensors],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def tiny_spec(**over: Any) -> ModelSpec:
    """Its spec: keep_res, values 0..1, blue first, classes `blue` and `green`."""
    return spec_from_mapping(
        {
            "input": {
                "size": {"rule": "pad", "multiple": 32},
                "resize": {"policy": "keep_res"},
                "scale": 1 / 255,
            },
            "heads": {
                "heatmap": {"tensor": "hm"},
                "box": {"tensor": "wh"},
                "offset": {"tensor": "reg"},
            },
            "class_names": ["blue", "green"],
            **over,
        }
    )


def save_tiny_model(folder: Path, **arguments: Any) -> Path:
    """Write the network as `tiny.onnx` into a folder; its path."""
    path = folder / "tiny.onnx"
    onnx.save(tiny_model(**arguments), path)
    return path


def scene(height: int = 64, width: int = 96) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A dark image (H, W, 3), blue first, with one bright blue 4x4 cell at cell (5, 6) of the network's grid.

    The image is `height` x `width`; with pad 32 the network input is the next larger multiple, the image in its
    middle, so the cell is found by subtracting that shift.
    """
    image = np.zeros((height, width, 3), dtype=np.uint8)
    dx, dy = (((width | 31) + 1) // 2 - width // 2), (((height | 31) + 1) // 2 - height // 2)
    x, y = 5 * STRIDE - dx, 6 * STRIDE - dy
    image[max(y, 0) : y + STRIDE, max(x, 0) : x + STRIDE] = (255, 0, 128)
    return image
