"""A small CenterNet with every kind of layer that int8 supports, random weights, and images for it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from centernet_trt.builder.calibration.images import CalibrationImages, images_from
from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes
from helpers import onnx_graphs as graphs

LAYERS = ("stem", "dw", "expand", "project", "down", "up", "neck", "hm_mid", "hm_last", "wh_last", "reg_last")


def network(seed: int = 0, opset: int = 19) -> ModelProto:
    """Named nodes, dynamic batch and size, heads `hm` (2 classes, logits), `wh` and `reg` on a grid of stride 4."""
    node = graphs.Node
    shapes = {
        "stem": (8, 3, 3, 3),
        "dw": (8, 1, 3, 3),
        "expand": (16, 8, 1, 1),
        "project": (8, 16, 1, 1),
        "down": (16, 8, 3, 3),
        "up": (16, 4, 4, 4),
        "neck": (8, 8, 3, 3),
        "hm_mid": (16, 8, 3, 3),
        "hm_last": (2, 16, 1, 1),
        "wh_last": (2, 8, 1, 1),
        "reg_last": (2, 8, 1, 1),
    }
    constants: dict[str, NDArray[Any]] = {}
    for row, (name, shape) in enumerate(shapes.items()):
        fan = int(np.prod(shape[1:])) if name != "up" else shape[0]
        constants[f"{name}.w"] = graphs.normal(*shape, seed=seed + row, scale=1.5 / np.sqrt(fan))
        count = 8 if name == "up" else shape[0]
        constants[f"{name}.b"] = graphs.normal(count, seed=seed + 50 + row, scale=0.1)
    constants["hm_last.b"] = np.full(2, -1.0, np.float32)
    constants["wh_last.b"] = np.full(2, 4.0, np.float32)

    def conv(name: str, source: str, target: str, op: str = "Conv", **attributes: Any) -> Any:
        return node(op, [source, f"{name}.w", f"{name}.b"], [target], name=name, **attributes)

    nodes = [
        conv("stem", "image", "c0", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["r0"]),
        conv("dw", "r0", "c1", pads=[1] * 4, strides=[2, 2], group=8),
        node("Relu", ["c1"], ["r1"]),
        conv("expand", "r1", "c2"),
        node("Relu", ["c2"], ["r2"]),
        conv("project", "r2", "c3"),
        node("Add", ["c3", "r1"], ["a3"], name="residual"),
        conv("down", "a3", "c4", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c4"], ["r4"]),
        conv("up", "r4", "c5", op="ConvTranspose", strides=[2, 2], pads=[1] * 4, group=2),
        node("Add", ["c5", "a3"], ["a5"]),
        node("Relu", ["a5"], ["r5"]),
        conv("neck", "r5", "c6", pads=[1] * 4),
        node("Relu", ["c6"], ["r6"]),
        conv("hm_mid", "r6", "c7", pads=[1] * 4),
        node("Relu", ["c7"], ["r7"]),
        conv("hm_last", "r7", "hm"),
        conv("wh_last", "r6", "wh"),
        conv("reg_last", "r6", "reg_raw"),
        node("Sigmoid", ["reg_raw"], ["reg"]),
    ]
    made = graphs.model(
        nodes,
        {name: ["batch", 2, None, None] for name in ("hm", "wh", "reg")},
        constants,
        inputs={"image": ["batch", 3, "height", "width"]},
        opset=opset,
    )
    made = g.name_nodes(made)
    refresh_shapes(made)
    return made


def pictures(count: int = 6, seed: int = 0, side: int = 60) -> CalibrationImages:
    """Blocks of random colours: edges and plains, so that peaks are not all alike."""
    return images_from(arrays(count, seed, side))


def arrays(count: int = 6, seed: int = 0, side: int = 60) -> list[NDArray[np.uint8]]:
    """The pictures (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    cells = side // 6
    return [
        np.kron(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), np.ones((cells, cells, 1), np.uint8))
        for _ in range(count)
    ]
