"""`layers.json`: the precision of every layer, as requested by the typed graph."""

from typing import Any

from onnx import ModelProto, TensorProto

from centernet_trt.builder.inference import element_types
from centernet_trt.builder.quantise.layers import layers_in_int8

_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8"}


def requested_layers(
    model: ModelProto, kept_fp32: dict[str, str], reasons: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row for each node of a typed graph: name, operator, precision, and why it stayed fp32 or fp16.

    The precision is that of the node's result; `int8` for a layer whose activations and weights are dequantised.
    `reasons` says, for layers of an int8 graph, why each is what it is.

    `source` is `graph`: what was asked for. What an engine made of it only TensorRT's inspector can say, on a GPU.
    """
    types = element_types(model)
    in_int8 = layers_in_int8(model)
    why = (reasons or {}) | kept_fp32
    rows = []
    for node in model.graph.node:
        kind = types.get(str(node.output[0]), int(TensorProto.UNDEFINED))
        row = {
            "name": node.name,
            "op": node.op_type,
            "precision": _NAMES.get(kind, str(TensorProto.DataType.Name(kind)).lower()),
            "source": "graph",
        }
        if node.name in in_int8:
            row["precision"] = "int8"
        if node.name in why:
            row["reason"] = why[node.name]
        rows.append(row)
    return rows
