"""Decide which nodes stay fp32 when the rest of a graph becomes fp16, and why: nodes_staying_fp32."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.passes.fp16_constants import nodes_losing_constants
from centernet_trt.errors import ModelError

__all__ = ["FP16_LARGEST", "nodes_staying_fp32", "require_nodes", "slot_stays_fp32"]

FP16_LARGEST = float(np.finfo(np.float16).max)
_HALF = "tensor(float16)"

# Inputs that stay fp32 when their node does not: Resize's region and scales are coordinates.
_FP32_SLOTS = {("Resize", 1), ("Resize", 2)}
# Bounds beyond the fp16 range have no effect in it, so they saturate; see fp16.py.
_SATURATED_SLOTS = {("Clip", 1), ("Clip", 2)}
# Their output type is an attribute or a value, which retyping sets.
_RETYPED = ("Cast", "ConstantOfShape")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
# Operators that compute a sampling grid; the search upwards from a grid stops at any other, such as the convolution that
# predicts the offsets.
_GRID_OPS = frozenset(
    [
        "Add",
        "Cast",
        "Clip",
        "Concat",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Range",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)


def slot_stays_fp32(node: NodeProto, index: int) -> bool:
    """Whether input `index` of an fp16 node stays fp32."""
    return (node.op_type, index) in _FP32_SLOTS


def nodes_staying_fp32(
    model: ModelProto,
    types: dict[str, int],
    keep_fp32: Collection[str] | Mapping[str, str],
    *,
    fp16_scales: bool,
) -> dict[str, str]:
    """Find the nodes that stay fp32.

    Args:
        model: named nodes in topological order, no subgraphs, constants as initialisers.
        types: tensor name -> element type.
        keep_fp32: names of nodes to keep fp32; a mapping also gives the reasons.
        fp16_scales: QuantizeLinear and DequantizeLinear become fp16 if the opset and their scales allow it.

    Returns:
        Node name -> the reason why it stays fp32.

    Raises:
        ModelError: a name in `keep_fp32` is not a node of the graph.
    """
    nodes = {node.name: node for node in model.graph.node}
    require_nodes(model, keep_fp32)
    asked = (
        keep_fp32 if isinstance(keep_fp32, Mapping) else dict.fromkeys(keep_fp32, "requested by keep_fp32")
    )
    rules = _Rules(g.main_opset(model), types, g.initializers(model.graph), fp16_scales)
    reasons = nodes_losing_constants(model, types)
    reasons.update(_shape_arithmetic(model, types))
    reasons.update(_grids(model))
    for name, node in nodes.items():
        reason = asked.get(name) or reasons.get(name) or rules.reason(node)
        if reason and rules.touches_float(node):
            reasons[name] = reason
        else:
            reasons.pop(name, None)
    return reasons


def require_nodes(model: ModelProto, names: Collection[str]) -> None:
    """Check that nodes to keep fp32 exist.

    Raises:
        ModelError: one does not; the message lists near names.
    """
    known = [node.name for node in model.graph.node]
    for name in names:
        if name not in known:
            near = g.near_names(name, known)
            raise ModelError(
                f"the graph has no node {name!r}" + (f"; near names: {', '.join(near)}" if near else ""),
                "layers.json of a bundle lists the nodes, after constants and batch norms were folded",
            )


@dataclass(frozen=True)
class _Rules:
    """Rules by ONNX's operator definitions and the values of constants."""

    opset: int
    types: dict[str, int]
    constants: dict[str, TensorProto]
    fp16_scales: bool

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def touches_float(self, node: NodeProto) -> bool:
        return any(self.is_float(name) for name in (*node.input, *node.output))

    def reason(self, node: NodeProto) -> str | None:
        """Why the node cannot be fp16; None if it can."""
        if node.op_type in _QDQ and not self.fp16_scales:
            return "int8 scales stay exact in fp32"
        if node.op_type == "LpNormalization":
            return "sums squares, which leave the range of fp16"
        return self._by_schema(node) or self._by_values(node)

    def _by_schema(self, node: NodeProto) -> str | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = defs.get_schema(node.op_type, self.opset if domain == "" else 1, domain)
        except onnx.defs.SchemaError:
            return f"ONNX does not define {node.domain or 'ai.onnx'}.{node.op_type}"
        allowed = {c.type_param_str: _HALF in c.allowed_type_strs for c in schema.type_constraints}
        bound: set[str] = set()
        for index, name in enumerate(node.input):
            # The last declared input of a variadic operator applies to all that follow.
            declared = schema.inputs[min(index, len(schema.inputs) - 1)]
            bound.update([declared.type_str] if name else [])
            if (
                self.is_float(name)
                and not slot_stays_fp32(node, index)
                and not allowed.get(declared.type_str)
            ):
                return f"{node.op_type} (opset {self.opset}) has no float16 for its input {declared.name}"
        for index, name in enumerate(node.output):
            declared = schema.outputs[min(index, len(schema.outputs) - 1)]
            if self.is_float(name) and not allowed.get(declared.type_str):
                return f"{node.op_type} (opset {self.opset}) has no float16 for its output {declared.name}"
            if self.is_float(name) and declared.type_str not in bound and node.op_type not in _RETYPED:
                return f"the output type of {node.op_type} does not follow its inputs"
        return None

    def _by_values(self, node: NodeProto) -> str | None:
        """Which constant of the node fp16 cannot represent; None if there is none."""
        if node.op_type == "ConstantOfShape":
            value = g.attribute(node, "value")
            return "its fill value overflows fp16" if value is not None and _overflows(value) else None
        for index, name in enumerate(node.input):
            tensor = self.constants.get(name)
            if tensor is None or not self.is_float(name):
                continue
            if slot_stays_fp32(node, index) or (node.op_type, index) in _SATURATED_SLOTS:
                continue
            if _overflows(tensor):
                return f"constant {name!r} overflows fp16"
            if node.op_type in _QDQ and index == 1 and _is_subnormal(tensor):
                return f"scale {name!r} is too small for fp16"
        return None


def _overflows(tensor: TensorProto) -> bool:
    values = g.as_array(tensor)
    with np.errstate(over="ignore"):
        return bool((np.isinf(values.astype(np.float16)) & np.isfinite(values)).any())


def _is_subnormal(tensor: TensorProto) -> bool:
    return bool((np.abs(g.as_array(tensor)) < np.finfo(np.float16).tiny).any())


def _shape_arithmetic(model: ModelProto, types: dict[str, int]) -> dict[str, str]:
    """Nodes that compute with sizes only (scales, coordinates), since fp16 integers are exact up to 2048 only."""
    constant = set(g.initializers(model.graph))
    from_shape: set[str] = set()
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type in ("Shape", "Size"):
            from_shape.update(node.output)
        elif node.op_type == "ConstantOfShape" or all(name in constant for name in inputs):
            constant.update(node.output)  # a fill value does not come from the shape
        elif all(name in constant or name in from_shape for name in inputs):
            from_shape.update(node.output)
            if any(types.get(name) == TensorProto.FLOAT for name in (*inputs, *node.output)):
                reasons[node.name] = "computes with tensor shapes"
    return reasons


def _grids(model: ModelProto) -> dict[str, str]:
    """GridSample nodes and the nodes that compute their grids, since an fp16 grid is off by 1/64 px at width 128."""
    made = g.producers(model.graph)
    reasons: dict[str, str] = {}
    for sample in model.graph.node:
        if sample.op_type != "GridSample":
            continue
        reasons[sample.name] = "samples at fp32 positions"
        queue = [sample.input[1]]
        while queue:
            node = made.get(queue.pop())
            if node is not None and node.op_type in _GRID_OPS and node.name not in reasons:
                reasons[node.name] = f"makes the grid of {sample.name}"
                queue.extend(node.input)
    return reasons
