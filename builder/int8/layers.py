"""Survey the layers of a graph: which may become int8, and why the others may not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.io import set_input_size
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.errors import ModelError

__all__ = ["Kind", "Layer", "Rules", "Survey", "Unit", "layers_in_int8", "share_in_int8", "survey"]

Kind = Literal["dense", "depthwise", "transposed", "gemm", "deformable"]
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "DeformConv")
# What may follow a head's last convolution: nothing that mixes channels or cells.
_AFTER_LAST = ("Add", "Cast", "Clip", "Div", "Exp", "Identity", "Mul", "Relu", "Sigmoid", "Softplus", "Sub")


@dataclass(frozen=True)
class Rules:
    """Which layers may be int8, and what is done for their accuracy.

    Attributes:
        last_convs: the last convolution of each head may be int8. By default it stays fp16: its output are the scores
            and boxes, and one int8 step of an l, t, r, b head that reaches 475 px is 3.7 px.
        smallest_share: a layer with a smaller share of all multiply-adds stays fp16: it gains nothing.
        equalise: channels are equalised first, where that is exact (see `equalise`).
        correct_bias: the shift of a layer's mean output by the rounding of its weights is taken off its bias.
        residual_skip: the other operand of an addition that an int8 convolution feeds is quantised too, so that
            TensorRT can fuse the addition into the int8 convolution. Costs accuracy, so it is tried last.
        keep_fp32: names of layers that stay out of int8 because the caller keeps them fp32.
    """

    last_convs: bool = False
    smallest_share: float = 0.0005
    equalise: bool = True
    correct_bias: bool = True
    residual_skip: bool = False
    keep_fp32: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: of its node.
        kind: of its operator.
        input: name of the activation that it reads.
        weight: name of its weights.
        multiply_adds: per image.
    """

    name: str
    kind: Kind
    input: str
    weight: str
    multiply_adds: int


@dataclass(frozen=True)
class Unit:
    """The layers that read one tensor; they become int8 together, since they share its Q/DQ pair."""

    tensor: str
    layers: tuple[Layer, ...]

    @property
    def multiply_adds(self) -> int:
        """Sum over its layers, per image."""
        return sum(layer.multiply_adds for layer in self.layers)


@dataclass(frozen=True)
class Survey:
    """The layers of a graph.

    Attributes:
        layers: all layers with weights, in graph order.
        units: those that may become int8, by the tensor that they read.
        excluded: why the others may not, by layer name.
    """

    layers: tuple[Layer, ...]
    units: tuple[Unit, ...]
    excluded: dict[str, str]

    @property
    def multiply_adds(self) -> int:
        """Sum over all layers, per image."""
        return sum(layer.multiply_adds for layer in self.layers)


def survey(model: ModelProto, height: int, width: int, rules: Rules | None = None) -> Survey:
    """Find the layers of a graph and apply the rules to them.

    Args:
        model: fp32, named nodes, batch norms folded, one input.
        height: of the input that multiply-adds are counted for, in pixels.
        width: of that input, in pixels.
        rules: None for the default.

    Raises:
        ModelError: a size cannot be inferred.
    """
    rules = rules or Rules()
    layers = _layers(model, height, width)
    constants = g.initializers(model.graph)
    last = _last_convolutions(model)
    total = sum(layer.multiply_adds for layer in layers) or 1
    nodes = {node.name: node for node in model.graph.node}
    excluded: dict[str, str] = {}
    for layer in layers:
        reason = _reason(layer, nodes[layer.name], constants)
        if layer.name in rules.keep_fp32:
            reason = "kept in fp32 by the caller"
        if reason is None and layer.name in last and not rules.last_convs:
            reason = f"last convolution of head {last[layer.name]!r}"
        if reason is None and layer.multiply_adds < rules.smallest_share * total:
            reason = f"{layer.multiply_adds / total:.2%} of the multiply-adds: nothing to gain"
        if reason is not None:
            excluded[layer.name] = reason
    by_tensor: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.name not in excluded:
            by_tensor.setdefault(layer.input, []).append(layer)
    units = tuple(Unit(tensor, tuple(members)) for tensor, members in by_tensor.items())
    return Survey(tuple(layers), units, excluded)


def _reason(layer: Layer, node: NodeProto, constants: dict[str, TensorProto]) -> str | None:
    """Why a layer cannot be int8, None if it can."""
    if layer.kind == "deformable":
        return "deformable convolutions have no int8 in TensorRT"
    if layer.weight not in constants:
        return "its weights are not constant"
    if layer.input in constants:
        return "its input is a constant"
    if layer.kind == "gemm" and g.attribute(node, "transA", 0):
        return "its input is transposed"
    return None


def _layers(model: ModelProto, height: int, width: int) -> list[Layer]:
    sized = set_input_size(model, model.graph.input[0].name, height, width)
    sized.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    refresh_shapes(sized)
    shapes: dict[str, Sequence[int]] = {t.name: tuple(t.dims) for t in sized.graph.initializer}
    for value in (*sized.graph.input, *sized.graph.value_info, *sized.graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    found = []
    for node in sized.graph.node:
        if node.op_type in _OPERATORS and node.domain in ("", "ai.onnx"):
            found.append(
                Layer(
                    node.name, _kind(node, shapes), node.input[0], node.input[1], _multiply_adds(node, shapes)
                )
            )
    return found


def _kind(node: NodeProto, shapes: dict[str, Sequence[int]]) -> Kind:
    if node.op_type in ("Gemm", "DeformConv"):
        return "gemm" if node.op_type == "Gemm" else "deformable"
    if node.op_type == "ConvTranspose":
        return "transposed"
    group, weight = int(g.attribute(node, "group", 1)), shapes.get(node.input[1], ())
    return "depthwise" if group > 1 and len(weight) > 1 and weight[1] == 1 else "dense"


def _multiply_adds(node: NodeProto, shapes: dict[str, Sequence[int]]) -> int:
    """One for each weight and each position that it is applied to."""
    places = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0], ())
    weight = shapes.get(node.input[1], ())
    if not weight or not places or 0 in places:
        raise ModelError(
            f"the tensor sizes of node {node.name!r} cannot be inferred: weights {tuple(weight)}, "
            f"output {tuple(places)}",
            "int8 needs a graph whose tensor sizes follow from the input size",
        )
    spatial = places[2:] if node.op_type != "Gemm" else places[:1]
    return int(np.prod(weight, dtype=np.int64)) * int(np.prod(spatial, dtype=np.int64))


def _last_convolutions(model: ModelProto) -> dict[str, str]:
    """Last layer before each head -> the head; only elementwise operators may follow the layer."""
    made, constants = g.producers(model.graph), g.initializers(model.graph)
    found: dict[str, str] = {}
    for value in model.graph.output:
        queue, seen = [value.name], set()
        while queue:
            name = queue.pop()
            node = made.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op_type in _OPERATORS:
                found[node.name] = value.name
            elif node.op_type in _AFTER_LAST:
                queue.extend(source for source in node.input if source not in constants)
    return found


def layers_in_int8(model: ModelProto) -> set[str]:
    """Names of the layers that read int8 activations and int8 weights; the graph may be of any float type."""
    made = g.producers(model.graph)

    def is_int8(name: str) -> bool:
        node = made.get(name)
        while node is not None and node.op_type == "Cast":
            node = made.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return {
        node.name
        for node in model.graph.node
        if node.op_type in _OPERATORS and is_int8(node.input[0]) and is_int8(node.input[1])
    }


def share_in_int8(model: ModelProto, height: int, width: int) -> float:
    """Share of all multiply-adds, 0..1, in layers that read int8 activations and int8 weights, counted in the graph.

    Args:
        model: a graph with or without Q/DQ, of any float type.
        height: of the input, in pixels.
        width: of the input, in pixels.
    """
    names, layers = layers_in_int8(model), _layers(model, height, width)
    inside = sum(layer.multiply_adds for layer in layers if layer.name in names)
    return inside / (sum(layer.multiply_adds for layer in layers) or 1)
