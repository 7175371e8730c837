"""Find the nodes whose constants fp16 loses, and the readers of such small values: nodes_losing_constants."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from centernet_trt.builder.graph import edit as g

__all__ = ["nodes_losing_constants"]

_LOSS = 0.01
"""Share of a constant's value that rounding to fp16 may take: below 6.1e-5, digits vanish one by one."""
_SAFE_RMS = (
    1e-4  # constants of at least this root mean square cannot lose more: the check of large weights ends here
)

# Constants that are added to a sum of products, in which a value too small for fp16 counts for nothing.
_BIASES = {
    ("BatchNormalization", 2),
    ("BatchNormalization", 3),
    ("Conv", 2),
    ("ConvTranspose", 2),
    ("DeformConv", 3),
    ("Gemm", 2),
    ("GroupNormalization", 2),
    ("InstanceNormalization", 2),
    ("LayerNormalization", 2),
}
# Constants each of whose values matters by itself: a divisor of 0 or a bound of 0 spoils its own results.
_SINGLE = {("Div", 1), ("Clip", 1), ("Clip", 2), ("Max", 0), ("Max", 1), ("Min", 0), ("Min", 1), ("Pow", 1)}
# ONNX computes these in float32 whatever the type of the tensors, so only an epsilon of 0 matters.
_STASHED = ("LayerNormalization", "GroupNormalization", "RMSNormalization")

# What becomes of a small value in each operator; the binary ones are in `_passed_on`.
_UNARY: dict[str, Callable[[float], float]] = {
    "Exp": lambda _: 1.0,
    "Log": lambda value: abs(math.log(value)) if value > 0 else math.inf,
    "Reciprocal": lambda value: 1 / value if value else math.inf,
    "Sqrt": math.sqrt,
}
_SAME = frozenset(
    [
        *(
            "Abs",
            "Add",
            "Cast",
            "Clip",
            "Concat",
            "Expand",
            "Flatten",
            "Gather",
            "Identity",
            "Max",
            "Mean",
            "Min",
        ),
        *(
            "Neg",
            "ReduceL1",
            "ReduceL2",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceSum",
            "Reshape",
            "Slice",
        ),
        *("Split", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where"),
    ]
)
_BINARY = ("Div", "Mul", "Pow")


def nodes_losing_constants(model: ModelProto, types: Mapping[str, int]) -> dict[str, str]:
    """Find the nodes that must stay fp32, since fp16 makes 0 or little else of a constant that matters.

    A small constant makes small results (a norm that an epsilon bounds): the nodes that divide by them, or take their
    root, stay fp32 too, until the result is a number that fp16 represents.

    Args:
        model: named nodes in topological order, constants as initialisers.
        types: tensor name -> element type.

    Returns:
        Node name -> the reason.
    """
    constants = {
        name: tensor
        for name, tensor in g.initializers(model.graph).items()
        if tensor.data_type == TensorProto.FLOAT
    }
    reasons: dict[str, str] = {}
    queue: list[tuple[str, float, str]] = []
    for node in model.graph.node:
        found = _lost(node, constants)
        if found is not None:
            what, value = found
            reasons[node.name] = f"{what} {_words(value)}"
            if not _is_weight(node):  # of these, the ranges of activations say how small the results are
                queue += [(name, value, node.name) for name in node.output]
    readers = g.consumers(model.graph)
    while queue:
        name, value, origin = queue.pop()
        if types.get(name) != TensorProto.FLOAT or _is_held(value):
            continue
        for reader in readers.get(name, ()):
            if reader.op_type not in _SAME and reader.op_type not in _UNARY and reader.op_type not in _BINARY:
                continue
            if reader.name not in reasons:
                reasons[reader.name] = f"reads values as far from fp16 as {value:.2g}, from {origin}"
                passed = _passed_on(reader, name, value, constants)
                if passed is not None:
                    queue += [(output, passed, origin) for output in reader.output]
    return reasons


def _is_weight(node: NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul")


def _lost(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[str, float] | None:
    """What fp16 would make too little of in a node, and its smallest magnitude; None if nothing."""
    epsilon = g.attribute(node, "epsilon")
    if epsilon and (_rounded(epsilon) == 0 if node.op_type in _STASHED else not _is_held(epsilon)):
        return f"epsilon {epsilon:.2g}", float(epsilon)
    if node.op_type == "ConstantOfShape":
        fill = g.attribute(node, "value")
        if fill is None or fill.data_type != TensorProto.FLOAT:
            return None
        value = float(g.as_array(fill).ravel()[0])
        return None if math.isinf(_rounded(value)) or _is_held(value) else ("its fill value", abs(value))
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Resize", "Cast"):
        return None  # rules of their own, or no arithmetic
    for index, name in enumerate(node.input):
        tensor = constants.get(name)
        if tensor is None or (node.op_type, index) in _BIASES:
            continue
        values = np.abs(g.as_array(tensor)).ravel()
        if _loses(values, single=(node.op_type, index) in _SINGLE):
            return f"constant {name!r}", float(values[values > 0].min())
    return None


def _loses(values: NDArray[np.float32], *, single: bool) -> bool:
    """Whether rounding to fp16 takes more than `_LOSS` of the magnitudes: of any, or of all together."""
    if not single and values.size and float(values @ values) >= _SAFE_RMS**2 * values.size:
        return False  # also if the sum overflows
    kept = values[(values > 0) & (values <= np.finfo(np.float16).max)].astype(np.float64)
    if not kept.size:
        return False
    lost = np.abs(kept - kept.astype(np.float16))
    if single:
        return bool((lost > _LOSS * kept).any())
    return float(np.linalg.norm(lost)) > _LOSS * float(np.linalg.norm(kept))


def _rounded(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float16(value))


def _is_held(value: float) -> bool:
    """Whether fp16 represents a number, zero or with at most `_LOSS` lost."""
    return value == 0 or abs(_rounded(value) - value) <= _LOSS * abs(value)


def _words(value: float) -> str:
    half = _rounded(value)
    return "becomes 0 in fp16" if half == 0 else f"becomes {half:.3g} in fp16, from {value:.3g}"


def _passed_on(
    node: NodeProto, name: str, value: float, constants: Mapping[str, TensorProto]
) -> float | None:
    """The size of a node's result where one input is `value`; None where another tensor decides it."""
    if node.op_type in _SAME:
        return value
    if node.op_type in _UNARY:
        return _UNARY[node.op_type](value)
    index = list(node.input).index(name)
    other = constants.get(node.input[1 - index])
    if other is None:
        return None
    operand = float(np.abs(g.as_array(other)).max(initial=0.0))
    try:
        if node.op_type == "Mul":
            return value * operand
        if node.op_type == "Div":
            return value / operand if index == 0 else operand / value
        exponent = float(g.as_array(other).ravel()[0])
        return math.pow(value, exponent) if index == 0 else None
    except (ZeroDivisionError, OverflowError):
        return math.inf
