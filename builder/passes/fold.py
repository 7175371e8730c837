"""Fold constants and remove identities.

Each pass keeps ONNX Runtime's outputs within 1e-5 relative.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.external_data import externalise_constant
from centernet_trt.errors import BackendError

__all__ = ["constants_to_initializers", "fold_constants", "remove_identities"]

# Random operators are never constant; folding Q/DQ would discard where the graph is int8.
_NEVER_FOLDED = {
    "Bernoulli",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Multinomial",
    "QuantizeLinear",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# A node whose folding would add more bytes than this stays (ConstantOfShape, Tile, Expand).
_LARGEST_GROWTH = 16 << 20


def constants_to_initializers(model: ModelProto) -> ModelProto:
    """Turn numeric Constant nodes into initialisers of the same tensor names.

    A Constant that is a graph output stays: backends do not accept an initialiser as an output.
    """
    model = g.copy_model(model)
    outputs = {value.name for value in model.graph.output}
    gone: list[int] = []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.output[0] not in outputs:
            value = _constant_value(node)
            if value is not None:
                value.name = node.output[0]
                model.graph.initializer.append(externalise_constant(value))
                gone.append(index)
    g.remove_at(model.graph.node, gone)
    return model


def _constant_value(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for strings and sparse tensors."""
    attr = node.attribute[0]
    if attr.name == "value":
        held = TensorProto()
        held.CopyFrom(attr.t)
        return held
    dtypes: dict[str, Any] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attr.name not in dtypes:
        return None
    array = np.array(helper.get_attribute_value(attr), dtype=dtypes[attr.name])
    return numpy_helper.from_array(array)


def fold_constants(model: ModelProto) -> ModelProto:
    """Replace every node that has only constant inputs by its result, computed by ONNX Runtime.

    These nodes stay: random operators, QuantizeLinear and DequantizeLinear, nodes with subgraphs, nodes that ONNX
    Runtime cannot run or whose result would grow the file by more than 16 MB, and nodes that make a graph output.
    Shapes of tensors are never treated as constants, so no batch size gets baked in.
    """
    model = constants_to_initializers(model)
    graph = model.graph
    known = {t.name: g.as_array(t) for t in graph.initializer if t.data_type != TensorProto.STRING}
    outputs = {value.name for value in graph.output}
    gone: list[int] = []
    for index, node in enumerate(graph.node):
        if outputs.intersection(node.output) or not _foldable(node, known):
            continue
        results = _evaluate(model, node, known)
        if results is not None:
            known.update(results)
            for name, array in results.items():
                g.add_initializer(graph, name, array)
            gone.append(index)
    g.remove_at(graph.node, gone)
    g.prune(graph)
    return model


def _foldable(node: NodeProto, known: dict[str, NDArray[Any]]) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER_FOLDED or node.op_type == "Constant":
        return False
    # A Dropout in training mode is random too.
    if node.op_type == "Dropout" and len(node.input) > 2:
        return False
    return not g.subgraphs(node) and all(name in known for name in node.input if name)


def _evaluate(
    model: ModelProto, node: NodeProto, known: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]] | None:
    """The results of a node that is run alone; None if ONNX Runtime cannot run it or they are too large."""
    names = list(dict.fromkeys(name for name in node.input if name))
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(known[name].dtype), list(known[name].shape)
        )
        for name in names
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    opsets = [helper.make_opsetid("", g.main_opset(model))]
    lone = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    try:
        results = run_model(lone, {name: known[name] for name in names}, threads=1)
    except BackendError:
        return None
    grown = sum(array.nbytes for array in results.values()) - sum(known[name].nbytes for name in names)
    return None if grown > _LARGEST_GROWTH else results


def remove_identities(model: ModelProto) -> ModelProto:
    """Remove Identity and inference-mode Dropout nodes; output names stay.

    A node stays if it makes a graph output of an input, a constant or another output.
    """
    model = g.copy_model(model)
    graph = model.graph
    constants = g.initializers(graph)
    fixed = {value.name for value in graph.input} | set(constants)
    outputs = {value.name for value in graph.output}
    uses = g.consumers(graph)
    alias: dict[str, str] = {}
    renamed: dict[str, str] = {}
    gone: list[int] = []
    for index, node in enumerate(graph.node):
        if not _does_nothing(node, constants, uses, outputs):
            continue
        first: str = node.input[0]
        source, target = alias.get(first, first), node.output[0]
        if target not in outputs:
            alias[target] = source
        elif source not in fixed and source not in outputs and source not in renamed:
            # The producer of `source` takes over the output's name, for all consumers.
            renamed[source] = target
        else:
            continue
        gone.append(index)
    g.remove_at(graph.node, gone)
    final = {name: renamed.get(source, source) for name, source in alias.items()} | renamed
    g.rename_uses(graph.node, final)
    for node in graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = renamed.get(name, name)
    g.keep_only(graph.value_info, lambda value: value.name not in final)
    g.prune(graph)
    return model


def _does_nothing(
    node: NodeProto, constants: dict[str, TensorProto], uses: dict[str, list[NodeProto]], outputs: set[str]
) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    if any(name in uses or name in outputs for name in node.output[1:]):
        return False  # the mask is used
    if len(node.input) < 3 or not node.input[2]:
        return True
    return node.input[2] in constants and not g.as_array(constants[node.input[2]]).any()
