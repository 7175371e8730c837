"""`layers.json`: the precision of every layer, as requested by the typed graph."""

from typing import Any

from onnx import ModelProto, TensorProto

from centernet_trt.builder.inference import element_types

_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8"}


def requested_layers(model: ModelProto, kept_fp32: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each node of a typed graph: name, operator, precision of its result, and why it stayed fp32.

    `source` is `graph`: what was asked for. What an engine made of it only TensorRT's inspector can say, on a GPU.
    """
    types = element_types(model)
    rows = []
    for node in model.graph.node:
        kind = types.get(node.output[0], TensorProto.UNDEFINED)
        row = {
            "name": node.name,
            "op": node.op_type,
            "precision": _NAMES.get(kind, str(TensorProto.DataType.Name(kind)).lower()),
            "source": "graph",
        }
        if node.name in kept_fp32:
            row["reason"] = kept_fp32[node.name]
        rows.append(row)
    return rows
