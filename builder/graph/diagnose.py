"""Refuse graphs that cannot be built, saying what they are: check_operators, check_inference_mode, check_weight_types."""

from collections.abc import Collection, Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs

from centernet_trt.builder.graph import edit as g
from centernet_trt.errors import ModelError

__all__ = [
    "FOREIGN_DOMAIN",
    "TRAINING_HINT",
    "TYPES_HINT",
    "all_nodes",
    "check_inference_mode",
    "check_operators",
    "check_weight_types",
    "is_foreign",
    "mixes_images",
    "move_foreign",
    "operator_name",
]

FOREIGN_DOMAIN = "centernet_trt.foreign"
"""Domain for operators of the ONNX domain that ONNX does not define, which the checker and the converter then ignore."""

TRAINING_HINT = "call model.eval() before exporting (torch.onnx.export: training=TrainingMode.EVAL)"
TYPES_HINT = (
    "the types of the graph's tensors do not agree, as in exports of mixed precision: export in float32, without autocast; "
    "--precision fp16 types the graph"
)

_ONNX_DOMAINS = ("", "ai.onnx")
# Operator types that name the plugin in an attribute.
_PLUGIN_OPS = frozenset({"Plugin", "TRT_Plugin", "TRT_PluginV2"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_SHOWN = 5  # nodes that a message names


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of its nodes' subgraphs."""
    for node in graph.node:
        yield node
        for inner in g.subgraphs(node):
            yield from all_nodes(inner)


def is_foreign(node: NodeProto) -> bool:
    """Whether ONNX does not define the operator, at any opset."""
    return not defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)


def operator_name(node: NodeProto) -> str:
    """The operator type, or the name of the plugin that a generic plugin node calls."""
    if node.op_type in _PLUGIN_OPS:
        for attribute in ("name", "plugin_name", "plugin_type"):
            if found := g.attribute(node, attribute):
                return found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return str(node.op_type)


def move_foreign(model: ModelProto, names: Collection[str]) -> bool:
    """Move the operators of the ONNX domain that ONNX does not define to `FOREIGN_DOMAIN` (in place).

    Args:
        model: any. Domains that its nodes use and it does not import are imported as version 1.
        names: operator types that move too where only a newer opset than the model's defines them.

    Returns:
        Whether a node moved or an import was added, so that the file differs from the model.

    Raises:
        ModelError: an operator is of a newer opset than the model imports.
    """
    opset = g.main_opset(model)
    functions = {(function.domain, function.name) for function in model.functions}
    imported = {entry.domain for entry in model.opset_import}
    changed = False
    for node in all_nodes(model.graph):
        if node.domain in _ONNX_DOMAINS and (node.domain, node.op_type) not in functions:
            if not is_foreign(node):
                if _defined(node.op_type, opset):
                    continue
                if node.op_type not in names:
                    raise _too_new(node, opset)
            node.domain = FOREIGN_DOMAIN
        if node.domain not in _ONNX_DOMAINS and node.domain not in imported:
            imported.add(node.domain)
            g.set_opset(model, node.domain, 1)
            changed = True
    return changed or FOREIGN_DOMAIN in imported


def _defined(operator: str, opset: int) -> bool:
    try:
        defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return False
    return True


def _too_new(node: NodeProto, opset: int) -> ModelError:
    first = next(v for v in range(opset, defs.onnx_opset_version() + 1) if _defined(node.op_type, v))
    return ModelError(
        f"{_label(node)} is an operator of opset {first}, but the graph imports opset {opset}: the file is inconsistent",
        f"export the model again with opset {max(first, 19)}; optimisers of ONNX Runtime write such files too: build "
        "from the file before the optimisation",
    )


def check_operators(model: ModelProto, allowed: Collection[str] = (), *, behind_heads: bool = False) -> None:
    """Refuse operators that ONNX does not define.

    Args:
        model: any, its local functions inlined.
        allowed: operator types that a later pass replaces, in whatever domain.
        behind_heads: let pass what a cut at the heads may remove: operators that read no weights and lead to no
            convolution, such as a plugin for non-maximum suppression.

    Raises:
        ModelError: with the nodes, what they are and what to do.
    """
    graph = model.graph
    found = [node for node in all_nodes(graph) if is_foreign(node) and operator_name(node) not in allowed]
    if behind_heads and found:
        inside = _inside_network(graph)
        found = [node for node in found if not inside.isdisjoint(node.output)]
    if not found:
        return
    what, hint = _origin(found[0])
    same = [node for node in found if _origin(node)[0] == what]
    names = ", ".join(_label(node) for node in same[:_SHOWN])
    more = f" and {len(same) - _SHOWN} more" if len(same) > _SHOWN else ""
    raise ModelError(f"the network has {what}: {names}{more}", hint)


def _inside_network(graph: GraphProto) -> set[str]:
    """Outputs of the nodes that read weights, or that lead to a node that does."""
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}
    weights |= {
        node.output[0]
        for node in graph.node
        if node.op_type == "Constant" and any(len(attr.t.dims) > 2 for attr in node.attribute)
    }
    wanted: set[str] = set()
    inside: set[str] = set()
    for node in reversed(graph.node):
        uses = set(g.node_uses(node))
        if not wanted.isdisjoint(node.output) or not weights.isdisjoint(uses) or "Conv" in node.op_type:
            wanted |= uses
            inside.update(node.output)
    return inside


def _label(node: NodeProto) -> str:
    domain = "" if node.domain in (*_ONNX_DOMAINS, FOREIGN_DOMAIN) else f"{node.domain}."
    return f"{node.name or (node.output[0] if node.output else '?')!r} ({domain}{operator_name(node)})"


def _origin(node: NodeProto) -> tuple[str, str]:
    """What a foreign operator is, and what to do."""
    domain = "" if node.domain == FOREIGN_DOMAIN else node.domain.lower()
    name = f"{node.op_type} {operator_name(node)}".lower()
    if domain.startswith(("com.microsoft", "com.ms.")):
        return (
            "operators of ONNX Runtime alone, as its optimiser and its transformers tools write them",
            (
                "build from the file before that optimisation, or save it with graph_optimization_level = "
                "ORT_ENABLE_BASIC"
            ),
        )
    if (
        name.endswith(("_trt", "nms"))
        or "plugin" in f"{domain} {name}"
        or "trt" in domain
        or "tensorrt" in domain
    ):
        return (
            "TensorRT plugins in front of or among its heads, and no plugin library is loaded",
            (
                "export the network with standard ONNX operators; a plugin behind the heads (NMS, top K) is cut off once "
                "the heads are tensors in front of it: name them in a spec, --spec"
            ),
        )
    if any(word in domain for word in ("aten", "prim", "torch", "onnxscript")):
        return (
            "operators of PyTorch that its exporter left as they were",
            (
                "export again with a newer opset (19), with dynamo=True, or with operator_export_type=ONNX, and write the module "
                "with operators that ONNX has"
            ),
        )
    if "mmcv" in domain or "mmdeploy" in domain or name.startswith("mmcv"):
        return (
            "operators of mmcv that ONNX does not define",
            "export the network without them: the raw heads alone, with standard ONNX operators",
        )
    where = f" of the domain {node.domain}" if domain else ""
    return (
        f"operators{where} that ONNX does not define: of another vendor, of a plugin, or misspelt",
        (
            "export the network with standard ONNX operators; deformable convolutions are read in the spellings that "
            "docs/models.md lists"
        ),
    )


def check_inference_mode(model: ModelProto) -> None:
    """Refuse a graph that was exported in training mode.

    Args:
        model: any; nodes that no output needs are removed.

    Raises:
        ModelError: a batch norm uses the statistics of the batch, a dropout drops, or an operator draws random numbers.
    """
    constants = g.initializers(model.graph)
    for node in all_nodes(model.graph):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    found = []
    for node in all_nodes(model.graph):
        if node.domain not in _ONNX_DOMAINS:
            continue
        if node.op_type == "BatchNormalization":
            # Opset 14 has an attribute for it; in older ones the running statistics are outputs.
            training = bool(g.attribute(node, "training_mode", 0)) or sum(map(bool, node.output)) > 1
        elif node.op_type == "Dropout":
            training = _drops(node, constants)
        else:
            training = node.op_type in _RANDOM
        if training:
            found.append(node)
    if found:
        names = ", ".join(_label(node) for node in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ModelError(f"the graph was exported in training mode: {names}{more}", TRAINING_HINT)


def _drops(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    if (
        len(node.input) < 3
        or node.input[2] not in constants
        or not g.as_array(constants[node.input[2]]).any()
    ):
        return False
    ratio = constants.get(node.input[1]) if node.input[1] else None
    return ratio is None or bool(g.as_array(ratio).any())


def mixes_images(model: ModelProto) -> list[str]:
    """Names of the nodes that reduce over the batch, as batch norms in training mode do once an exporter spells them out."""
    constants = g.initializers(model.graph)
    made = g.producers(model.graph)
    found = []
    for node in model.graph.node:
        if not node.op_type.startswith("Reduce"):
            continue
        axes = g.attribute(node, "axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            source = constants.get(node.input[1]) or g.attribute(made[node.input[1]], "value")
            axes = None if source is None else np.ravel(g.as_array(source)).tolist()
        if axes is not None and 0 in axes:
            found.append(node.name or node.output[0])
    return found


def check_weight_types(model: ModelProto) -> None:
    """Refuse weights of a type that TensorRT has no kernels for: float64 and bfloat16.

    Raises:
        ModelError: with the first such weights.
    """
    bad = (TensorProto.DOUBLE, TensorProto.BFLOAT16)
    for tensor in model.graph.initializer:
        if tensor.data_type in bad and len(tensor.dims) > 1:
            raise ModelError(
                f"expected weights of float32 or float16, got {TensorProto.DataType.Name(tensor.data_type)} "
                f"({tensor.name!r})",
                "export the network in float32: model.float() before torch.onnx.export",
            )
