"""Replace If nodes whose condition is constant by the branch that is taken: inline_constant_branches."""

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.passes.fold import fold_constants
from centernet_trt.errors import ModelError

__all__ = ["check_control_flow", "inline_constant_branches"]


def inline_constant_branches(model: ModelProto, *, free_sizes: bool = False) -> ModelProto:
    """Inline the taken branch of every If whose condition does not depend on the image.

    Exporters write such nodes for flags (`self.training`) and for sizes (`squeeze`).

    Args:
        model: any, at opset 13 or newer.
        free_sizes: the batch, height and width that the graph declares are not final: a condition on them stays.

    Returns:
        The model, the same object if there is nothing to inline.
    """
    for _ in range(len(model.graph.node)):
        found = _constant_conditions(model, free_sizes=free_sizes)
        if not found:
            break
        model = g.copy_model(model)
        _inline(model.graph, found)
        g.prune(model.graph)
        model = g.name_nodes(model)
    return model


def check_control_flow(model: ModelProto) -> None:
    """Refuse If, Loop and Scan, whose bodies cannot be typed.

    Raises:
        ModelError: with the nodes.
    """
    nodes = [f"{node.name!r} ({node.op_type})" for node in model.graph.node if g.subgraphs(node)]
    if nodes:
        raise ModelError(
            f"the network has control flow that depends on its input: {', '.join(nodes[:5])}; its nodes can be typed neither "
            "fp16 nor int8",
            "export it without: torch.jit.trace or dynamo=True in place of torch.jit.script, a fixed input size in the spec "
            "where the condition is on sizes, or build with --precision fp32",
        )


def _constant_conditions(model: ModelProto, *, free_sizes: bool) -> dict[int, bool]:
    """Index of each If of the main graph whose condition is constant -> its value."""
    nodes = [(i, node) for i, node in enumerate(model.graph.node) if node.op_type == "If"]
    if not nodes:
        return {}
    probe = g.copy_model(model)
    if free_sizes:
        for value in probe.graph.input:
            dims = value.type.tensor_type.shape.dim
            for index in (0, 2, 3) if len(dims) == 4 else ():
                dims[index].dim_param = f"{value.name}_{index}"
    try:
        refresh_shapes(probe)
    except ModelError:
        return {}  # a size that the graph declares contradicts it: said where sizes are set
    _fix_known_sizes(probe.graph)
    known = g.initializers(fold_constants(probe).graph)
    return {
        i: bool(g.as_array(known[node.input[0]]).reshape(-1)[0])
        for i, node in nodes
        if node.input[0] in known
    }


def _fix_known_sizes(graph: GraphProto) -> None:
    """Make constants of the sizes that are gathered from shapes and known (in place)."""
    values = (*graph.input, *graph.value_info)
    shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}
    made, constants = g.producers(graph), g.initializers(graph)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    gone = []
    for place, node in enumerate(graph.node):
        source = made.get(node.input[0]) if node.op_type == "Gather" else None
        if source is None or source.op_type != "Shape" or source.attribute or node.input[1] not in constants:
            continue
        shape, index = shapes.get(source.input[0]), g.as_array(constants[node.input[1]])
        if shape is None or index.size != 1:
            continue
        at = int(index.reshape(-1)[0])
        if -len(shape.dim) <= at < len(shape.dim) and shape.dim[at].HasField("dim_value"):
            g.add_initializer(graph, node.output[0], index * 0 + shape.dim[at].dim_value)
            gone.append(place)
    g.remove_at(graph.node, gone)


def _inline(graph: GraphProto, conditions: dict[int, bool]) -> None:
    """Replace the nodes at these indices by the nodes of a branch (in place)."""
    taken = g.tensor_names(graph)
    names = {node.name for node in graph.node}
    nodes: list[NodeProto] = []
    for place, node in enumerate(graph.node):
        if place not in conditions:
            nodes.append(node)
            continue
        branch: GraphProto = g.attribute(node, "then_branch" if conditions[place] else "else_branch")
        nodes += _branch_nodes(graph, node, branch, taken, names)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _branch_nodes(
    graph: GraphProto, outer: NodeProto, branch: GraphProto, taken: set[str], names: set[str]
) -> list[NodeProto]:
    """The nodes of a branch under names of their own; its constants are added to the graph (in place)."""
    own = [name for node in branch.node for name in node.output if name]
    own += [tensor.name for tensor in branch.initializer]
    outputs = [value.name for value in branch.output]
    computed = {name for node in branch.node for name in node.output}
    renames = {name: g.fresh_name(f"{outer.name}/{name}", taken) for name in own}
    identities: list[tuple[str, str]] = []
    for inner, name in zip(outputs, outer.output, strict=True):
        if inner in computed and outputs.count(inner) == 1:
            renames[inner] = name
        else:
            identities.append((inner, name))
    for tensor in branch.initializer:
        copy = TensorProto.FromString(tensor.SerializeToString())
        copy.name = renames[tensor.name]
        graph.initializer.append(copy)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in branch.node]
    g.rename_uses(nodes, renames)
    for node in nodes:
        node.name = g.fresh_name(node.name or f"{outer.name}/{node.op_type}", names)
        for index, name in enumerate(node.output):
            node.output[index] = renames.get(name, name)
    nodes += [
        helper.make_node(
            "Identity", [renames.get(inner, inner)], [name], name=g.fresh_name(f"{name}/taken", names)
        )
        for inner, name in identities
    ]
    return nodes
