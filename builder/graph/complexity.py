"""Count the parameters and multiply-adds of a convolutional ONNX graph: Complexity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from centernet_trt.builder.graph.io import set_input_size
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.errors import ModelError

__all__ = ["Complexity", "count_complexity"]

_CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv")
_SAME_WEIGHT = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity")


@dataclass(frozen=True)
class Complexity:
    """Parameters and arithmetic of a network for one image of a given size.

    Attributes:
        parameters: elements of all constants that convolutions and batch norms learn: weights, biases, scales. Stored
            statistics are left out, as PyTorch does.
        multiply_adds: of all convolutions: one for each weight and each place that it is applied to.
        output_convention: the same with transposed convolutions counted at their *output* size, which is stride squared
            times too many: the figure of tools that treat them like convolutions.
        mmcv_flops: the count of mmcv's tool: `multiply_adds`, plus one for each element of a bias's output, a ReLU's
            output and a pooling's input, plus two for each element of a batch norm. Comparable with published figures
            only for a graph whose batch norms are not folded.
    """

    parameters: int
    multiply_adds: int
    output_convention: int
    mmcv_flops: int


def count_complexity(model: ModelProto, height: int, width: int) -> Complexity:
    """Count the operations of a network for one image.

    DeformConv counts as a convolution; its bilinear sampling (four more per sample) is left out, as in published tables.

    Args:
        model: a graph with one input of shape (N, C, H, W).
        height: rows of the input in pixels.
        width: columns, likewise.

    Raises:
        ModelError: the graph has not exactly one input, or a tensor of unknown size.
    """
    if len(model.graph.input) != 1:
        raise ModelError(f"expected a graph with one input, got {len(model.graph.input)}")
    name = model.graph.input[0].name
    sized = set_input_size(model, name, height, width)
    sized.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    refresh_shapes(sized)
    shapes = _shapes(sized)
    exact = outputs = extra = 0
    for node in sized.graph.node:
        extra += _mmcv_extra(shapes, node)
        if node.op_type not in _CONVOLUTIONS:
            continue
        weights = _elements(shapes, node.input[1], node)
        transposed = node.op_type == "ConvTranspose"
        exact += weights * _area(shapes, node.input[0] if transposed else node.output[0], node)
        outputs += weights * _area(shapes, node.output[0], node)
    return Complexity(_parameters(model), exact, outputs, exact + extra)


def _mmcv_extra(shapes: dict[str, Sequence[int]], node: NodeProto) -> int:
    """What mmcv counts in addition to the multiply-adds of convolutions."""
    if node.op_type == "MaxPool":
        return _elements(shapes, node.input[0], node)
    times = {"BatchNormalization": 2, "Relu": 1}.get(node.op_type, 0)
    if node.op_type in _CONVOLUTIONS and _has_bias(node):
        times = 1
    return times * _elements(shapes, node.output[0], node) if times else 0


def _parameters(model: ModelProto) -> int:
    learnt: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DeformConv":
            learnt.update((*node.input[1:2], *node.input[3:4]))
        elif node.op_type in (*_CONVOLUTIONS, "BatchNormalization"):
            learnt.update(node.input[1:3])
    # A quantised weight is a constant before its Q/DQ, and before a Cast if these compute in fp32.
    before = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in _SAME_WEIGHT}
    for name in tuple(learnt):
        while name in before:
            name = before[name]
        learnt.add(name)
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.name in learnt
    )


def _has_bias(node: NodeProto) -> bool:
    place = 3 if node.op_type == "DeformConv" else 2
    return len(node.input) > place and bool(node.input[place])


def _shapes(model: ModelProto) -> dict[str, Sequence[int]]:
    graph = model.graph
    shapes: dict[str, Sequence[int]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(int(dim.dim_value) for dim in dims)
    return shapes


def _known(shapes: dict[str, Sequence[int]], name: str, node: NodeProto) -> Sequence[int]:
    if name not in shapes:
        raise ModelError(
            f"cannot infer the size of tensor {name!r} of node {node.name!r}",
            "run standardise_deform_conv first; operators that ONNX does not define have no known size",
        )
    return shapes[name]


def _elements(shapes: dict[str, Sequence[int]], name: str, node: NodeProto) -> int:
    return int(np.prod(_known(shapes, name, node), dtype=np.int64))


def _area(shapes: dict[str, Sequence[int]], name: str, node: NodeProto) -> int:
    return int(np.prod(_known(shapes, name, node)[2:], dtype=np.int64))
