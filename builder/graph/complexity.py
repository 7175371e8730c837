"""Counts the parameters and multiply-adds of a convolutional ONNX graph."""

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
    """Size and arithmetic of a network for one image of a given size.

    Attributes:
        parameters: elements of all constants that convolutions and batch norms learn: weights, biases, scales. Stored
            statistics are left out, as PyTorch does.
        multiply_adds: of all convolutions: one for each weight and each place that it is applied to.
        output_convention: the same, but with transposed convolutions counted at their *output* size, stride squared
            times too many: the figure of tools that treat them like convolutions.
        mmcv_flops: `multiply_adds` plus what mmcv's counter adds: an element of every bias, ReLU output and pooling
            input, two of every batch norm. Only on a graph whose batch norms are not folded.
    """

    parameters: int
    multiply_adds: int
    output_convention: int
    mmcv_flops: int


def count_complexity(model: ModelProto, height: int, width: int) -> Complexity:
    """Count the network behind the model's only input, (N, C, H, W), for one image of height x width.

    DeformConv counts like the convolution that it is; the bilinear sampling (four more a sample) is left out, as the
    published tables do.

    Raises:
        ModelError: no single input, or a size that cannot be inferred.
    """
    if len(model.graph.input) != 1:
        raise ModelError(f"the graph has {len(model.graph.input)} inputs, one was expected")
    name = model.graph.input[0].name
    sized = set_input_size(model, name, height, width)
    sized.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    refresh_shapes(sized)
    shapes = _shapes(sized)
    exact = outputs = extra = 0
    for node in sized.graph.node:
        extra += _beside(shapes, node)
        if node.op_type not in _CONVOLUTIONS:
            continue
        weights = _elements(shapes, node.input[1], node)
        transposed = node.op_type == "ConvTranspose"
        exact += weights * _area(shapes, node.input[0] if transposed else node.output[0], node)
        outputs += weights * _area(shapes, node.output[0], node)
    return Complexity(_parameters(model), exact, outputs, exact + extra)


def _beside(shapes: dict[str, Sequence[int]], node: NodeProto) -> int:
    """What mmcv counts beside the multiply-adds of convolutions."""
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
    # A quantised weight is a constant behind its Q/DQ, and behind a Cast where these compute in fp32.
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
            f"the size of tensor {name!r} of node {node.name!r} cannot be inferred",
            "run standardise_deform_conv first; operators that ONNX does not define have no known size",
        )
    return shapes[name]


def _elements(shapes: dict[str, Sequence[int]], name: str, node: NodeProto) -> int:
    return int(np.prod(_known(shapes, name, node), dtype=np.int64))


def _area(shapes: dict[str, Sequence[int]], name: str, node: NodeProto) -> int:
    return int(np.prod(_known(shapes, name, node)[2:], dtype=np.int64))
