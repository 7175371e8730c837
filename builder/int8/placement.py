"""Puts Q/DQ into an fp32 graph, as TensorRT's explicit quantisation wants them.

A pair on the activation that a layer reads, symmetric, per tensor, and int8 weights behind a lone DequantizeLinear
with a scale for each output channel (axis 0; ConvTranspose axis 1). Nothing is put between a convolution and the
activation function behind it, for the pair stands on what the next layer reads. No bias is quantised: TensorRT's
parser refuses int32 there, and adds biases in the accumulator anyway.

Rounding weights moves a layer's mean output by (W - Wq) E[x]; that is taken off its bias (M. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2, with the measured mean of x).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, version_converter

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import check, refresh_shapes
from centernet_trt.builder.int8.layers import Rules
from centernet_trt.errors import ModelError

__all__ = ["SMALLEST_SCALE", "activation_scale", "place", "raise_opset", "residual_skips"]

LEVELS = 127
"""Largest magnitude of the symmetric int8 that scales are made for."""
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""2^-14, the smallest scale that fp16 holds to full precision; a scale of 0 would be refused by TensorRT."""
_WITH_HALF_SCALES = 19

Scales = npt.NDArray[np.float32]


def raise_opset(model: ModelProto) -> ModelProto:
    """Return the model at opset 19 or newer, where Q/DQ may be fp16; as it is where ONNX cannot convert it.

    Older graphs work too: their fp32 scales then cost Cast nodes in the fp16 graph.
    """
    if g.main_opset(model) >= _WITH_HALF_SCALES:
        return model
    try:
        raised = version_converter.convert_version(model, _WITH_HALF_SCALES)
        check(raised)
    except (RuntimeError, ValueError, version_converter.ConvertError, ModelError):
        return model
    kept = [list(node.output) for node in model.graph.node] == [
        list(node.output) for node in raised.graph.node
    ]
    if not kept:
        return model  # calibration is kept by tensor name
    raised.ir_version = max(raised.ir_version, 9)
    raised = g.name_nodes(raised)
    refresh_shapes(raised)
    return raised


def activation_scale(threshold: float, rules: Rules | None = None) -> float:
    """The scale of an activation: threshold / 127, not below `SMALLEST_SCALE`, rounded to fp16 by rule."""
    scale = max(threshold / LEVELS, SMALLEST_SCALE)
    half = rules is None or rules.half_scales
    return (
        float(np.float16(scale)) if half and scale <= np.finfo(np.float16).max else float(np.float32(scale))
    )


def place(
    model: ModelProto,
    thresholds: Mapping[str, float],
    layers: Collection[str],
    rules: Rules | None = None,
    skips: Collection[tuple[str, str]] = (),
    means: Mapping[str, Sequence[float]] | None = None,
) -> ModelProto:
    """Return the graph with these layers in int8.

    Args:
        model: fp32, named nodes, batch norms folded.
        thresholds: largest magnitude that int8 shall represent, by tensor; of every tensor that a layer reads.
        layers: names of Conv, ConvTranspose and Gemm nodes with constant weights.
        rules: see `Rules`; those on which layers to take have no effect here.
        means: mean of each channel of a tensor; biases are corrected where it is known, by rule.
        skips: (node, tensor) of additions whose operand is quantised too, from `residual_skips`.
    """
    model = g.copy_model(model)
    rules = rules or Rules()
    writer = _Writer(model, thresholds, rules)
    for node in model.graph.node:
        if node.name in layers:
            mean = (means or {}).get(node.input[0])
            writer.quantise(node, mean if rules.correct_bias else None)
        for name, tensor in skips:
            if node.name == name:
                index = list(node.input).index(tensor)
                node.input[index] = writer.pair(tensor)
    writer.insert()
    g.prune(model.graph)
    refresh_shapes(model)
    return model


@dataclass(frozen=True)
class _Weight:
    """A weight in int8: its dequantised twin, and what the rounding took off it."""

    name: str
    lost: npt.NDArray[np.float64]


class _Writer:
    """Makes the Q/DQ nodes of one graph; `insert` puts each behind the node that makes its input."""

    def __init__(self, model: ModelProto, thresholds: Mapping[str, float], rules: Rules) -> None:
        self.graph = model.graph
        self.thresholds = thresholds
        self.rules = rules
        self.constants = g.initializers(model.graph)
        self.taken = g.tensor_names(model.graph)
        self.pairs: dict[str, str] = {}
        self.weights: dict[tuple[str, int], _Weight] = {}
        self.behind: dict[str, list[NodeProto]] = {}
        self.first: list[NodeProto] = []

    def quantise(self, node: NodeProto, mean: Sequence[float] | None) -> None:
        """Let a layer read int8; with the mean of its input's channels its bias is corrected."""
        weight, activation = node.input[1], node.input[0]
        node.input[0] = self.pair(activation)
        axis = _channel_axis(node)
        if (weight, axis) not in self.weights:
            self.weights[weight, axis] = self._weight(weight, axis)
        node.input[1] = self.weights[weight, axis].name
        if mean is not None and node.op_type != "ConvTranspose":
            moved = _mean_output(self.weights[weight, axis].lost, np.asarray(mean), node)
            if moved is not None:
                self._add_to_bias(node, moved)

    def _add_to_bias(self, node: NodeProto, moved: npt.NDArray[np.float64]) -> None:
        """Give a layer a bias of its own; one that is not a constant is left as it is."""
        old = node.input[2] if len(node.input) > 2 else ""
        if old and (old not in self.constants or self.constants[old].dims != [len(moved)]):
            return
        bias = g.as_array(self.constants[old]) if old else np.zeros(len(moved))
        name = self._fresh(f"{node.output[0]}/corrected_bias")
        g.add_initializer(self.graph, name, (bias + moved).astype(np.float32))
        del node.input[2:]
        node.input.append(name)

    def pair(self, tensor: str) -> str:
        """The tensor's dequantised twin; one for all who ask, by rule."""
        if tensor in self.pairs and self.rules.shared_pairs:
            return self.pairs[tensor]
        scale = self._fresh(f"{tensor}/scale")
        zero = self._fresh(f"{tensor}/zero_point")
        value = activation_scale(self.thresholds[tensor], self.rules)
        g.add_initializer(self.graph, scale, np.array(value, np.float32))
        g.add_initializer(self.graph, zero, np.array(0, np.int8))
        small, back = self._fresh(f"{tensor}/int8"), self._fresh(f"{tensor}/dequantised")
        nodes = [
            helper.make_node("QuantizeLinear", [tensor, scale, zero], [small], name=f"Quantize/{small}"),
            helper.make_node("DequantizeLinear", [small, scale, zero], [back], name=f"Dequantize/{back}"),
        ]
        self.behind.setdefault(tensor, []).extend(nodes)
        self.pairs[tensor] = back
        return back

    def _weight(self, name: str, axis: int) -> _Weight:
        """Store a weight as int8."""
        weight = g.as_array(self.constants[name]).astype(np.float32)
        scales = weight_scales(weight, axis if self.rules.per_channel else None, self.rules)
        shape = [1] * weight.ndim
        if scales.ndim:
            shape[axis] = -1
        steps = np.rint(weight.astype(np.float64) / scales.reshape(shape))
        small, scale = self._fresh(f"{name}/int8"), self._fresh(f"{name}/scale")
        back = self._fresh(f"{name}/dequantised")
        steps = np.clip(steps, -LEVELS, LEVELS)
        g.add_initializer(self.graph, small, steps.astype(np.int8))
        g.add_initializer(self.graph, scale, scales)
        made = helper.make_node("DequantizeLinear", [small, scale], [back], name=f"Dequantize/{back}")
        if scales.ndim:
            made.attribute.append(helper.make_attribute("axis", axis))
        self.first.append(made)
        return _Weight(back, weight - steps * scales.reshape(shape).astype(np.float64))

    def _fresh(self, base: str) -> str:
        return g.fresh_name(base, self.taken)

    def insert(self) -> None:
        """Bring the new nodes into the graph, in an order that computes every tensor before it is read."""
        nodes = list(self.first)
        for value in self.graph.input:
            nodes += self.behind.get(value.name, [])
        for node in self.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self.behind.get(name, [])
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)


def weight_scales(weight: npt.NDArray[np.float32], axis: int | None, rules: Rules) -> Scales:
    """The scale of each channel along `axis`, (C,) float32, or one, (), for the whole weight (axis None).

    The largest magnitude / 127. A channel of zeros takes the largest scale of the others: any positive one is right.
    Scales are rounded to fp16 by rule, all or none: fp16's subnormal numbers would be off by up to 1.6 % at 1e-4.
    """
    kept = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    amax = np.abs(weight.astype(np.float64)).max(axis=kept)
    largest = float(np.max(amax)) or 1.0
    scales = np.where(amax > 0, amax, largest) / LEVELS
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if rules.half_scales and scales.min() >= SMALLEST_SCALE and np.isfinite(half).all():
        scales = half.astype(np.float64)
    # A channel far below fp32's own range would get a scale of 0, which TensorRT refuses.
    return np.maximum(scales.astype(np.float32), np.float32(1e-30))


def _mean_output(
    lost: npt.NDArray[np.float64], mean: npt.NDArray[np.float64], node: NodeProto
) -> npt.NDArray[np.float64] | None:
    """(C_out,): what the lost part of the weights adds to the mean output, borders aside; None if shapes do not fit."""
    if node.op_type == "Gemm":
        rows = lost if g.attribute(node, "transB", 0) else lost.T
        return rows @ mean * float(g.attribute(node, "alpha", 1.0)) if rows.shape[1] == len(mean) else None
    group = int(g.attribute(node, "group", 1))
    taps = lost.sum(axis=tuple(range(2, lost.ndim)))  # (C_out, C_in / group)
    if taps.shape[1] * group != len(mean):
        return None
    inputs = np.repeat(mean.reshape(group, -1), len(taps) // group, axis=0)
    moved: npt.NDArray[np.float64] = (taps * inputs).sum(axis=1)
    return moved


def _channel_axis(node: NodeProto) -> int:
    """The axis of the weights along which the output channels lie.

    Of a grouped ConvTranspose, (C_in, C_out / group, ...), axis 1 holds the channels of one group: groups share scales.
    """
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if g.attribute(node, "transB", 0) else 1
    return 0


def residual_skips(model: ModelProto, layers: Collection[str]) -> list[tuple[str, str]]:
    """The skip operand of each addition that an int8 layer feeds: (node, tensor).

    The layer's own output is the other operand, and nobody else reads it. Of two such layers the later one is taken
    to be the one that the addition fuses with.
    """
    made, uses = g.producers(model.graph), g.consumers(model.graph)
    order = {node.output[0]: index for index, node in enumerate(model.graph.node)}
    constants = g.initializers(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in constants for name in node.input):
            continue
        fed = [
            name for name in node.input if name in made and made[name].name in layers and len(uses[name]) == 1
        ]
        if fed:
            own = max(fed, key=lambda name: order[name])
            found += [(node.name, name) for name in node.input if name != own]
    return found
