"""Write DeformConv in standard operators that compute the same: lower_deform_conv."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import element_types, refresh_shapes
from centernet_trt.builder.passes.deform_geometry import Geometry, is_standard, read_geometry

__all__ = ["column_bytes", "lower_deform_conv"]

# Grid positions beyond 3 sample zeros only, even on a map that is one cell wide. Implementations convert positions to
# integers, which extreme offsets would overflow.
_GRID_LIMIT = 4.0


def lower_deform_conv(model: ModelProto) -> ModelProto:
    """Replace every DeformConv by GridSample, a multiplication by the mask and a 1x1 Conv.

    The K = kh * kw samples of an output pixel are K rows of one bilinear GridSample (zeros outside, as DeformConv). A 1x1
    convolution over C * K channels multiplies them by the weights. Groups, offset groups, strides, dilations, uneven
    pads, an absent mask or bias, and dynamic sizes are supported.

    Cost: GridSample writes the samples, N * C * K * OH * OW float32 elements (`column_bytes`); the mask reads and writes
    them again, the convolution reads them. The convolution's multiply-adds stay the same; sampling adds four per sample.

    The grid and the sampling are float32 for any type of the node: an fp16 grid is off by 1/64 px at width 128.

    Args:
        model: opset 16 or newer, the weights of DeformConv constant. One without DeformConv is returned unchanged.

    Returns:
        The model; the nodes that replace `NAME` are called `NAME/...`, its output keeps its name.

    Raises:
        ModelError: weights are not constant, or shapes contradict each other.
    """
    if not any(is_standard(node) for node in model.graph.node):
        return model
    types = _element_types(model)
    model = g.copy_model(model)
    graph = model.graph
    constants = g.initializers(graph)
    taken = g.tensor_names(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if is_standard(node):
            nodes.extend(_Lowering(graph, taken, node, read_geometry(node, constants, {}), types).nodes)
        else:
            nodes.append(node)
    # Some nodes belong to this graph: copy them before its list is emptied.
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    g.prune(graph)
    return model


def column_bytes(channels: int, kernel: tuple[int, int], height: int, width: int, *, batch: int = 1) -> int:
    """Bytes of the float32 samples of one lowered deformable convolution.

    Args:
        channels: input channels.
        kernel: (kh, kw).
        height: rows of the output.
        width: columns of the output.
        batch: images.
    """
    return 4 * batch * channels * kernel[0] * kernel[1] * height * width


def _element_types(model: ModelProto) -> dict[str, int]:
    copy = g.copy_model(model)
    refresh_shapes(copy)
    return element_types(copy)


class _Lowering:
    """Writes the nodes that replace one DeformConv.

    Every Reshape has a constant shape (0 copies a dimension, -1 is computed), so that shape inference works for any batch
    and size; with G offset groups and K taps, (N, G * K, OH, OW) becomes (N * G, 1, K * OH, OW).
    """

    def __init__(
        self,
        graph: GraphProto,
        taken: set[str],
        node: NodeProto,
        geometry: Geometry,
        types: Mapping[str, int],
    ) -> None:
        self.graph = graph
        self.taken = taken
        self.base = node.name or node.output[0]
        self.output = node.output[0]
        self.geometry = geometry
        self.type = types.get(geometry.inputs[0], int(TensorProto.FLOAT))
        self.nodes: list[NodeProto] = []
        self._write()

    def _write(self) -> None:
        geometry = self.geometry
        x, weight, offset, bias, mask = geometry.inputs
        weights = g.as_array(g.initializers(self.graph)[weight])
        channels = weights.shape[1] * geometry.group
        taps = geometry.kernel[0] * geometry.kernel[1]
        samples = self._samples(self._as_float(x, "x"), self._as_float(offset, "offset"), channels)
        if mask:
            samples = self._op("Mul", [samples, self._rows(mask, "mask")], "modulated")
        if geometry.offset_group > 1:
            samples = self._reshape(samples, [-1, channels, 0, 0], "ungrouped")
        columns = self._reshape(samples, [0, channels * taps, -1, 0], "columns")
        flat = self._constant(weights.reshape(weights.shape[0], -1, 1, 1), "weight")
        made = self._op(
            "Conv",
            [columns, flat, *([bias] if bias else [])],
            "conv",
            kernel_shape=[1, 1],
            group=geometry.group,
        )
        self.nodes[-1].output[0] = self.output
        self.taken.discard(made)

    def _samples(self, x: str, offset: str, channels: int) -> str:
        """The samples, (N * G, C / G, K * OH, OW), in the type of the node."""
        x_size = self._op("Shape", [x], "x_size", start=2, end=4)
        size = self._op("Shape", [offset], "size", start=2, end=4)
        places = [self._rows(self._places(offset, x_size, size, axis), "yx"[axis]) for axis in (1, 0)]
        grid = self._op("Concat", places, "grid_planes", axis=1)  # x before y
        grid = self._op("Transpose", [grid], "grid", perm=[0, 2, 3, 1])
        if self.geometry.offset_group > 1:
            x = self._reshape(x, [-1, channels // self.geometry.offset_group, 0, 0], "x_groups")
        samples = self._op(
            "GridSample", [x, grid], "samples", mode="bilinear", padding_mode="zeros", align_corners=0
        )
        if self.type == TensorProto.FLOAT:
            return samples
        return self._op("Cast", [samples], "samples_typed", to=self.type)

    def _places(self, offset: str, x_size: str, size: str, axis: int) -> str:
        """Sampling positions along one axis (0: y, 1: x), (N, G * K, OH, OW), in GridSample's range -1 .. 1.

        The cell p of a side of S cells is at (2 p + 1) / S - 1 = (2 p + 1 - S) / S (align_corners = 0).
        """
        letter = "yx"[axis]
        # Channels are (dy, dx) per tap of each group.
        every_other = [self._ints([n], f"slice_{n}") for n in (axis, np.iinfo(np.int64).max, 1, 2)]
        moved = self._op("Slice", [offset, *every_other], f"d{letter}")
        cell = self._op("Add", [moved, self._cells(size, axis)], f"cell_{letter}")
        side = self._op(
            "Cast", [self._side(x_size, axis, f"x_{letter}")], f"side_{letter}", to=TensorProto.FLOAT
        )
        two, one = self._constant(np.float32(2), "two"), self._constant(np.float32(1), "one")
        first = self._op("Sub", [one, side], f"first_{letter}")
        twice = self._op("Mul", [cell, two], f"twice_{letter}")
        place = self._op(
            "Div", [self._op("Add", [twice, first], f"from_middle_{letter}"), side], f"place_{letter}"
        )
        bounds = [
            self._constant(np.float32(limit), f"limit_{limit:+.0f}") for limit in (-_GRID_LIMIT, _GRID_LIMIT)
        ]
        return self._op("Clip", [place, *bounds], f"bounded_{letter}")

    def _cells(self, size: str, axis: int) -> str:
        """The undeformed cell of each tap at each output row or column: (G * K, OH, 1) or (G * K, 1, OW), float32."""
        geometry, letter = self.geometry, "yx"[axis]
        tap = np.indices(geometry.kernel)[axis].reshape(-1, 1, 1)
        first = (tap * geometry.dilations[axis] - geometry.pads[axis]).astype(np.float32)
        first = np.tile(first, (geometry.offset_group, 1, 1))
        start, step = (self._constant(np.array(n, np.int64), f"range_{n}") for n in (0, 1))
        steps = self._op("Range", [start, self._side(size, axis, f"count_{letter}"), step], f"range_{letter}")
        steps = self._op("Cast", [steps], f"steps_{letter}", to=TensorProto.FLOAT)
        if geometry.strides[axis] > 1:
            stride = self._constant(np.float32(geometry.strides[axis]), f"stride_{letter}")
            steps = self._op("Mul", [steps, stride], f"strided_{letter}")
        if axis == 0:
            steps = self._op("Unsqueeze", [steps, self._ints([-1], "last")], "column_y")
        return self._op("Add", [self._constant(first, f"taps_{letter}"), steps], f"cells_{letter}")

    def _rows(self, x: str, name: str) -> str:
        """(N, G * K, OH, OW) -> (N * G, 1, K * OH, OW)."""
        groups = self.geometry.offset_group
        if groups > 1:
            x = self._reshape(x, [0, groups, -1, 0], f"{name}_groups")
            return self._reshape(x, [-1, 1, 0, 0], f"{name}_rows")
        return self._reshape(x, [0, 1, -1, 0], f"{name}_rows")

    def _op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        output = g.fresh_name(f"{self.base}/{name}", self.taken)
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def _constant(self, value: NDArray[Any] | np.float32, name: str) -> str:
        full = g.fresh_name(f"{self.base}/{name}", self.taken)
        g.add_initializer(self.graph, full, np.asarray(value))
        return full

    def _ints(self, values: Sequence[int], name: str) -> str:
        return self._constant(np.array(values, np.int64), f"{name}_int")

    def _side(self, shape: str, axis: int, name: str) -> str:
        """One entry of a shape, a scalar."""
        return self._op(
            "Gather", [shape, self._constant(np.array(axis, np.int64), f"axis_{name}")], name, axis=0
        )

    def _reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        return self._op("Reshape", [x, self._ints(shape, f"{name}_shape")], name)

    def _as_float(self, x: str, name: str) -> str:
        if self.type == TensorProto.FLOAT:
            return x
        return self._op("Cast", [x], f"{name}_fp32", to=TensorProto.FLOAT)
