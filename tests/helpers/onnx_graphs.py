"""Small ONNX graphs for the builder's tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

Node = helper.make_node


def model(
    nodes: Sequence[NodeProto],
    outputs: dict[str, Any] | Sequence[str],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    inputs: dict[str, Any] | None = None,
    opset: int = 17,
    ir: int = 10,
    kind: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
    valid: bool = True,
) -> ModelProto:
    """Return a checked model; the input is `x` (batch, 3, 16, 16) unless said otherwise."""
    inputs = {"x": ["batch", 3, 16, 16]} if inputs is None else inputs
    shapes = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs, [None] * 4)
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    if valid:
        checker.check_model(made)
    return made


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def bn_constants(name: str, channels: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return the four parameters of a batch norm, far from those of one that does nothing."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}_s": rng.uniform(0.3, 2.0, channels).astype(np.float32),
        f"{name}_b": rng.normal(0, 1, channels).astype(np.float32),
        f"{name}_m": rng.normal(0, 1, channels).astype(np.float32),
        f"{name}_v": rng.uniform(0.01, 3.0, channels).astype(np.float32),
    }


def bn(source: str, target: str, name: str, **attributes: Any) -> NodeProto:
    inputs = [source, *(f"{name}_{what}" for what in "sbmv")]
    return Node("BatchNormalization", inputs, [target], name=name, **attributes)


def small_centernet(seed: int = 0) -> ModelProto:
    """Return a little CenterNet: conv+BN, clip, residual, grouped deconv+BN, resize, sigmoid heatmap, wh."""
    constants: dict[str, NDArray[Any]] = {
        "w0": normal(8, 3, 3, 3, seed=seed),
        "w1": normal(8, 8, 3, 3, seed=seed + 1, scale=0.15),
        "b1": normal(8, seed=seed + 2),
        "w2": normal(8, 4, 4, 4, seed=seed + 3, scale=0.15),
        "w3": normal(2, 8, 1, 1, seed=seed + 4),
        "b3": normal(2, seed=seed + 5),
        "w4": normal(4, 8, 1, 1, seed=seed + 6),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        **bn_constants("bn0", 8, seed),
        **bn_constants("bn2", 8, seed + 7),
    }
    nodes = [
        Node("Identity", ["x"], ["x1"]),
        Node("Conv", ["x1", "w0"], ["c0"], name="stem", pads=[1] * 4, strides=[2, 2]),
        bn("c0", "n0", "bn0"),
        Node("Clip", ["n0", "zero", "six"], ["r0"]),
        Node("Conv", ["r0", "w1", "b1"], ["c1"], name="body", pads=[1] * 4),
        Node("Add", ["c1", "r0"], ["a1"]),
        Node("Relu", ["a1"], ["r1"]),
        Node("ConvTranspose", ["r1", "w2"], ["d2"], strides=[2, 2], pads=[1] * 4, group=2),
        bn("d2", "n2", "bn2"),
        Node("Resize", ["n2", "", "scales"], ["u"], mode="nearest"),
        Node("Dropout", ["u"], ["v"]),
        Node("Conv", ["v", "w3", "b3"], ["logits"], name="hm_conv"),
        Node("Sigmoid", ["logits"], ["hm"]),
        Node("Conv", ["v", "w4"], ["wh_raw"]),
        Node("Identity", ["wh_raw"], ["wh"]),
    ]
    return model(nodes, {"hm": ["batch", 2, 32, 32], "wh": ["batch", 4, 32, 32]}, constants)


def op_types(made: ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]
