"""Read what a deformable convolution of any public variant computes: Geometry, read_geometry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, TensorProto

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.passes.deform_attributes import SCALARS, label, read_attributes
from centernet_trt.errors import ModelError

__all__ = ["Geometry", "is_standard", "read_geometry"]

# Operators between the convolution that predicts offsets and mask and the node that uses them.
_PASSING = frozenset(["Split", "Slice", "Concat", "Identity", "Sigmoid", "Cast", "Reshape"])


@dataclass(frozen=True)
class Geometry:
    """A deformable convolution in the standard's terms.

    Attributes:
        inputs: names in ONNX DeformConv's order: X, W, offset, B, mask; "" for an absent one.
        kernel: (kh, kw).
        strides: (vertical, horizontal).
        pads: (top, left, bottom, right).
        dilations: (vertical, horizontal).
        group: groups of the convolution.
        offset_group: groups of input channels, each with its own offsets.
    """

    inputs: tuple[str, str, str, str, str]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    group: int
    offset_group: int


def is_standard(node: NodeProto) -> bool:
    """Whether the node is ONNX's own DeformConv."""
    return node.op_type == "DeformConv" and node.domain in ("", "ai.onnx")


def read_geometry(
    node: NodeProto, constants: Mapping[str, TensorProto], made: Mapping[str, NodeProto]
) -> Geometry:
    """Read what a node of `FOREIGN_OPS` computes.

    Args:
        node: standard or foreign.
        constants: initialisers by name; the weights and the bias of a foreign node are its constant inputs.
        made: tensor name -> the node that computes it.

    Raises:
        ModelError: the inputs or attributes do not determine what is computed.
    """
    inputs, given = (_standard_inputs(node), {}) if is_standard(node) else _foreign_inputs(node, constants)
    weight = constants.get(inputs[1])
    if weight is None or len(weight.dims) != 4:
        raise ModelError(
            f"{label(node)}: expected weights that are a constant of four dimensions",
            "export the model in inference mode, its parameters as constants",
        )
    stated = read_attributes(node, given)
    kernel = (int(weight.dims[2]), int(weight.dims[3]))
    _check_stated(node, stated, inputs, weight)
    if stated.get("mask") == [0]:
        inputs = (*inputs[:4], "")
    source = None if is_standard(node) else _offset_conv(inputs, made)
    strides, pads = stated.get("stride"), stated.get("pad")
    if not is_standard(node) and strides is None and pads is None:
        strides, pads = _from_offset_conv(node, source, kernel)
    geometry = Geometry(
        inputs,
        kernel,
        _pair(node, "stride", strides or [1]),
        _four(node, pads or [0]),
        _pair(node, "dilation", stated.get("dilation", [1])),
        stated.get("group", [1])[0],
        stated.get("offset_group", [1])[0],
    )
    if min(geometry.group, geometry.offset_group) < 1:
        raise ModelError(
            f"{label(node)}: expected groups of 1 or more, got {geometry.group} and {geometry.offset_group}"
        )
    if source is not None:
        _check_offsets(node, geometry, source, constants)
    channels = int(weight.dims[1]) * geometry.group
    if channels % geometry.offset_group or int(weight.dims[0]) % geometry.group:
        raise ModelError(
            f"{label(node)}: expected weights that divide into {geometry.group} groups and {geometry.offset_group} "
            f"offset groups, got {list(weight.dims)}",
            "export the model again",
        )
    return geometry


def _standard_inputs(node: NodeProto) -> tuple[str, str, str, str, str]:
    x, weight, offset, bias, mask = [*node.input, "", ""][:5]
    return x, weight, offset, bias, mask


def _foreign_inputs(
    node: NodeProto, constants: Mapping[str, TensorProto]
) -> tuple[tuple[str, str, str, str, str], dict[str, Any]]:
    """Order the inputs by what they are: exporters agree on the order input, offset, mask, and on nothing else.

    Returns:
        The names in the standard's order, and the numbers that torchvision's operator takes as inputs.
    """
    named = [name for name in node.input if name]
    scalars = [name for name in named if name in constants and constants[name].data_type in _WHOLE]
    rank = {name: len(constants[name].dims) for name in named if name in constants and name not in scalars}
    weights = [name for name, dims in rank.items() if dims == 4]
    biases = [name for name, dims in rank.items() if dims == 1]
    computed = [name for name in named if name not in constants]
    if len(weights) != 1 or len(biases) > 1 or len(computed) not in (2, 3):
        raise ModelError(
            f"{label(node)}: expected as inputs the features, the offsets and perhaps a mask, all computed, and as "
            f"constants the weights and perhaps a bias; got {len(computed)} computed inputs, {len(weights)} weights and "
            f"{len(biases)} biases in {named}",
            "export the model in inference mode, its parameters as constants",
        )
    if scalars and (node.op_type != "deform_conv2d" or len(scalars) not in (8, 9)):
        values = [g.as_array(constants[name]).tolist() for name in scalars]
        raise ModelError(
            f"{label(node)}: expected stride, padding and dilation as attributes, got the numbers {values} as inputs, in an "
            "order that is not known",
            "export with attributes: stride, padding, dilation, groups, deformable_groups",
        )
    given = {what: constants[name] for what, name in zip(SCALARS, scalars, strict=False)}
    x, offset, mask = [*computed, ""][:3]
    return (x, weights[0], offset, biases[0] if biases else "", mask), given


def _check_stated(
    node: NodeProto, stated: Mapping[str, list[int]], inputs: Sequence[str], weight: TensorProto
) -> None:
    """Refuse attributes that contradict the weights and the inputs."""
    out, fan_in, *kernel = (int(size) for size in weight.dims)
    in_channels = fan_in * stated.get("group", [1])[0]
    for what, wanted in (("out", [out]), ("in", [in_channels]), ("kernel", kernel)):
        value = stated.get(what, wanted)
        if value != wanted and value * 2 != wanted:
            raise ModelError(
                f"{label(node)}: the attribute for {_STATED[what]} says {value}, its weights {list(weight.dims)} say {wanted}",
                "export the model again: attribute and weights contradict each other",
            )
    if stated.get("bias") == [0] and inputs[3]:
        raise ModelError(
            f"{label(node)}: an attribute says that there is no bias, but {inputs[3]!r} is an input",
            "export the model again: attribute and inputs contradict each other",
        )


_STATED = {"out": "the output channels", "in": "the input channels", "kernel": "the kernel"}
_WHOLE = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.INT8})


def _pair(node: NodeProto, what: str, value: list[int]) -> tuple[int, int]:
    values = value * 2 if len(value) == 1 else value
    if len(values) != 2 or min(values) < 1:
        raise ModelError(f"{label(node)}: expected one or two positive numbers as {what}, got {value}")
    return values[0], values[1]


def _four(node: NodeProto, value: list[int]) -> tuple[int, int, int, int]:
    values = value * 2 if len(value) == 1 else value
    if len(values) == 2:
        values = values * 2  # (h, w) stands for (top, left, bottom, right) = (h, w, h, w)
    elif len(values) == 4 and node.op_type == "MMCVDeformConv2d":
        # mmdeploy writes (h, h, w, w) here and nowhere else.
        values = [values[0], values[2], values[1], values[3]]
    if len(values) != 4 or min(values) < 0:
        raise ModelError(f"{label(node)}: expected one, two or four numbers from 0 as padding, got {value}")
    return values[0], values[1], values[2], values[3]


def _offset_conv(inputs: Sequence[str], made: Mapping[str, NodeProto]) -> NodeProto | None:
    """The convolution of the same input that predicts the offsets, if there is one."""
    found = made.get(inputs[2])
    while found is not None and found.op_type in _PASSING:
        found = made.get(found.input[0])
    same = found is not None and found.op_type == "Conv" and found.input[0] == inputs[0]
    padded = found is not None and g.attribute(found, "auto_pad", b"NOTSET") != b"NOTSET"
    return found if same and not padded else None


def _from_offset_conv(
    node: NodeProto, found: NodeProto | None, kernel: tuple[int, int]
) -> tuple[list[int], list[int]]:
    """Strides and pads of a node that lost its attributes (export by fall-through).

    DCN modules predict the offsets from the same input, by a convolution of the same kernel, stride and padding.
    """
    same = (
        found is not None
        and list(g.attribute(found, "kernel_shape", [])) == list(kernel)
        and list(g.attribute(found, "dilations", [1, 1])) == [1, 1]
    )
    if found is None or not same:
        raise ModelError(
            f"{label(node)} has lost its stride, padding and dilation in the export, and its offsets do not come "
            "from a convolution of the same kernel, whose attributes would be the same",
            "export with a symbolic that writes stride_i, padding_i, dilation_i and deformable_groups_i",
        )
    return list(g.attribute(found, "strides", [1, 1])), list(g.attribute(found, "pads", [0] * 4))


def _check_offsets(
    node: NodeProto, geometry: Geometry, source: NodeProto, constants: Mapping[str, TensorProto]
) -> None:
    """Refuse a geometry that does not fit the offsets: their number, and the size of their map."""
    weight = constants.get(source.input[1])
    if weight is None or len(weight.dims) != 4:
        return
    taps = geometry.kernel[0] * geometry.kernel[1] * geometry.offset_group
    if source.output[0] == geometry.inputs[2] and weight.dims[0] != 2 * taps:
        merged = weight.dims[0] == 3 * taps and not geometry.inputs[4]
        what = (
            ": offsets and mask in one tensor, and whether a sigmoid follows is not known" if merged else ""
        )
        raise ModelError(
            f"{label(node)}: expected {2 * taps} channels of offsets for {geometry.offset_group} offset groups, got "
            f"{weight.dims[0]}{what}",
            "export with the offsets and the mask as two inputs, the mask behind its sigmoid"
            if merged
            else "export with the number of offset groups (deformable_groups)",
        )
    # Sides of the two maps for an input of n: (n + fixed) // stride + 1.
    strides, pads = g.attribute(source, "strides", [1, 1]), g.attribute(source, "pads", [0] * 4)
    dilations = g.attribute(source, "dilations", [1, 1])
    for axis in (0, 1):
        ours = geometry.pads[axis] + geometry.pads[axis + 2]
        ours -= geometry.dilations[axis] * (geometry.kernel[axis] - 1)
        theirs = pads[axis] + pads[axis + 2] - dilations[axis] * (int(weight.dims[2 + axis]) - 1)
        if geometry.strides[axis] != strides[axis] or ours != theirs:
            raise ModelError(
                f"{label(node)}: its stride {geometry.strides}, padding {geometry.pads} and dilation {geometry.dilations} give a "
                f"map of another size than that of its offsets (stride {tuple(strides)}, padding {tuple(pads)})",
                "export with all of stride, padding and dilation; one that is not stated is 1, 0 and 1",
            )
