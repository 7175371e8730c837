"""Fold batch normalisation into the convolution before it, or into one Mul and one Add: fold_batch_norm."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.errors import ModelError

__all__ = ["fold_batch_norm"]

Array = NDArray[Any]

# Input indices of the weights and the bias.
_WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "DeformConv": (1, 3)}


@dataclass(frozen=True)
class _Affine:
    """An inference-mode batch norm as y = scale * x + shift, one float64 number per channel."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def fold_batch_norm(model: ModelProto) -> ModelProto:
    """Remove BatchNormalization nodes.

    A batch norm that is the only consumer of a Conv, ConvTranspose (grouped or not), DeformConv or Gemm with constant
    weights is folded into these weights; any other becomes a Mul and an Add by constants of shape (C, 1, ...). All
    values are computed in float64 and rounded once, to the dtype of the weights. A batch norm whose parameters are
    not constants stays.

    Args:
        model: any.

    Raises:
        ModelError: a batch norm is in training mode, or its variance is negative.
    """
    model = g.copy_model(model)
    graph = model.graph
    taken = g.tensor_names(graph)
    constants = g.initializers(graph)
    made, uses = g.producers(graph), g.consumers(graph)
    outputs = {value.name for value in graph.output}
    ranks = _ranks(model)
    # Index of a batch norm -> the nodes that replace it; none if it is folded into a convolution.
    replaced: dict[int, list[NodeProto]] = {}
    for place, node in enumerate(graph.node):
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        affine = _affine(node, constants)
        if affine is None:
            continue
        source = made.get(node.input[0])
        alone = len(uses[node.input[0]]) == 1 and node.input[0] not in outputs
        folded = _fold_into(source, affine, constants) if source is not None and alone else None
        if source is not None and folded is not None:
            _set_weights(graph, source, *folded, taken)
            old = source.output[0]
            source.output[0] = node.output[0]
            # A batch norm may follow this one directly: it finds the convolution under the new name.
            made[node.output[0]] = source
            constants = g.initializers(graph)
            del made[old]
            replaced[place] = []
        else:
            replaced[place] = _as_mul_add(graph, node, affine, ranks.get(node.input[0], 4), taken)
    _rebuild(model, replaced)
    return model


def _rebuild(model: ModelProto, replaced: dict[int, list[NodeProto]]) -> None:
    """Replace every batch norm by its nodes (in place)."""
    graph = model.graph
    nodes = [
        NodeProto.FromString(new.SerializeToString())
        for place, node in enumerate(graph.node)
        for new in replaced.get(place, [node])
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    g.prune(graph)


def _affine(node: NodeProto, constants: dict[str, TensorProto]) -> _Affine | None:
    """Scale and shift of a batch norm; None if a parameter is not constant."""
    what = f"BatchNormalization {node.name or node.output[0]!r}"
    # Opset 14 has an attribute for it; in older ones the running statistics are outputs.
    if g.attribute(node, "training_mode", 0) or sum(bool(name) for name in node.output) > 1:
        raise ModelError(f"{what} is in training mode", "export the model after model.eval()")
    if any(name not in constants for name in node.input[1:5]):
        return None
    scale, bias, mean, variance = (g.as_array(constants[name]).astype(np.float64) for name in node.input[1:5])
    spread = variance + float(g.attribute(node, "epsilon", 1e-5))
    if not (spread > 0).all():
        raise ModelError(
            f"{what}: expected a positive variance, got a variance of {variance.min():g}",
            "the weights are damaged",
        )
    factor = scale / np.sqrt(spread)
    return _Affine(factor, bias - mean * factor)


def _fold_into(
    node: NodeProto, affine: _Affine, constants: dict[str, TensorProto]
) -> tuple[Array, Array] | None:
    """Weights and bias of a node with the batch norm folded in; None if it cannot be folded."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _WEIGHTS:
        return None
    weight_name, bias_name = (
        node.input[index] if index < len(node.input) else "" for index in _WEIGHTS[node.op_type]
    )
    if weight_name not in constants or (bias_name and bias_name not in constants):
        return None
    weight = g.as_array(constants[weight_name])
    bias = g.as_array(constants[bias_name]) if bias_name else np.zeros(1)
    wide = weight.astype(np.float64)
    if node.op_type == "Gemm":
        return _fold_gemm(node, wide, bias, affine, weight.dtype)
    group = int(g.attribute(node, "group", 1))
    if node.op_type in ("Conv", "DeformConv"):
        scaled = wide * affine.scale.reshape(-1, *[1] * (wide.ndim - 1))
    else:
        # (C_in, C_out / group, ...): the output channels of a group are axis 1 of that group's rows.
        grouped = wide.reshape(group, wide.shape[0] // group, *wide.shape[1:])
        factor = affine.scale.reshape(group, 1, -1, *[1] * (wide.ndim - 2))
        scaled = (grouped * factor).reshape(wide.shape)
    shifted = bias.astype(np.float64) * affine.scale + affine.shift
    return scaled.astype(weight.dtype), shifted.astype(weight.dtype)


def _fold_gemm(
    node: NodeProto, wide: Array, bias: Array, affine: _Affine, dtype: np.dtype[Any]
) -> tuple[Array, Array] | None:
    """Fold into alpha * A @ B + beta * C: the factors go into B, beta into C, which becomes (N,)."""
    if bias.size != 1 and bias.shape[-1] != bias.size:
        return None  # C differs from row to row
    factor = affine.scale[:, None] if g.attribute(node, "transB", 0) else affine.scale[None, :]
    shifted = float(g.attribute(node, "beta", 1.0)) * bias.astype(np.float64).reshape(-1) * affine.scale
    shifted = shifted + affine.shift
    g.keep_only(node.attribute, lambda attr: attr.name != "beta")
    return (wide * factor).astype(dtype), shifted.astype(dtype)


def _set_weights(graph: GraphProto, node: NodeProto, weight: Array, bias: Array, taken: set[str]) -> None:
    """Give a node weights of its own, since the old ones may have other consumers (in place)."""
    for index, what, value in zip(_WEIGHTS[node.op_type], ("weight", "bias"), (weight, bias), strict=True):
        name = g.fresh_name(f"{node.output[0]}/folded_{what}", taken)
        g.add_initializer(graph, name, value)
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = name


def _as_mul_add(
    graph: GraphProto, node: NodeProto, affine: _Affine, rank: int, taken: set[str]
) -> list[NodeProto]:
    """Mul and Add nodes for a batch norm; their constants are added to the graph (in place)."""
    # Right-aligned broadcasting: (C, 1, 1) matches the channel axis of (N, C, H, W).
    shape = (-1, *[1] * (rank - 2))
    dtype = g.as_array(g.initializers(graph)[node.input[1]]).dtype
    output, name = node.output[0], node.name or node.output[0]
    factor, shift, scaled = (
        g.fresh_name(f"{output}/{what}", taken) for what in ("bn_scale", "bn_shift", "bn_scaled")
    )
    g.add_initializer(graph, factor, affine.scale.astype(dtype).reshape(shape))
    g.add_initializer(graph, shift, affine.shift.astype(dtype).reshape(shape))
    return [
        helper.make_node("Mul", [node.input[0], factor], [scaled], name=f"{name}/Mul"),
        helper.make_node("Add", [scaled, shift], [output], name=f"{name}/Add"),
    ]


def _ranks(model: ModelProto) -> dict[str, int]:
    """Rank by tensor name, as far as shape inference knows it.

    Tensors after an operator that ONNX does not define are missing; in these networks they are images.
    """
    probe = g.copy_model(model)
    refresh_shapes(probe)
    values = (*probe.graph.input, *probe.graph.value_info, *probe.graph.output)
    shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}
    return {name: len(shape.dim) for name, shape in shapes.items()}
