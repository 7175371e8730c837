"""Repair the QuantizeLinear and DequantizeLinear nodes that a source graph carries."""

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.errors import ModelError

__all__ = ["carries_quantisation", "repair_quantised"]

_QDQ = ("QuantizeLinear", "DequantizeLinear")
# Integer arithmetic spelled out (ONNX Runtime's QOperator format), and quantisation at run time.
_INTEGER_OPS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeLinear",
    }
)
_AGAIN = "quantise again: symmetric int8 for activations and weights (zero point 0), in Q/DQ format"


def carries_quantisation(model: ModelProto) -> bool:
    """Whether the graph has quantisation of its own, of any kind."""
    return any(node.op_type in _QDQ or node.op_type in _INTEGER_OPS for node in model.graph.node)


def repair_quantised(model: ModelProto) -> ModelProto:
    """Rewrite Q/DQ in the form that TensorRT accepts, where that is exact.

    uint8 with zero point 128 becomes int8 with zero point 0, and a dequantised int32 bias becomes a float constant.

    Args:
        model: any graph; one without quantisation is returned unchanged.

    Raises:
        ModelError: the graph has a zero point, type or scale that TensorRT does not accept and that cannot be repaired
            exactly (the message lists them), or integer operators instead of Q/DQ.
    """
    if not carries_quantisation(model):
        return model
    model = g.copy_model(model)
    integer = sorted({node.op_type for node in model.graph.node} & _INTEGER_OPS)
    if integer:
        raise ModelError(
            f"expected quantisation as Q/DQ pairs, got integer operators: {', '.join(integer)}",
            "export it in Q/DQ format (ONNX Runtime: quant_format=QuantFormat.QDQ, static)",
        )
    _Repair(model).run()
    return model


class _Repair:
    """Fixes the Q/DQ nodes of one graph in place; `problems` lists those that it cannot fix."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.constants = g.initializers(model.graph)
        self.taken = g.tensor_names(model.graph)
        self.problems: list[str] = []
        self.shifted: dict[str, str] = {}  # uint8 constant -> its int8 version

    def run(self) -> None:
        gone = []
        for index, node in enumerate(self.graph.node):
            if node.op_type not in _QDQ or not self._scales_are_positive(node):
                continue
            if self._is_bias(node):
                self._fix_bias(node)
                gone.append(index)
            else:
                self._fix_node(node)
        if self.problems:
            listed = "".join(f"\n  {problem}" for problem in self.problems[:8])
            more = f"\n  and {len(self.problems) - 8} more" if len(self.problems) > 8 else ""
            raise ModelError(f"TensorRT does not accept the graph's quantisation:{listed}{more}", _AGAIN)
        g.remove_at(self.graph.node, gone)
        g.prune(self.graph)

    def _constant(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else g.as_array(tensor)

    def _scales_are_positive(self, node: NodeProto) -> bool:
        scale = self._constant(node.input[1])
        if scale is None:
            self.problems.append(
                f"{node.name}: expected a constant scale, got the computed tensor {node.input[1]!r}"
            )
        elif not (np.isfinite(scale.astype(np.float64)) & (scale.astype(np.float64) > 0)).all():
            self.problems.append(f"{node.name}: expected a scale above 0, got {scale.min()!s}")
        else:
            return True
        return False

    def _is_bias(self, node: NodeProto) -> bool:
        source = self.constants.get(node.input[0])
        return (
            node.op_type == "DequantizeLinear"
            and source is not None
            and source.data_type == TensorProto.INT32
        )

    def _fix_bias(self, node: NodeProto) -> None:
        stored, scale = self._constant(node.input[0]), self._constant(node.input[1])
        assert stored is not None
        assert scale is not None
        axis_values = stored.astype(np.float64) * scale.astype(np.float64)
        # The constant replaces the node, under the name of its output.
        g.add_initializer(self.graph, node.output[0], axis_values.astype(np.float32))

    def _fix_node(self, node: NodeProto) -> None:
        zero = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kind = self._storage_type(node, zero)
        if kind == TensorProto.INT8 and (zero is None or not zero.any()):
            return
        if kind == TensorProto.UINT8 and zero is not None and (zero == 128).all():
            self._fix_uint8(node)
            return
        where = f"{node.name} ({node.op_type} of {node.input[0]!r})"
        found = "0" if zero is None else str(np.unique(zero).tolist()[:4]).strip("[]")
        self.problems.append(f"{where}: {TensorProto.DataType.Name(kind).lower()} with zero point {found}")

    def _storage_type(self, node: NodeProto, zero: NDArray[np.generic] | None) -> int:
        if zero is not None:
            return int(self.constants[node.input[2]].data_type)
        stored = self.constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and stored is not None:
            return int(stored.data_type)
        return int(g.attribute(node, "output_dtype", 0)) or TensorProto.UINT8  # ONNX's default is uint8

    def _fix_uint8(self, node: NodeProto) -> None:
        """Turn uint8 around 128 into int8 around 0: the zero point, and the weights if they are stored."""
        node.input[2] = self._minus_128(node.input[2])
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            node.input[0] = self._minus_128(node.input[0])
        for index, attr in enumerate(node.attribute):
            if attr.name == "output_dtype":
                node.attribute[index].CopyFrom(helper.make_attribute("output_dtype", TensorProto.INT8))

    def _minus_128(self, name: str) -> str:
        if name not in self.shifted:
            self.shifted[name] = g.fresh_name(f"{name}/int8", self.taken)
            values = g.as_array(self.constants[name]).astype(np.int16) - 128
            g.add_initializer(self.graph, self.shifted[name], values.astype(np.int8))
            self.constants[self.shifted[name]] = self.graph.initializer[-1]
        return self.shifted[name]
