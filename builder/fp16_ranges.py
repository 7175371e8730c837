"""Which tensors of a graph fp16 cannot hold: the graph is run in fp32 on images, and every tensor rounded to fp16.

ONNX Runtime cannot show an overflow inside an operation, so nothing but the fp32 values tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder import graph as g
from centernet_trt.builder.calibration.activations import Simulation, batches
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.inference import element_types
from centernet_trt.errors import ModelError
from centernet_trt.evaluation.environment import available_cores
from centernet_trt.runtime.spec import InputSpec

FP16_LARGEST = float(np.finfo(np.float16).max)
FP16_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
# A range measured on some images says little about the next one: half of what fp16 holds is kept free.
HEADROOM = 2.0


@dataclass(frozen=True)
class TensorRange:
    """What was seen of a tensor over all images.

    Attributes:
        largest: largest finite magnitude.
        overflowing: values that are infinite in fp16.
        subnormal: values, not zero, below fp16's smallest normal number 6.1e-5, where its precision fades.
        values: all values.
    """

    largest: float = 0.0
    overflowing: int = 0
    subnormal: int = 0
    values: int = 0

    def joined(self, other: "TensorRange") -> "TensorRange":
        """Both together."""
        return TensorRange(
            max(self.largest, other.largest),
            self.overflowing + other.overflowing,
            self.subnormal + other.subnormal,
            self.values + other.values,
        )


def measure_ranges(
    model: ModelProto,
    images: Sequence[CalibrationImage],
    spec: InputSpec,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TensorRange]:
    """The range of every float tensor that the nodes of an fp32 graph compute.

    The graph itself counts: behind each tensor stand nodes that reduce it to five numbers, so that memory is what
    ONNX Runtime needs to run the network once.

    Args:
        model: fp32, named nodes, every tensor's type stated (`inference.refresh_shapes`).
        images: what to run it on.
        spec: how an image becomes the input.
        progress: called with (images done, images in all).

    Raises:
        ModelError: a tensor is NaN or infinite in fp32 already.
    """
    kinds = element_types(model)
    names = [n for node in model.graph.node for n in node.output if kinds.get(n) == TensorProto.FLOAT]
    if not names:  # exported in fp16: every tensor is fp16 already
        return {}
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    ranges = dict.fromkeys(names, TensorRange())
    simulation = Simulation(_with_counters(model, names), threads=available_cores())
    for row, batch in enumerate(batches(images, spec)):
        counted = simulation.run(batch.tensor.astype(dtype, copy=False))
        for name in names:
            largest, total, overflowing, small, nonzero, values = counted[_counter(name)].tolist()
            if not np.isfinite((largest, total)).all():
                raise ModelError(
                    f"tensor {name!r} is NaN or infinite on {batch.names[0]} in fp32 already",
                    "the network itself overflows; check the weights and the pre-processing of the spec",
                )
            subnormal = int(small - (values - nonzero))  # zeros are small, but exact
            seen = TensorRange(largest, int(overflowing), subnormal, int(values))
            ranges[name] = ranges[name].joined(seen)
        if progress is not None:
            progress(row + 1, len(images))
    return ranges


def _counter(name: str) -> str:
    return f"{name}/range"


def _with_counters(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with one output for each tensor: largest magnitude, sum of magnitudes (NaN and infinity show in it),
    values that overflow in fp16, values below its normal numbers, values that are not zero, all values.
    """
    model = g.copy_model(model)
    graph = model.graph
    limits = {"range/overflow": np.float32(65520), "range/normal": np.float32(FP16_SMALLEST_NORMAL)}
    for key, limit in limits.items():
        g.add_initializer(graph, key, np.array(limit))
    g.add_initializer(graph, "range/one", np.array([1], dtype=np.int64))
    del graph.output[:]
    for name in names:
        graph.node.extend(_counting_nodes(name))
        graph.output.append(helper.make_tensor_value_info(_counter(name), TensorProto.FLOAT, [6]))
    return model


def _counting_nodes(name: str) -> list[NodeProto]:
    def part(kind: str) -> str:
        return f"{_counter(name)}/{kind}"

    def node(op: str, sources: Sequence[str], kind: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, sources, [part(kind)], name=part(kind), **attributes)

    # 65520 and above round to infinity, hence "not less".
    nodes = [
        node("Abs", [name], "size"),
        node("ReduceMax", [part("size")], "max", keepdims=0),
        node("ReduceSum", [part("size")], "sum", keepdims=0),
        node("GreaterOrEqual", [part("size"), "range/overflow"], "over"),
        node("Less", [part("size"), "range/normal"], "small"),
        node("Cast", [name], "nonzero", to=TensorProto.BOOL),
    ]
    for kind in ("over", "small", "nonzero"):
        nodes.append(node("Cast", [part(kind)], f"{kind}_f", to=TensorProto.FLOAT))
        nodes.append(node("ReduceSum", [f"{part(kind)}_f"], f"{kind}_n", keepdims=0))
    nodes += [
        node("Size", [name], "values"),
        node("Cast", [part("values")], "values_n", to=TensorProto.FLOAT),
    ]
    parts = [part(k) for k in ("max", "sum", "over_n", "small_n", "nonzero_n", "values_n")]
    for index, scalar in enumerate(parts):
        nodes.append(node("Reshape", [scalar, "range/one"], f"row{index}"))
    rows = [part(f"row{index}") for index in range(len(parts))]
    nodes.append(helper.make_node("Concat", rows, [_counter(name)], name=_counter(name), axis=0))
    return nodes


def nodes_beyond_fp16(
    model: ModelProto, ranges: dict[str, TensorRange], *, heads_in_fp32: bool = False
) -> dict[str, str]:
    """The nodes that must stay fp32, with the reason: they make or read a tensor too large for fp16.

    Args:
        model: named nodes.
        ranges: from `measure_ranges`.
        heads_in_fp32: the graph's outputs will be fp32.

    Raises:
        ModelError: a graph output is too large: no cast behind it can bring it into fp16.
    """
    large = {name: r for name, r in ranges.items() if r.largest * HEADROOM > FP16_LARGEST}
    for value in model.graph.output:
        if not heads_in_fp32 and value.name in large and large[value.name].overflowing:
            raise ModelError(
                f"head {value.name!r} reaches {large[value.name].largest:.3g}, fp16 ends at {FP16_LARGEST:.0f}",
                "build with --heads fp32, or with --precision fp32",
            )
    kept = {}
    for node in model.graph.node:
        touched = [name for name in (*node.output, *g.node_uses(node)) if name in large]
        if touched:
            kept[node.name] = (
                f"tensor {touched[0]} reaches {large[touched[0]].largest:.3g} on the images looked at"
            )
    return kept


def nodes_of_heads(model: ModelProto) -> dict[str, str]:
    """The nodes from each head's last convolution to its output: what stays fp32 when heads are to be fp32."""
    made = g.producers(model.graph)
    kept: dict[str, str] = {}
    for value in model.graph.output:
        name: str | None = value.name
        while name is not None and (node := made.get(name)) is not None:
            kept[node.name] = f"makes the fp32 head {value.name}"
            name = None if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else node.input[0]
    return kept
