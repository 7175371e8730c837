"""Turn every public variant of deformable convolution into ONNX DeformConv: standardise_deform_conv."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper, version_converter

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.edit import IR_VERSION, OPSET
from centernet_trt.builder.passes.fold import constants_to_initializers
from centernet_trt.errors import ModelError

__all__ = [
    "FOREIGN_OPS",
    "Geometry",
    "has_deform_conv",
    "is_standard",
    "read_geometry",
    "standardise_deform_conv",
]

FOREIGN_OPS = frozenset(
    [
        "DCN",
        "DCNv2",
        "_DCNv2",
        "DeformConv",
        "DeformConv2d",
        "MMCVDeformConv2d",
        "MMCVModulatedDeformConv2d",
        "ModulatedDeformConv",
        "ModulatedDeformConv2d",
        "deform_conv2d",
    ]
)
"""Operator types of all variants, in any domain; `DeformConv` of the ONNX domain is the standard one."""

# Attribute names in public use, the standard's first.
_STRIDES = ("strides", "stride")
_PADS = ("pads", "padding", "pad")
_DILATIONS = ("dilations", "dilation", "dilate")
_GROUP = ("group", "groups")
_OFFSET_GROUP = (
    "offset_group",
    "deformable_groups",
    "deformable_group",
    "deform_groups",
    "num_deformable_group",
)
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
    inputs = _standard_inputs(node) if is_standard(node) else _foreign_inputs(node, constants)
    weight = constants.get(inputs[1])
    if weight is None or len(weight.dims) != 4:
        raise ModelError(
            f"{_label(node)}: expected weights that are a constant of four dimensions",
            "export the model in inference mode, its parameters as constants",
        )
    attributes = {attr.name: g.attribute(node, attr.name) for attr in node.attribute}
    kernel = (int(weight.dims[2]), int(weight.dims[3]))
    strides, pads = _find(attributes, _STRIDES), _find(attributes, _PADS)
    if not is_standard(node) and strides is None and pads is None:
        strides, pads = _from_offset_conv(node, inputs, kernel, made)
    geometry = Geometry(
        inputs,
        kernel,
        _pair(node, "stride", 1 if strides is None else strides),
        _four(node, 0 if pads is None else pads),
        _pair(node, "dilation", _find(attributes, _DILATIONS, 1)),
        int(_find(attributes, _GROUP, 1)),
        int(_find(attributes, _OFFSET_GROUP, 1)),
    )
    channels = int(weight.dims[1]) * geometry.group
    if channels % geometry.offset_group or int(weight.dims[0]) % geometry.group:
        raise ModelError(
            f"{_label(node)}: expected weights that divide into {geometry.group} groups and {geometry.offset_group} "
            f"offset groups, got {list(weight.dims)}",
            "export the model again",
        )
    return geometry


def _standard_inputs(node: NodeProto) -> tuple[str, str, str, str, str]:
    x, weight, offset, bias, mask = [*node.input, "", ""][:5]
    return x, weight, offset, bias, mask


def _foreign_inputs(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[str, str, str, str, str]:
    """Order the inputs by what they are: exporters agree on the order input, offset, mask, and on nothing else."""
    named = [name for name in node.input if name]
    rank = {name: len(constants[name].dims) for name in named if name in constants}
    weights = [name for name, dims in rank.items() if dims == 4]
    biases = [name for name, dims in rank.items() if dims == 1]
    computed = [name for name in named if name not in constants]
    if len(weights) != 1 or len(biases) > 1 or len(computed) not in (2, 3):
        raise ModelError(
            f"{_label(node)}: expected as inputs the features, the offsets and perhaps a mask, all computed, and as "
            f"constants the weights and perhaps a bias; got {len(computed)} computed inputs, {len(weights)} weights and "
            f"{len(biases)} biases in {named}",
            "export the model in inference mode, its parameters as constants",
        )
    x, offset, mask = [*computed, ""][:3]
    return x, weights[0], offset, biases[0] if biases else "", mask


def _find(attributes: Mapping[str, Any], names: Sequence[str], default: Any = None) -> Any:
    for name in names:
        if name in attributes:
            value = attributes[name]
            return value[0] if isinstance(value, list) and len(value) == 1 else value
    return default


def _pair(node: NodeProto, what: str, value: Any) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, Sequence) else [int(value)] * 2
    if len(values) != 2 or min(values) < 1:
        raise ModelError(f"{_label(node)}: expected one or two positive numbers as {what}, got {value}")
    return values[0], values[1]


def _four(node: NodeProto, value: Any) -> tuple[int, int, int, int]:
    values = [int(v) for v in value] if isinstance(value, Sequence) else [int(value)] * 2
    if len(values) == 2:
        values *= 2  # (h, w) stands for (top, left, bottom, right) = (h, w, h, w)
    elif len(values) == 4 and node.op_type == "MMCVDeformConv2d":
        # mmdeploy writes (h, h, w, w) here and nowhere else.
        values = [values[0], values[2], values[1], values[3]]
    if len(values) != 4 or min(values) < 0:
        raise ModelError(f"{_label(node)}: expected one, two or four numbers from 0 as padding, got {value}")
    return values[0], values[1], values[2], values[3]


def _from_offset_conv(
    node: NodeProto, inputs: Sequence[str], kernel: tuple[int, int], made: Mapping[str, NodeProto]
) -> tuple[list[int], list[int]]:
    """Strides and pads of a node that lost its attributes (export by fall-through).

    DCN modules predict the offsets from the same input, by a convolution of the same kernel, stride and padding.
    """
    found = made.get(inputs[2])
    while found is not None and found.op_type in _PASSING:
        found = made.get(found.input[0])
    same = (
        found is not None
        and found.op_type == "Conv"
        and found.input[0] == inputs[0]
        and list(g.attribute(found, "kernel_shape", [])) == list(kernel)
        and list(g.attribute(found, "dilations", [1, 1])) == [1, 1]
    )
    if found is None or not same:
        raise ModelError(
            f"{_label(node)} has lost its stride, padding and dilation in the export, and its offsets do not come "
            "from a convolution of the same kernel, whose attributes would be the same",
            "export with a symbolic that writes stride_i, padding_i, dilation_i and deformable_groups_i",
        )
    return list(g.attribute(found, "strides", [1, 1])), list(g.attribute(found, "pads", [0] * 4))


def _label(node: NodeProto) -> str:
    return (
        f"deformable convolution {node.name or node.output[0]!r} ({node.domain or 'ai.onnx'}.{node.op_type})"
    )


# The version converter ignores nodes of a foreign domain.
_HIDDEN = "centernet_trt.hidden"


def has_deform_conv(model: ModelProto) -> bool:
    """Whether the main graph has a deformable convolution of any known variant."""
    return any(_is_deform(node) for node in model.graph.node)


def standardise_deform_conv(model: ModelProto) -> ModelProto:
    """Turn every deformable convolution into ONNX DeformConv, at opset 19 or newer.

    Args:
        model: may have operators of `FOREIGN_OPS` in any domain, with or without mask and bias, their weights and
            biases constant. A model without any is returned unchanged.

    Returns:
        The model with DeformConv nodes that keep their names and outputs; an older opset is converted to 19.

    Raises:
        ModelError: a node's inputs or attributes do not determine what it computes, or the opset cannot be converted.
    """
    if not has_deform_conv(model):
        return model
    model = constants_to_initializers(model)
    graph = model.graph
    constants, made = g.initializers(graph), g.producers(graph)
    for node in graph.node:
        if _is_deform(node):
            _make_standard(node, read_geometry(node, constants, made))
    _drop_unused_domains(model)
    return _raise_opset(model)


def _is_deform(node: NodeProto) -> bool:
    return node.op_type in FOREIGN_OPS


def _make_standard(node: NodeProto, geometry: Geometry) -> None:
    """Rewrite a node in place."""
    node.op_type, node.domain = "DeformConv", ""
    del node.attribute[:]
    del node.input[:]
    node.input.extend(geometry.inputs)
    while not node.input[-1]:
        del node.input[-1]
    attributes = {
        "kernel_shape": geometry.kernel,
        "strides": geometry.strides,
        "pads": geometry.pads,
        "dilations": geometry.dilations,
        "group": geometry.group,
        "offset_group": geometry.offset_group,
    }
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def _drop_unused_domains(model: ModelProto) -> None:
    used = {"", "ai.onnx"} | {node.domain for node in model.graph.node}
    used.update(node.domain for function in model.functions for node in function.node)
    g.keep_only(model.opset_import, lambda opset: opset.domain in used)


def _raise_opset(model: ModelProto) -> ModelProto:
    opset = g.main_opset(model)
    if opset >= OPSET:
        return model
    for node in model.graph.node:
        if is_standard(node):
            node.domain = _HIDDEN
    g.set_opset(model, _HIDDEN, 1)
    try:
        raised = version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise ModelError(
            f"expected opset {OPSET} or newer for DeformConv, got {opset}, which ONNX cannot convert: {error}",
            f"export the model again with opset {OPSET}",
        ) from error
    for node in raised.graph.node:
        if node.domain == _HIDDEN:
            node.domain = ""
    g.keep_only(raised.opset_import, lambda opset: opset.domain != _HIDDEN)
    raised.ir_version = max(raised.ir_version, IR_VERSION)
    return raised
