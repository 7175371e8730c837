"""Edit ONNX graphs: producers, consumers, names, pruning."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from numpy.typing import NDArray
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
)

from centernet_trt.builder.graph import external_data
from centernet_trt.errors import ModelError

__all__ = [
    "IR_VERSION",
    "OPSET",
    "add_initializer",
    "as_array",
    "attribute",
    "consumers",
    "copy_model",
    "fresh_name",
    "initializers",
    "keep_only",
    "main_opset",
    "name_nodes",
    "near_names",
    "node_uses",
    "producers",
    "prune",
    "remove_at",
    "rename_uses",
    "set_opset",
    "subgraphs",
    "tensor_names",
]

# 19 is the first opset with DeformConv, which full TensorRT and ONNX Runtime >= 1.31 read as it is. Nothing newer is
# needed, and every TensorRT 10 parser reads 19 (20 renames GridSample's modes).
OPSET = 19


IR_VERSION = 9  # the oldest that opset 19 allows


def copy_model(model: ModelProto) -> ModelProto:
    """A deep copy of the model, weights included, but for those in files (`builder/graph/external_data.py`)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def main_opset(model: ModelProto) -> int:
    """The opset version of the ONNX domain; ModelError if the model imports none."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return int(opset.version)
    raise ModelError(
        "expected a model that imports an opset of the ONNX domain, got none: its operators have no meaning",
        "export the model again; this file is damaged or was edited by hand",
    )


def set_opset(model: ModelProto, domain: str, version: int) -> None:
    """Import `domain` at `version`, replacing an earlier import of it (in place)."""
    for opset in model.opset_import:
        if opset.domain == domain:
            opset.version = version
            return
    model.opset_import.append(helper.make_opsetid(domain, version))


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default` if the node does not have it."""
    for attr in node.attribute:
        if attr.name == name:
            return helper.get_attribute_value(attr)
    return default


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """The constants of the graph by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def as_array(tensor: TensorProto) -> NDArray[Any]:
    """The value of a constant as a numpy array of its own dtype."""
    return external_data.as_array(tensor)


def add_initializer(graph: GraphProto, name: str, value: NDArray[Any]) -> None:
    """Append a constant to the graph (in place)."""
    graph.initializer.append(external_data.make_constant(name, value))


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    found: list[GraphProto] = []
    for attr in node.attribute:
        if attr.HasField("g"):
            found.append(attr.g)
        found.extend(attr.graphs)
    return found


def node_uses(node: NodeProto) -> Iterator[str]:
    """Yield every tensor that a node reads, including those that its subgraphs capture."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            yield from (name for name in node_uses(inner) if name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Tensor name -> the node that computes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Tensor name -> the nodes that read it, once per use."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node_uses(node):
            found.setdefault(name, []).append(node)
    return found


def tensor_names(graph: GraphProto) -> set[str]:
    """Every tensor name of the graph and its subgraphs; a new tensor needs a name outside this set."""
    names = {value.name for value in (*graph.input, *graph.output)}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update((*node.input, *node.output))
        for inner in subgraphs(node):
            names |= tensor_names(inner)
    return names


def fresh_name(base: str, taken: set[str]) -> str:
    """The first of `base`, `base_1`, `base_2`, ... that is not in `taken`; it is added to `taken`."""
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


def rename_uses(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Make nodes, and the nodes of their subgraphs, read `names[x]` instead of `x` (in place)."""
    for node in nodes:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
        for graph in subgraphs(node):
            # ONNX forbids shadowing, so a captured name means the same tensor in every subgraph.
            rename_uses(graph.node, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def name_nodes(model: ModelProto) -> ModelProto:
    """Give every node of the main graph a unique name.

    Unique names are kept. A node without a name is named by its operator and first output (`Conv/536`), which is the same
    in every run; the second and later nodes of one name get a number.
    """
    model = copy_model(model)
    # Existing names take precedence over made-up ones, wherever they are in the graph.
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name:
            output = next((name for name in node.output if name), "none")
            node.name = fresh_name(f"{node.op_type}/{output}", taken)
        elif node.name in seen:
            node.name = fresh_name(node.name, taken)
        seen.add(node.name)
    return model


def near_names(wanted: str, names: Collection[str], count: int = 5) -> list[str]:
    """The names most like `wanted`, best first, for error messages."""
    return get_close_matches(wanted, list(names), n=count, cutoff=0.5)


def prune(graph: GraphProto) -> None:
    """Remove the nodes, constants and value infos that no graph output needs (in place; inputs stay)."""
    by_output = producers(graph)
    needed: set[str] = set()
    queue = [value.name for value in graph.output]
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            if name in by_output:
                queue.extend(node_uses(by_output[name]))
    keep_only(graph.node, lambda node: any(name in needed for name in node.output if name))
    keep_only(graph.initializer, lambda tensor: tensor.name in needed)
    keep_only(graph.sparse_initializer, lambda tensor: tensor.values.name in needed)
    keep_only(graph.value_info, lambda value: value.name in needed)


def keep_only(field: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove from a repeated protobuf field every member that is not wanted (in place)."""
    remove_at(field, [index for index, member in enumerate(field) if not wanted(member)])


def remove_at(field: Any, indices: Iterable[int]) -> None:
    """Remove the members at these indices from a repeated protobuf field (in place).

    Indices, because members have no identity: protobuf makes a new Python object on every access.
    """
    for index in sorted(set(indices), reverse=True):
        del field[index]
