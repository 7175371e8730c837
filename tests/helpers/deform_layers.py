"""Single deformable convolutions with random weights as ONNX graphs, and the distance of two outputs."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from helpers.onnx_graphs import Node, normal

Array = NDArray[Any]


def run(made: ModelProto, feeds: dict[str, Array]) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def graph(
    node: Any, feeds: dict[str, Array], constants: dict[str, Array], *, opset: int = 19, domain: str = ""
) -> ModelProto:
    """One deformable convolution with the feeds as inputs, every size but the channels dynamic."""
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, ["n", value.shape[1], f"h_{name}", f"w_{name}"]
        )
        for name, value in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    body = helper.make_graph([node], "test", inputs, outputs, tensors)
    return helper.make_model(body, opset_imports=opsets, ir_version=9)


def data(
    *,
    batch: int = 2,
    channels: int = 8,
    out: int = 6,
    size: tuple[int, int] = (9, 11),
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    offset_group: int = 1,
    mask: bool = True,
    bias: bool = True,
    scale: float = 2.0,
    seed: int = 0,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Feeds (x, offset, mask) and constants (w, b); offsets reach well beyond the border."""
    taps = kernel[0] * kernel[1]
    sides = [
        (size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
        for i in (0, 1)
    ]
    feeds: dict[str, Array] = {
        "x": normal(batch, channels, *size, seed=seed, scale=1),
        "offset": normal(batch, 2 * taps * offset_group, *sides, seed=seed + 1, scale=scale),
    }
    if mask:
        rng = np.random.default_rng(seed + 2)
        feeds["mask"] = rng.random((batch, taps * offset_group, *sides), np.float32)
    constants: dict[str, Array] = {"w": normal(out, channels // group, *kernel, seed=seed + 3)}
    if bias:
        constants["b"] = normal(out, seed=seed + 4, scale=1)
    return feeds, constants


def standard(feeds: dict[str, Array], constants: dict[str, Array], **attributes: Any) -> ModelProto:
    inputs = ["x", "w", "offset", "b" if "b" in constants else "", "mask" if "mask" in feeds else ""]
    while not inputs[-1]:
        inputs.pop()
    return graph(Node("DeformConv", inputs, ["y"], name="dcn", **attributes), feeds, constants)


def error(found: Array, wanted: Array) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
