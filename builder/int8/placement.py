"""Insert Q/DQ nodes into an fp32 graph, as TensorRT's explicit quantisation expects them.

A symmetric, per-tensor Q/DQ pair on the activation that a layer reads, and int8 weights behind a single
DequantizeLinear with a scale for each output channel (axis 0; ConvTranspose axis 1). There is no pair between a
convolution and its activation function: the pair follows the tensor that the next layer reads. Biases are not
quantised: TensorRT's parser refuses int32 there, and adds biases in the accumulator anyway.

Rounding weights shifts a layer's mean output by (W - Wq) E[x]; that is taken off its bias (M. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2, with the measured mean of x).

Scales are rounded to fp16 where fp16 represents them well, so that the fp16 graph has no Cast between a
DequantizeLinear and its convolution.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, version_converter

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import check, refresh_shapes
from centernet_trt.errors import ModelError

__all__ = ["SMALLEST_SCALE", "activation_scale", "place", "raise_opset", "residual_skips"]

LEVELS = 127
"""Largest magnitude of symmetric int8."""
SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""2^-14, the smallest scale that fp16 represents with full precision; TensorRT refuses a scale of 0."""
_LARGEST_HALF = float(np.finfo(np.float16).max)
_WITH_HALF_SCALES = 19

Scales = npt.NDArray[np.float32]


def raise_opset(model: ModelProto) -> ModelProto:
    """Return the model at opset 19 or newer, where Q/DQ may be fp16; unchanged if ONNX cannot convert it.

    Older graphs work too: their fp32 scales cost Cast nodes in the fp16 graph.
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
        return model  # calibration is stored by tensor name
    raised.ir_version = max(raised.ir_version, 9)
    raised = g.name_nodes(raised)
    refresh_shapes(raised)
    return raised


def activation_scale(threshold: float) -> float:
    """The scale of an activation: threshold / 127, at least `SMALLEST_SCALE`, rounded to fp16 unless too large."""
    scale = max(threshold / LEVELS, SMALLEST_SCALE)
    return float(np.float16(scale)) if scale <= _LARGEST_HALF else float(np.float32(scale))


def place(
    model: ModelProto,
    thresholds: Mapping[str, float],
    layers: Collection[str],
    *,
    skips: Collection[tuple[str, str]] = (),
    means: Mapping[str, Sequence[float]] | None = None,
) -> ModelProto:
    """Return the graph with these layers in int8.

    Args:
        model: fp32, named nodes, batch norms folded.
        thresholds: largest magnitude that int8 represents, by tensor; for every tensor that a layer reads.
        layers: names of Conv, ConvTranspose and Gemm nodes with constant weights.
        skips: (node, tensor) of additions whose operand is quantised too, from `residual_skips`.
        means: mean of each channel, by tensor; the biases of layers that read one of these are corrected.
    """
    model = g.copy_model(model)
    writer = _Writer(model, thresholds)
    for node in model.graph.node:
        if node.name in layers:
            writer.quantise(node, (means or {}).get(node.input[0]))
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
    """A weight in int8: name of the dequantised tensor, and the rounding error, weight - dequantised."""

    name: str
    lost: npt.NDArray[np.float64]


class _Writer:
    """Makes the Q/DQ nodes of one graph; `insert` puts each behind the node that makes its input."""

    def __init__(self, model: ModelProto, thresholds: Mapping[str, float]) -> None:
        self.graph = model.graph
        self.thresholds = thresholds
        self.constants = g.initializers(model.graph)
        self.taken = g.tensor_names(model.graph)
        self.pairs: dict[str, str] = {}
        self.weights: dict[tuple[str, int], _Weight] = {}
        self.behind: dict[str, list[NodeProto]] = {}
        self.first: list[NodeProto] = []

    def quantise(self, node: NodeProto, mean: Sequence[float] | None) -> None:
        """Make a layer read int8; `mean`, of the channels of its input, corrects its bias."""
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
        """Give a layer its own bias; a bias that is not constant stays unchanged."""
        old = node.input[2] if len(node.input) > 2 else ""
        if old and (old not in self.constants or self.constants[old].dims != [len(moved)]):
            return
        bias = g.as_array(self.constants[old]) if old else np.zeros(len(moved))
        name = self._fresh(f"{node.output[0]}/corrected_bias")
        g.add_initializer(self.graph, name, (bias + moved).astype(np.float32))
        del node.input[2:]
        node.input.append(name)

    def pair(self, tensor: str) -> str:
        """Name of the dequantised tensor; all readers share one pair."""
        if tensor in self.pairs:
            return self.pairs[tensor]
        scale = self._fresh(f"{tensor}/scale")
        zero = self._fresh(f"{tensor}/zero_point")
        value = activation_scale(self.thresholds[tensor])
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
        scales = weight_scales(weight, axis)
        shape = [1] * weight.ndim
        shape[axis] = -1
        steps = np.rint(weight.astype(np.float64) / scales.reshape(shape))
        small, scale = self._fresh(f"{name}/int8"), self._fresh(f"{name}/scale")
        back = self._fresh(f"{name}/dequantised")
        steps = np.clip(steps, -LEVELS, LEVELS)
        g.add_initializer(self.graph, small, steps.astype(np.int8))
        g.add_initializer(self.graph, scale, scales)
        self.first.append(
            helper.make_node("DequantizeLinear", [small, scale], [back], name=f"Dequantize/{back}", axis=axis)
        )
        return _Weight(back, weight - steps * scales.reshape(shape).astype(np.float64))

    def _fresh(self, base: str) -> str:
        return g.fresh_name(base, self.taken)

    def insert(self) -> None:
        """Insert the new nodes in topological order."""
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


def weight_scales(weight: npt.NDArray[np.float32], axis: int) -> Scales:
    """The scale of each channel along `axis`, (C,) float32: largest magnitude / 127.

    A channel of zeros takes the largest scale of the others: any positive one is right. Either all scales are rounded
    to fp16 or none: fp16's subnormal numbers would be off by up to 1.6 % at 1e-4.
    """
    kept = tuple(i for i in range(weight.ndim) if i != axis)
    amax = np.abs(weight.astype(np.float64)).max(axis=kept)
    largest = float(np.max(amax)) or 1.0
    scales = np.where(amax > 0, amax, largest) / LEVELS
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if scales.min() >= SMALLEST_SCALE and np.isfinite(half).all():
        scales = half.astype(np.float64)
    # A channel far below the range of fp32 would get a scale of 0, which TensorRT refuses.
    return np.maximum(scales.astype(np.float32), np.float32(1e-30))


def _mean_output(
    lost: npt.NDArray[np.float64], mean: npt.NDArray[np.float64], node: NodeProto
) -> npt.NDArray[np.float64] | None:
    """Shift of the mean output by the rounding error, (C_out,), ignoring borders; None if shapes do not fit."""
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
    """The output channel axis of the weights.

    Axis 1 of a grouped ConvTranspose, (C_in, C_out / group, ...), has the channels of one group: groups share scales.
    """
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if g.attribute(node, "transB", 0) else 1
    return 0


def residual_skips(model: ModelProto, layers: Collection[str]) -> list[tuple[str, str]]:
    """The skip operand of each addition that an int8 layer feeds: (node, tensor).

    The other operand is the layer's own output, which nothing else reads. If both operands are such outputs, the
    addition is assumed to fuse with the later layer.
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
