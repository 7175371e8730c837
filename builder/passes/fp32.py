"""Turn a graph that was exported in fp16 into fp32: to_fp32."""

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import check, refresh_shapes
from centernet_trt.builder.passes.fold import remove_identities

__all__ = ["holds_fp16", "to_fp32"]

FP32, FP16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
# Attributes that hold an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype"})


def holds_fp16(model: ModelProto) -> bool:
    """Whether the graph computes anything in fp16."""
    return _graph_holds(model.graph)


def _graph_holds(graph: GraphProto) -> bool:
    values = (*graph.input, *graph.output, *graph.value_info)
    return (
        any(value.type.tensor_type.elem_type == FP16 for value in values)
        or any(tensor.data_type == FP16 for tensor in graph.initializer)
        or any(_node_holds(node) for node in graph.node)
    )


def _node_holds(node: NodeProto) -> bool:
    return any(
        attr.t.data_type == FP16 or (attr.name in _TYPE_ATTRIBUTES and attr.i == FP16)
        for attr in node.attribute
    ) or any(_graph_holds(inner) for inner in g.subgraphs(node))


def to_fp32(model: ModelProto) -> ModelProto:
    """Type every fp16 tensor fp32: weights, constants, casts, inputs and outputs.

    The numbers of the weights stay; what the source rounds to fp16 between its operators is not rounded.

    Args:
        model: any; one without fp16 comes back equal.

    Returns:
        The model with all shapes and types inferred again.

    Raises:
        ModelError: types contradict each other.
    """
    model = g.copy_model(model)
    _widen(model.graph)
    model = remove_identities(model)
    refresh_shapes(model)
    check(model)
    return model


def _widen(graph: GraphProto) -> None:
    """Retype one graph and its subgraphs (in place)."""
    halves = [tensor for tensor in graph.initializer if tensor.data_type == FP16]
    wide = {tensor.name: g.as_array(tensor).astype(np.float32) for tensor in halves}
    g.keep_only(graph.initializer, lambda tensor: tensor.name not in wide)
    for name, value in wide.items():
        g.add_initializer(graph, name, value)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_value(value)
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for inner in g.subgraphs(node):
            _widen(inner)
        for attr in node.attribute:
            if attr.name in _TYPE_ATTRIBUTES and attr.i == FP16:
                attr.i = FP32
            elif attr.t.data_type == FP16:
                array = numpy_helper.to_array(attr.t).astype(np.float32)
                attr.t.CopyFrom(numpy_helper.from_array(array, attr.t.name))
        # A cast between what were fp16 and fp32 is none.
        if node.op_type == "Cast" and types.get(node.input[0]) == FP32 == g.attribute(node, "to"):
            node.CopyFrom(helper.make_node("Identity", node.input, node.output, name=node.name))


def _widen_value(value: ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type == FP16:
        value.type.tensor_type.elem_type = FP32
