"""Equalise the channels of a tensor before it is quantised, without changing what the graph computes.

int8 has one scale for a whole activation, so a channel of small values beside one of large values loses its digits.
If only convolutions read a tensor X, its channel c can be divided by a factor s_c at its source, and the weights that
read the channel multiplied by it. Weights have a scale for each output channel, so a depthwise convolution takes any
factor at no cost, and X then fills its range in every channel. For a dense convolution
s_c = sqrt(range of X_c / range of the weights that read c), which shares the loss (M. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1). The factors are powers of two:
multiplying by them is exact, so the fp32 results are bit-identical, except for subnormal numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes

__all__ = ["equalisable", "equalise", "replay"]

Factors = npt.NDArray[np.float32]

# f(a * x) = a * f(x) for a > 0, channel by channel.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
# Largest exponent of a factor: the range of a dead channel is not meaningful.
_LARGEST_SHIFT = 8


@dataclass
class _Plan:
    """The edits that multiply one tensor by factors: weights and constants to scale, gates to multiply."""

    weights: list[tuple[NodeProto, Factors]] = field(default_factory=list)
    constants: list[tuple[NodeProto, int, Factors]] = field(default_factory=list)
    gates: list[tuple[NodeProto, int, Factors]] = field(default_factory=list)

    def extend(self, other: "_Plan") -> None:
        self.weights += other.weights
        self.constants += other.constants
        self.gates += other.gates


def equalisable(model: ModelProto) -> tuple[str, ...]:
    """Names of the tensors that `equalise` can change, in graph order; shapes must be inferred."""
    editor = _Editor(g.copy_model(model))
    return tuple(
        name
        for node in editor.graph.node
        for name in node.output
        if editor.readers(name)
        and editor.source_plan(name, np.ones(editor.channels(name), np.float32)) is not None
    )


def equalise(
    model: ModelProto, ranges: Mapping[str, npt.NDArray[np.float64]]
) -> tuple[ModelProto, dict[str, tuple[int, ...]]]:
    """Equalise the channels of tensors; the model computes the same.

    Args:
        model: fp32, batch norms folded, shapes inferred.
        ranges: for each tensor to equalise, largest |x| of each channel, (C,). Tensors that cannot be changed (see
            `equalisable`) stay unchanged.

    Returns:
        The model, and the exponents e by tensor: channel c was multiplied by 2^e[c].
    """
    model = g.copy_model(model)
    editor = _Editor(model)
    exponents: dict[str, tuple[int, ...]] = {}
    for node in list(model.graph.node):
        for name in node.output:
            if name in ranges and editor.readers(name):
                factors = editor.factors(np.asarray(ranges[name], dtype=np.float64), editor.readers(name))
                if editor.scale(name, factors):
                    exponents[name] = tuple(np.log2(factors).astype(int).tolist())
    return _finished(model), exponents


def replay(model: ModelProto, exponents: Mapping[str, Sequence[int]]) -> ModelProto:
    """Repeat an equalisation from the exponents that `equalise` returned."""
    model = g.copy_model(model)
    editor = _Editor(model)
    for node in list(model.graph.node):
        for name in node.output:
            if name in exponents:
                editor.scale(name, np.exp2(np.asarray(exponents[name])).astype(np.float32))
    return _finished(model)


def _finished(model: ModelProto) -> ModelProto:
    g.prune(model.graph)
    refresh_shapes(model)
    return model


class _Editor:
    """Edits one graph in place; a node gets its own copy of every constant that is changed for it."""

    def __init__(self, model: ModelProto) -> None:
        self.graph: GraphProto = model.graph
        self.constants: dict[str, TensorProto] = g.initializers(model.graph)
        self.made = g.producers(model.graph)
        self.uses = g.consumers(model.graph)
        self.outputs = {value.name for value in model.graph.output}
        self.taken = g.tensor_names(model.graph)
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.shapes = {
            v.name: [d.dim_value if d.HasField("dim_value") else 0 for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    def channels(self, name: str) -> int:
        """Channels of a tensor (N, C, ...), 0 if unknown."""
        shape = self.shapes.get(name, [])
        return shape[1] if len(shape) > 1 else 0

    def readers(self, name: str) -> list[NodeProto]:
        """The convolutions that read a tensor and have constant weights."""
        return [
            node
            for node in self.uses.get(name, [])
            if node.op_type == "Conv"
            and node.input[0] == name
            and node.input[1] in self.constants
            and self.channels(name)
            == int(g.attribute(node, "group", 1)) * self.constants[node.input[1]].dims[1]
        ]

    def scale(self, name: str, factors: Factors) -> bool:
        """Multiply the channels of a tensor; False if that is impossible or changes nothing."""
        readers = self.readers(name)
        plan = self.source_plan(name, factors)
        if plan is None or not readers or (factors == 1).all():
            return False
        for node, factor in plan.weights:
            self._scale_outputs(node, factor)
        for node, index, factor in plan.constants:
            self._scale_constant(node, index, factor)
        for node, index, factor in plan.gates:
            self._insert_mul(node, index, factor)
        for node in readers:
            self._scale_inputs(node, np.reciprocal(factors))
        return True

    def factors(self, ranges: npt.NDArray[np.float64], readers: Sequence[NodeProto]) -> Factors:
        """The factor of each channel, a power of two."""
        largest = ranges.max(initial=0.0)
        if largest <= 0:
            return np.ones(len(ranges), np.float32)
        wanted = largest / np.maximum(ranges, largest * 2.0**-_LARGEST_SHIFT)
        dense = [node for node in readers if int(g.attribute(node, "group", 1)) == 1]
        if dense:
            weights = np.max([self._input_ranges(node) for node in dense], axis=0)
            floor = max(float(weights.max()), 1e-30) * 2.0**-_LARGEST_SHIFT
            wanted = np.sqrt(np.maximum(weights, floor) * wanted)
            wanted /= wanted[np.argmax(ranges)]
        shift = np.clip(np.floor(np.log2(wanted)), -_LARGEST_SHIFT, _LARGEST_SHIFT)
        factors: Factors = np.exp2(shift).astype(np.float32)
        return factors

    def _input_ranges(self, node: NodeProto) -> npt.NDArray[np.float64]:
        weight = np.abs(g.as_array(self.constants[node.input[1]])).astype(np.float64)
        result: npt.NDArray[np.float64] = weight.max(axis=(0, *range(2, weight.ndim)))
        return result

    def plan(self, name: str, factors: Factors) -> _Plan | None:
        """How to multiply a tensor by one factor per channel at its source; None if that would change others."""
        node = self.made.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in ("Conv", "ConvTranspose"):
            fixed = all(source in self.constants for source in node.input[1:] if source)
            return _Plan(weights=[(node, factors)]) if fixed else None
        if node.op_type in _HOMOGENEOUS:
            return self._inner(node.input[0], factors)
        if node.op_type == "Mul":
            return self._plan_mul(node, factors)
        if node.op_type == "Add":
            return self._plan_all([(node, index, factors) for index in range(2)])
        if node.op_type == "Concat" and g.attribute(node, "axis") == 1:
            counts = [self.channels(source) for source in node.input]
            if not all(counts) or sum(counts) != len(factors):
                return None
            parts = np.split(factors, np.cumsum(counts)[:-1])
            return self._plan_all([(node, index, part) for index, part in enumerate(parts)])
        return None

    def source_plan(self, name: str, factors: Factors) -> _Plan | None:
        """As `plan`; None unless only convolutions with constant weights read the tensor."""
        alone = len(self.readers(name)) == len(self.uses[name]) and name not in self.outputs
        return self.plan(name, factors) if alone else None

    def _inner(self, name: str, factors: Factors) -> _Plan | None:
        """The plan for an intermediate tensor, which must have a single reader and as many channels as factors."""
        alone = len(self.uses.get(name, [])) == 1 and name not in self.outputs
        return self.plan(name, factors) if alone and self.channels(name) == len(factors) else None

    def _plan_all(self, slots: Sequence[tuple[NodeProto, int, Factors]]) -> _Plan | None:
        whole = _Plan()
        for node, index, factors in slots:
            name = node.input[index]
            if name in self.constants:
                part = _Plan(constants=[(node, index, factors)]) if self._is_channelwise(name) else None
            else:
                part = self._inner(name, factors)
            if part is None:
                return None
            whole.extend(part)
        return whole

    def _plan_mul(self, node: NodeProto, factors: Factors) -> _Plan | None:
        """Apply the factors to one operand: a constant, else one that can be scaled at its source, else a gate."""
        for index, name in enumerate(node.input):
            if name in self.constants and self._is_channelwise(name):
                return _Plan(constants=[(node, index, factors)])
        for name in node.input:
            if name not in self.constants and (found := self._inner(name, factors)) is not None:
                return found
        for index, name in enumerate(node.input):
            shape = self.shapes.get(name, [])
            if len(shape) == 4 and shape[1:] == [len(factors), 1, 1]:
                return _Plan(gates=[(node, index, factors)])
        return None

    def _is_channelwise(self, name: str) -> bool:
        """Whether a constant is one number, or one per channel as (C, 1, 1) or (1, C, 1, 1)."""
        dims = list(self.constants[name].dims)
        return int(np.prod(dims)) == 1 or (
            len(dims) in (3, 4) and dims[-2:] == [1, 1] and dims[:-3] in ([], [1])
        )

    def _own(self, node: NodeProto, index: int, value: npt.NDArray[np.floating]) -> None:
        """Give a node its own constant."""
        name = g.fresh_name(f"{node.input[index]}/equalised", self.taken)
        g.add_initializer(self.graph, name, value.astype(np.float32))
        self.constants[name] = self.graph.initializer[-1]
        node.input[index] = name

    def _scale_outputs(self, node: NodeProto, factors: Factors) -> None:
        weight = g.as_array(self.constants[node.input[1]])
        if node.op_type == "Conv":
            scaled = weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
        else:  # (C_in, C_out / group, ...): each group's rows have its own output channels
            group = int(g.attribute(node, "group", 1))
            rows = weight.reshape(group, -1, *weight.shape[1:])
            scaled = (rows * factors.reshape(group, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
        self._own(node, 1, scaled)
        if len(node.input) > 2 and node.input[2]:
            self._own(node, 2, g.as_array(self.constants[node.input[2]]) * factors)

    def _scale_inputs(self, node: NodeProto, factors: Factors) -> None:
        weight = g.as_array(self.constants[node.input[1]])
        group = int(g.attribute(node, "group", 1))
        rows = weight.reshape(group, -1, *weight.shape[1:])
        self._own(
            node, 1, (rows * factors.reshape(group, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)
        )

    def _scale_constant(self, node: NodeProto, index: int, factors: Factors) -> None:
        value = g.as_array(self.constants[node.input[index]])
        shape = (-1, 1, 1)
        self._own(node, index, value.reshape(1 if value.size == 1 else -1, 1, 1) * factors.reshape(shape))

    def _insert_mul(self, node: NodeProto, index: int, factors: Factors) -> None:
        """Multiply a gate (N, C, 1, 1) by the factors, for this node only."""
        source = node.input[index]
        target = g.fresh_name(f"{source}/equalised", self.taken)
        factor = g.fresh_name(f"{source}/equaliser", self.taken)
        g.add_initializer(self.graph, factor, factors.reshape(-1, 1, 1))
        self.constants[factor] = self.graph.initializer[-1]
        node.input[index] = target
        made = helper.make_node("Mul", [source, factor], [target], name=f"Mul/{target}")
        place = next(i for i, other in enumerate(self.graph.node) if node.output[0] in other.output)
        self.graph.node.insert(place, made)
