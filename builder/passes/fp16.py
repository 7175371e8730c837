"""Type a graph fp16, every float activation and weight except for nodes that must stay fp32: to_fp16."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import check, element_types, refresh_shapes
from centernet_trt.builder.passes.fold import constants_to_initializers, remove_identities
from centernet_trt.builder.passes.fp16_rules import FP16_LARGEST, nodes_staying_fp32, slot_stays_fp32
from centernet_trt.errors import ModelError

__all__ = ["Fp16Result", "to_fp16"]

FP32, FP16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SHORT = {FP32: "fp32", FP16: "fp16"}


@dataclass(frozen=True)
class Fp16Result:
    """A graph typed fp16.

    Attributes:
        model: the typed graph, checked, its shapes inferred.
        kept: nodes that stayed fp32 -> reason.
        casts: number of Cast nodes added between fp16 and fp32.
    """

    model: ModelProto
    kept: dict[str, str]
    casts: int


def to_fp16(
    model: ModelProto,
    *,
    keep_fp32: Collection[str] | Mapping[str, str] = (),
    io_types: Literal["fp16", "fp32"] = "fp16",
    output_types: Literal["fp16", "fp32"] | None = None,
    scales: Literal["fp32", "fp16"] = "fp32",
) -> Fp16Result:
    """Turn float32 into float16, for a strongly typed backend.

    These stay fp32, with casts around them: the nodes in `keep_fp32`; operators that ONNX does not define for float16;
    GridSample and the nodes that compute its grid; arithmetic on tensor shapes; nodes with a constant that overflows;
    Resize's region and scales; quantisation scales. A tensor is cast once, for all its consumers, and Cast nodes of
    the source are retyped instead of wrapped. Identity nodes are removed first. Tensor names stay.

    Args:
        model: opset 13 or newer, without subgraphs and operators unknown to ONNX.
        keep_fp32: node names as `name_nodes` gives them; a mapping also gives the reasons.
        io_types: type of the float inputs and outputs of the graph.
        output_types: type of its float outputs; None is `io_types`.
        scales: `fp16` makes Q/DQ nodes fp16 (from opset 19, scales not below 6.1e-5), so that there is no Cast between
            a DequantizeLinear and its convolution; `fp32` keeps them exact.

    Returns:
        The typed graph and the nodes that stayed fp32.

    Raises:
        ModelError: the graph has a subgraph, a tensor of unknown type or an older opset, or `keep_fp32` an unknown name.
    """
    if g.main_opset(model) < 13:
        raise ModelError(
            f"expected opset 13 or newer, got opset {g.main_opset(model)}",
            "load it with builder.graph.load.load_model",
        )
    # Identities first: one between two fp32 nodes would become fp16, at the cost of two casts and precision.
    model = remove_identities(constants_to_initializers(g.name_nodes(model)))
    _refuse_subgraphs(model.graph)
    refresh_shapes(model)
    types = _all_types(model)
    kept = nodes_staying_fp32(model, types, keep_fp32, fp16_scales=scales == "fp16")
    kinds = {"fp16": FP16, "fp32": FP32}
    retyper = _Retyper(model.graph, types, kept, kinds[io_types], kinds[output_types or io_types])
    retyper.run()
    model = remove_identities(model)  # casts of the source whose two sides now agree
    refresh_shapes(model)
    check(model, full=True)
    return Fp16Result(model, kept, retyper.cast_count)


def _refuse_subgraphs(graph: GraphProto) -> None:
    nested = [f"{node.name} ({node.op_type})" for node in graph.node if g.subgraphs(node)]
    if nested:
        raise ModelError(
            f"nodes with subgraphs cannot be typed fp16: {', '.join(nested[:5])}",
            "export the network without control flow, or cut the graph to its heads first",
        )


def _all_types(model: ModelProto) -> dict[str, int]:
    types = element_types(model)
    for node in model.graph.node:
        unknown = [name for name in node.output if name and name not in types]
        if unknown:
            raise ModelError(
                f"the type of tensor {unknown[0]!r} is unknown; node {node.name} ({node.domain or 'ai.onnx'}."
                f"{node.op_type}) computes it",
                "replace operators that ONNX does not define before typing the graph",
            )
    return types


class _Retyper:
    """Retypes one graph in place, node by node in topological order."""

    def __init__(
        self,
        graph: GraphProto,
        types: dict[str, int],
        kept: dict[str, str],
        input_type: int,
        output_type: int,
    ) -> None:
        self.graph = graph
        self.types = types
        self.kept = kept
        self.input_type = input_type
        self.output_type = output_type
        self.constants = g.initializers(graph)
        self.taken = g.tensor_names(graph)
        self.node_names = {node.name for node in graph.node}
        # The new type of each float tensor of the source.
        self.actual: dict[str, int] = {}
        # (tensor, type) -> the tensor of that type, for constants and cast activations.
        self.versions: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.cast_count = 0

    def run(self) -> None:
        """Retype the inputs, the nodes and the outputs."""
        for value in self.graph.input:
            if self._is_float(value.name):
                self.actual[value.name] = self.input_type
                value.type.tensor_type.elem_type = self.input_type
        for node in self.graph.node:
            self._retype(node)
        for value in self.graph.output:
            if self._is_float(value.name):
                self._retype_output(value.name)
                value.type.tensor_type.elem_type = self.output_type
        nodes = self.nodes
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._restore_constant_names()
        g.prune(self.graph)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == FP32

    def _retype(self, source: NodeProto) -> None:
        node = NodeProto()
        node.CopyFrom(source)
        kind = FP32 if node.name in self.kept else FP16
        if node.op_type == "Cast":
            self._retype_cast(node, kind)
        else:
            for index, name in enumerate(node.input):
                if self._is_float(name):
                    wanted = FP32 if slot_stays_fp32(node, index) else kind
                    node.input[index] = self._version(name, wanted)
            if node.op_type == "ConstantOfShape" and self._is_float(node.output[0]):
                _set_fill_type(node, kind)
        for name in node.output:
            if self._is_float(name):
                self.actual[name] = kind
        self.nodes.append(node)

    def _retype_cast(self, node: NodeProto, kind: int) -> None:
        """Retype a Cast, whose input has its new type: no cast follows another."""
        name = node.input[0]
        target = kind if self._is_float(node.output[0]) else int(g.attribute(node, "to"))
        if self._is_float(name) and name not in self.constants:
            source = self.actual[name]
        else:
            source = self.types[name]
        del node.attribute[:]
        if source == target:
            node.op_type = "Identity"
        else:
            node.attribute.append(helper.make_attribute("to", target))

    def _version(self, name: str, kind: int) -> str:
        """The tensor that has the values of `name` in the given type; it is made once."""
        if name in self.constants:
            return name if kind == FP32 else self._half_constant(name)
        if self.actual[name] == kind:
            return name
        key = name, kind
        if key not in self.versions:
            self.versions[key] = g.fresh_name(f"{name}/{_SHORT[kind]}", self.taken)
            self.nodes.append(self._cast(name, self.versions[key], kind))
        return self.versions[key]

    def _cast(self, source: str, target: str, kind: int) -> NodeProto:
        self.cast_count += 1
        name = g.fresh_name(f"Cast/{target}", self.node_names)
        return helper.make_node("Cast", [source], [target], name=name, to=kind)

    def _half_constant(self, name: str) -> str:
        key = name, FP16
        if key not in self.versions:
            self.versions[key] = g.fresh_name(f"{name}/fp16", self.taken)
            g.add_initializer(self.graph, self.versions[key], _half_values(self.constants[name]))
        return self.versions[key]

    def _retype_output(self, name: str) -> None:
        """Give the output the graph's output type under its own name."""
        if name in self.constants or name not in self.actual:
            raise ModelError(
                f"expected computed outputs, but output {name!r} is a constant", "leave it out of the heads"
            )
        kind = self.actual[name]
        if kind == self.output_type:
            return
        inner = g.fresh_name(f"{name}/{_SHORT[kind]}", self.taken)
        renames = {name: inner}
        existing = self.versions.get((name, self.output_type))
        if existing is not None:
            # A consumer has it in that type already: that cast makes the output.
            renames[existing] = name
        for node in self.nodes:
            for field in (node.input, node.output):
                for index, old in enumerate(field):
                    field[index] = renames.get(old, old)
        if existing is None:
            self.nodes.append(self._cast(inner, name, self.output_type))

    def _restore_constant_names(self) -> None:
        """Give the fp16 version of a constant the old name if the fp32 version has no consumer left."""
        used = {name for node in self.graph.node for name in node.input}
        renames = {
            new: old
            for (old, _), new in self.versions.items()
            if old in self.constants and old not in used and new in used
        }
        g.keep_only(self.graph.initializer, lambda tensor: tensor.name not in renames.values())
        for tensor in self.graph.initializer:
            tensor.name = renames.get(tensor.name, tensor.name)
        g.rename_uses(self.graph.node, renames)


def _half_values(tensor: TensorProto) -> NDArray[np.float16]:
    """Round a float32 constant to fp16; finite values beyond its range (clip bounds only) saturate."""
    values = g.as_array(tensor)
    with np.errstate(over="ignore"):
        half = np.asarray(values.astype(np.float16))
    beyond = np.isinf(half)
    if beyond.any():
        beyond = beyond & np.isfinite(values)
        half[beyond] = np.copysign(np.float16(FP16_LARGEST), half[beyond])
    return half


def _set_fill_type(node: NodeProto, kind: int) -> None:
    """Type a ConstantOfShape by its fill value, which is float32 zero by default (in place)."""
    if kind == FP32:
        return
    value = g.attribute(node, "value")
    zero = numpy_helper.from_array(np.zeros(1, np.float16))
    half = None if value is None else numpy_helper.from_array(_half_values(value), value.name)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", zero if half is None else half))
