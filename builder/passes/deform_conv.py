"""Turn every public variant of deformable convolution into ONNX DeformConv: standardise_deform_conv."""

from onnx import ModelProto, NodeProto, helper, version_converter

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.diagnose import operator_name
from centernet_trt.builder.graph.edit import IR_VERSION, OPSET
from centernet_trt.builder.passes.deform_geometry import Geometry, is_standard, read_geometry
from centernet_trt.builder.passes.fold import constants_to_initializers
from centernet_trt.errors import ModelError

__all__ = ["FOREIGN_OPS", "has_deform_conv", "standardise_deform_conv"]

FOREIGN_OPS = frozenset(
    [
        "DCN",
        "DCN_TRT",
        "DCNPlugin",
        "DCNv1",
        "DCNv2",
        "DCNv2_2",
        "DCNv2_TRT",
        "DCNV2",
        "DCNv2Plugin",
        "_DCNv2",
        "dcn_v2",
        "dcn_v2_conv",
        "DeformConv",
        "DeformConv2d",
        "DeformConv2D",
        "DeformableConv",
        "DeformableConv2d",
        "DeformableConv2D",
        "DeformableConvolution",
        "MMCVDeformConv2d",
        "MMCVModulatedDeformConv2d",
        "ModulatedDeformConv",
        "ModulatedDeformConv2d",
        "ModulatedDeformConv2dTRT",
        "ModulatedDeformConvFunction",
        "TRTDCNv2",
        "deform_conv",
        "deform_conv2d",
        "deformable_conv",
        "deformable_conv2d",
        "modulated_deform_conv",
        "modulated_deform_conv2d",
    ]
)
"""Operators of all variants, in any domain (`operator_name`); `DeformConv` of the ONNX domain is the standard one."""

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
    return operator_name(node) in FOREIGN_OPS


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
