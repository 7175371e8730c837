"""Find the tensors of a graph that could be its heads: HeadCandidate."""

import re
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"})
# Operators between a head's convolution and its tensor: one computed input, and the shape stays.
_ELEMENTWISE = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Exp",
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Clip",
        "Identity",
        "Cast",
        "Softplus",
    }
    | {"Min", "Max", "Neg", "Abs", "QuantizeLinear", "DequantizeLinear", "BatchNormalization"}
)


@dataclass(frozen=True)
class HeadCandidate:
    """A tensor that could be a head.

    Attributes:
        tensor: its name, as a spec gives it.
        channels: number of its channels.
        grid: its (height, width) in cells, for the input size that the graph was examined with.
        logits: the input of the sigmoid, if a sigmoid is the last activation; else None.
        exponential: whether an `Exp` is applied.
        words: lower-case words of the names around it (tensors, nodes, weights), which may hint at its role.
        bias: mean of the convolution's bias; None without one.
        output: whether the tensor is an output of the graph.
    """

    tensor: str
    channels: int
    grid: tuple[int, int]
    logits: str | None
    exponential: bool
    words: frozenset[str]
    bias: float | None
    output: bool


def find_candidates(model: ModelProto) -> list[HeadCandidate]:
    """Find the head candidates of a graph.

    Args:
        model: its input has a fixed size.

    Returns:
        The candidates in the graph's order, without tensors whose shape ONNX cannot infer.
    """
    model = g.copy_model(model)
    refresh_shapes(model)
    shapes = _shapes(model)
    consumers = g.consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    found = []
    for node in _last_convolutions(model):
        walk = _follow(node, consumers, outputs, shapes)
        shape = shapes.get(walk.tensor, ())
        if len(shape) == 4 and all(isinstance(side, int) and side > 0 for side in shape[1:]):
            found.append(_candidate(model, node, walk, shape, walk.tensor in outputs))
    return found


@dataclass
class _Walk:
    """The path from a convolution to its head tensor."""

    tensor: str
    logits: str | None
    exponential: bool
    names: list[str]


def _shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name; 0 for an unknown dimension."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _last_convolutions(model: ModelProto) -> list[NodeProto]:
    """Convolutions whose output reaches no other convolution."""
    reaching: set[str] = set()  # tensors that reach one
    last = []
    for node in reversed(model.graph.node):
        is_convolution = node.op_type in _CONVOLUTIONS
        leads_on = any(name in reaching for name in node.output)
        if is_convolution and not leads_on:
            last.append(node)
        if is_convolution or leads_on:
            reaching.update(g.node_uses(node))
    return last[::-1]


def _follow(
    node: NodeProto,
    consumers: dict[str, list[NodeProto]],
    outputs: set[str],
    shapes: dict[str, tuple[int, ...]],
) -> _Walk:
    walk = _Walk(node.output[0], None, False, [node.name, *node.input[1:], node.output[0]])
    while True:
        readers = consumers.get(walk.tensor, [])
        if len(readers) != 1 or (walk.tensor in outputs and readers[0].op_type != "Identity"):
            return walk
        (reader,) = readers
        if reader.op_type not in _ELEMENTWISE or shapes.get(reader.output[0]) != shapes.get(walk.tensor):
            return walk
        if reader.op_type == "Sigmoid":
            walk.logits = walk.tensor
        elif reader.op_type == "Exp":
            walk.exponential = True
        walk.tensor = reader.output[0]
        walk.names += [reader.name, walk.tensor]


def _candidate(
    model: ModelProto, node: NodeProto, walk: _Walk, shape: tuple[int, ...], output: bool
) -> HeadCandidate:
    bias = None
    if len(node.input) > 2 and (tensor := g.initializers(model.graph).get(node.input[2])) is not None:
        bias = float(np.mean(g.as_array(tensor), dtype=np.float64))
    words = frozenset(word for name in walk.names for word in re.findall(r"[a-z]+", name.lower()))
    return HeadCandidate(
        walk.tensor, shape[1], (shape[2], shape[3]), walk.logits, walk.exponential, words, bias, output
    )
