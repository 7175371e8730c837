"""Find the tensors whose values fp16 cannot represent."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.calibration.statistics import Simulation, batches
from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.builder.graph.shapes import element_types
from centernet_trt.errors import ModelError
from centernet_trt.evaluation.environment import available_cores
from centernet_trt.runtime.spec import InputSpec

FP16_LARGEST = float(np.finfo(np.float16).max)
FP16_INFINITE = 65520.0  # halfway to the next power of two: values from here round to infinity
FP16_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
# Other images may exceed the range measured on some: half of the range of fp16 stays free.
HEADROOM = 2.0
# Subnormal values are counted among one of so many values, since counting costs more than finding the largest.
SAMPLE = 64


@dataclass(frozen=True)
class TensorRange:
    """Statistics of a tensor over all images.

    Attributes:
        largest: largest magnitude.
        subnormal: sampled values that are not zero but below fp16's smallest normal number 6.1e-5, where its precision
            decreases.
        looked_at: number of sampled values: one in `SAMPLE`.
    """

    largest: float = 0.0
    subnormal: int = 0
    looked_at: int = 0

    @property
    def overflows(self) -> bool:
        """Whether a value rounds to infinity in fp16."""
        return self.largest >= FP16_INFINITE

    def joined(self, other: "TensorRange") -> "TensorRange":
        """The statistics of both together."""
        return TensorRange(
            max(self.largest, other.largest),
            self.subnormal + other.subnormal,
            self.looked_at + other.looked_at,
        )


def affordable(
    model: ModelProto, images: Sequence[CalibrationImage], work: float | None, fewest: int = 2
) -> Sequence[CalibrationImage]:
    """The first images whose forward passes at 512x512 pixels cost at most `work` multiply-adds together.

    At least `fewest`; all if `work` is None, or the network's multiply-adds cannot be counted.
    """
    if work is None:
        return images
    try:
        each = count_complexity(model, 512, 512).multiply_adds
    except ModelError:  # a graph that does not accept this size
        return images
    return images[: max(fewest, int(work // max(each, 1)))]


def underflow_notes(ranges: Mapping[str, TensorRange]) -> list[str]:
    """A note about tensors most of whose values are subnormal in fp16; empty if there are none."""
    names = [name for name, seen in ranges.items() if seen.subnormal > seen.looked_at / 2]
    if not names:
        return []
    worst = max(names, key=lambda name: ranges[name].subnormal / ranges[name].looked_at)
    share = ranges[worst].subnormal / ranges[worst].looked_at
    where = f"in {len(names)} of {len(ranges)} tensors most values are below 6.1e-5"
    return [f"fp16 ranges: {where}, where fp16 has fewer digits; in {worst}, {share:.0%}"]


def measure_ranges(
    model: ModelProto,
    images: Sequence[CalibrationImage],
    spec: InputSpec,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TensorRange]:
    """Measure the range of every float tensor that the nodes of an fp32 graph compute.

    Nodes behind each tensor reduce it to three numbers and a sample, so that the memory is little more than that of
    running the network on one image.

    Args:
        model: fp32, named nodes, every tensor's type known (`graph.shapes.refresh_shapes`).
        images: to run it on.
        spec: pre-processing.
        progress: called with (images done, total).

    Returns:
        By tensor name; empty for a graph whose tensors are fp16 already.

    Raises:
        ModelError: a tensor is NaN or infinite in fp32 already.
    """
    kinds = element_types(model)
    names = [n for node in model.graph.node for n in node.output if kinds.get(n) == TensorProto.FLOAT]
    if not names:  # exported in fp16
        return {}
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    ranges = dict.fromkeys(names, TensorRange())
    simulation = Simulation(_with_counters(model, names), threads=available_cores(), in_order=True)
    for row, batch in enumerate(batches(images, spec)):
        counted = simulation.run(batch.tensor.astype(dtype, copy=False))
        for name in names:
            seen = _seen(counted, name)
            if seen is None:
                raise ModelError(
                    f"tensor {name!r} is NaN or infinite on {batch.names[0]} in fp32 already",
                    "the network itself overflows; check the weights and the pre-processing of the spec",
                )
            ranges[name] = ranges[name].joined(seen)
        if progress is not None:
            progress(row + 1, len(images))
    return ranges


def _seen(counted: Mapping[str, NDArray[np.float32]], name: str) -> TensorRange | None:
    """Statistics of a tensor from the outputs of one run; None if it is NaN or infinite."""
    highest, lowest, total = (float(counted[_part(name, kind)]) for kind in ("max", "min", "sum"))
    if not np.isfinite((highest, lowest, total)).all():
        return None
    sizes = np.abs(counted[_part(name, "sample")])
    subnormal = int(np.count_nonzero((sizes < FP16_SMALLEST_NORMAL) & (sizes > 0)))
    return TensorRange(max(highest, -lowest), subnormal, sizes.size)


def _part(name: str, kind: str) -> str:
    return f"{name}/range/{kind}"


def _with_counters(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Add four outputs per tensor: largest and smallest value, sum of magnitudes (which shows NaN), sample of values.

    The counters directly follow the node that makes the tensor, so that its memory is freed early. There are as few
    nodes as possible: ONNX Runtime's time to load a graph grows with the square of their number.
    """
    model = g.copy_model(model)
    graph, wanted = model.graph, set(names)
    constants = {
        "flat": [-1],
        "begin": [0],
        "end": [np.iinfo(np.int64).max],
        "step": [SAMPLE],
    }
    for key, value in constants.items():
        g.add_initializer(graph, f"range/{key}", np.array(value, dtype=np.int64))
    del graph.output[:]
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(NodeProto.FromString(node.SerializeToString()))
        for name in node.output:
            if name in wanted:
                nodes += _counting_nodes(name)
                for kind in ("max", "min", "sum", "sample"):
                    graph.output.append(
                        helper.make_tensor_value_info(_part(name, kind), TensorProto.FLOAT, None)
                    )
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _counting_nodes(name: str) -> list[NodeProto]:
    def node(op: str, sources: Sequence[str], kind: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, sources, [_part(name, kind)], name=_part(name, kind), **attributes)

    return [
        node("ReduceMax", [name], "max", keepdims=0),
        node("ReduceMin", [name], "min", keepdims=0),
        node("ReduceL1", [name], "sum", keepdims=0),
        node("Reshape", [name, "range/flat"], "flat"),
        node(
            "Slice",
            [_part(name, "flat"), "range/begin", "range/end", "range/begin", "range/step"],
            "sample",
        ),
    ]


def nodes_beyond_fp16(
    model: ModelProto, ranges: dict[str, TensorRange], *, heads_in_fp32: bool = False
) -> dict[str, str]:
    """Find the nodes that must stay fp32, since they make or read a tensor that fp16 cannot represent.

    That is one with a value too large, or all of whose values are too small: its largest is below fp16's normal
    numbers. `ReduceL2` sums squares, so the square of its result counts.

    Args:
        model: named nodes.
        ranges: from `measure_ranges`.
        heads_in_fp32: the graph's outputs will be fp32.

    Returns:
        The reason by node name.

    Raises:
        ModelError: a graph output is too large for fp16.
    """
    for value in model.graph.output:
        seen = ranges.get(value.name)
        if not heads_in_fp32 and seen is not None and seen.overflows:
            raise ModelError(
                f"head {value.name!r} reaches {seen.largest:.3g}, the largest fp16 number is {FP16_LARGEST:.0f}",
                "build with --heads fp32, or with --precision fp32",
            )
    outside = {name for name, seen in ranges.items() if _is_outside(seen.largest)}
    kept = {}
    for node in model.graph.node:
        touched = [name for name in (*node.output, *g.node_uses(node)) if name in outside]
        if touched:
            kept[node.name] = (
                f"tensor {touched[0]} reaches {ranges[touched[0]].largest:.3g} on the calibration images"
            )
        elif node.op_type == "ReduceL2" and node.output[0] in ranges:
            squares = ranges[node.output[0]].largest ** 2
            if _is_outside(squares):
                kept[node.name] = f"its sum of squares reaches {squares:.3g} on the calibration images"
    return kept


def _is_outside(largest: float) -> bool:
    """Whether a tensor with this largest magnitude is too large or too small for fp16; not if it is always 0."""
    return largest * HEADROOM > FP16_LARGEST or 0 < largest < FP16_SMALLEST_NORMAL


def nodes_of_heads(model: ModelProto) -> dict[str, str]:
    """Find the nodes from each head's last convolution to its output, which stay fp32 for fp32 heads.

    Returns:
        The reason by node name.
    """
    made = g.producers(model.graph)
    kept: dict[str, str] = {}
    for value in model.graph.output:
        name: str | None = value.name
        while name is not None and (node := made.get(name)) is not None:
            kept[node.name] = f"makes the fp32 head {value.name}"
            name = None if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else node.input[0]
    return kept
