"""Graphs with a convolution per head and whatever a test puts behind it: HeadGraph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIDE = 64  # pixels of a fixed input


class HeadGraph:
    """Features of stride 4 (3 channels to 8), and heads on them; the weights are random numbers."""

    def __init__(self, *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.outputs: dict[str, list[int | str | None]] = {}
        self.input = "image"
        self.features = ""

    def add(self, op: str, inputs: list[Any], output: str, **attributes: Any) -> str:
        """A node; an input that is no name becomes a constant."""
        names = []
        for place, value in enumerate(inputs):
            named = isinstance(value, str)
            names.append(value if named else f"{output}_{place}")
            if not named:
                self.constants[names[-1]] = np.asarray(value)
        self.nodes.append(helper.make_node(op, names, [output], name=f"{op}/{output}", **attributes))
        return output

    def conv(
        self, source: str, output: str, channels: tuple[int, int], stride: int = 1, name: str = ""
    ) -> str:
        kernel = 4 if stride == 4 else 1
        weight = self.rng.normal(0, 0.5, (channels[1], channels[0], kernel, kernel)).astype(np.float32)
        prefix = f"{name or output}.2"
        self.constants |= {
            f"{prefix}.weight": weight,
            f"{prefix}.bias": self.rng.normal(0, 0.5, channels[1]).astype(np.float32),
        }
        inputs = [source, f"{prefix}.weight", f"{prefix}.bias"]
        self.nodes.append(
            helper.make_node("Conv", inputs, [output], name=f"Conv/{output}", strides=[stride] * 2)
        )
        return output

    def head(self, name: str, channels: int, *, output: bool = True) -> str:
        """A convolution on the features, whose result has that name."""
        if not self.features:
            self.features = self.conv(self.input, "features", (3, 8), 4)
            self.features = self.add("Relu", ["features"], "features_relu")
        self.conv(self.features, name, (8, channels))
        if output:
            self.output(name)
        return name

    def output(self, *names: str, rank: int = 4) -> None:
        self.outputs |= {name: [None] * rank for name in names}

    def sizes(self) -> "HeadGraph":
        """With heads `wh` and `reg`."""
        self.head("wh", 2)
        self.head("reg", 2)
        return self

    def model(
        self, shape: tuple[Any, ...] = ("n", 3, SIDE, SIDE), opset: int = 17, **others: Any
    ) -> ModelProto:
        values = {"image": shape, **others}
        graph = helper.make_graph(
            self.nodes,
            "heads",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in values.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
                for name, dims in self.outputs.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def f32(value: Any) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
