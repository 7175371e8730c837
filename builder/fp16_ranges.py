"""Which tensors of a graph fp16 cannot hold: the graph is run in fp32 on images, and every tensor rounded to fp16.

ONNX Runtime cannot show an overflow inside an operation, so nothing but the fp32 values tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from centernet_trt.builder import graph as g
from centernet_trt.builder.calibration.activations import Simulation, batches, with_outputs
from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.inference import element_types
from centernet_trt.errors import ModelError
from centernet_trt.runtime.spec import InputSpec

FP16_LARGEST = float(np.finfo(np.float16).max)
FP16_SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)
# A range measured on some images says little about the next one: half of what fp16 holds is kept free.
HEADROOM = 2.0
_OUTPUTS_AT_A_TIME = 64  # tensors kept in memory for one image


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


def range_of(values: npt.NDArray[np.float32]) -> TensorRange:
    """The range of one array of finite float32 values."""
    size = np.abs(values)
    largest = float(size.max(initial=0.0))
    # 65520 and above round to infinity; most tensors never come near.
    overflowing = int(np.count_nonzero(size >= 65520)) if largest > FP16_LARGEST else 0
    subnormal = int(np.count_nonzero(size < FP16_SMALLEST_NORMAL)) - int(size.size - np.count_nonzero(size))
    return TensorRange(largest, overflowing, subnormal, values.size)


def measure_ranges(
    model: ModelProto,
    images: Sequence[CalibrationImage],
    spec: InputSpec,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TensorRange]:
    """The range of every float tensor that the nodes of an fp32 graph compute.

    Memory is bounded by the tensors of one image, `_OUTPUTS_AT_A_TIME` of them at once.

    Args:
        model: fp32, named nodes, every tensor's type stated (`inference.refresh_shapes`).
        images: what to run it on.
        spec: how an image becomes the input.
        progress: called with (images done, images in all), passes over the images counted together.

    Raises:
        ModelError: a tensor is NaN or infinite in fp32 already.
    """
    kinds = element_types(model)
    names = [name for node in model.graph.node for name in node.output if kinds.get(name) == 1]
    ranges = dict.fromkeys(names, TensorRange())
    chunks = [names[i : i + _OUTPUTS_AT_A_TIME] for i in range(0, len(names), _OUTPUTS_AT_A_TIME)]
    for number, chunk in enumerate(chunks):
        simulation = Simulation(with_outputs(model, chunk))
        for row, batch in enumerate(batches(images, spec)):
            for name, values in simulation.run(batch.tensor).items():
                found = range_of(values)
                if not np.isfinite(found.largest):  # the maximum of a NaN is NaN
                    raise ModelError(
                        f"tensor {name!r} is NaN or infinite on {batch.names[0]} in fp32 already",
                        "the network itself overflows; check the weights and the pre-processing of the spec",
                    )
                ranges[name] = ranges[name].joined(found)
            if progress is not None:
                progress(number * len(images) + row + 1, len(chunks) * len(images))
    return ranges


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
