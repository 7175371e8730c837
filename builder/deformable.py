"""Deformable convolution: every public spelling becomes ONNX DeformConv.

TensorRT for RTX has no such operator; `deformable_lowering` goes on from there to standard operators.
"""

from onnx import ModelProto, NodeProto, helper, version_converter

from centernet_trt.builder import graph as g
from centernet_trt.builder.architectures.network import IR_VERSION, OPSET
from centernet_trt.builder.deformable_spellings import FOREIGN_OPS, Geometry, is_standard, read_node
from centernet_trt.builder.passes.fold import constants_to_initializers
from centernet_trt.errors import ModelError

__all__ = ["FOREIGN_OPS", "has_deform_conv", "standardise_deform_conv"]

# The version converter passes nodes of a foreign domain by.
_HIDDEN = "centernet_trt.hidden"


def has_deform_conv(model: ModelProto) -> bool:
    """Tell whether the main graph holds a deformable convolution of any known spelling."""
    return any(_is_deform(node) for node in model.graph.node)


def standardise_deform_conv(model: ModelProto) -> ModelProto:
    """Return the model with every deformable convolution as ONNX DeformConv, opset 19 or newer.

    Args:
        model: may hold operators of `FOREIGN_OPS` in any domain, with or without mask and bias. Their weights and
            biases are constants. A model without any is returned as it is.

    Returns:
        The model with DeformConv nodes that kept their names and outputs; an older opset is converted to 19.

    Raises:
        ModelError: a node's inputs or attributes do not say what it computes, or the opset cannot be raised.
    """
    if not has_deform_conv(model):
        return model
    model = constants_to_initializers(model)
    graph = model.graph
    constants, made = g.initializers(graph), g.producers(graph)
    for node in graph.node:
        if _is_deform(node):
            _make_standard(node, read_node(node, constants, made))
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
            f"the model has opset {opset}; DeformConv needs {OPSET}, and ONNX cannot convert it: {error}",
            f"export the model again with opset {OPSET}",
        ) from error
    for node in raised.graph.node:
        if node.domain == _HIDDEN:
            node.domain = ""
    g.keep_only(raised.opset_import, lambda opset: opset.domain != _HIDDEN)
    raised.ir_version = max(raised.ir_version, IR_VERSION)
    return raised
