"""Cuts the graph down to its heads: what follows them (sigmoid, decode, NMS) is done by a kernel."""

from collections.abc import Sequence

from onnx import ModelProto, ValueInfoProto

from centernet_trt.builder import graph as g
from centernet_trt.builder import inference
from centernet_trt.errors import ModelError

__all__ = ["keep_heads"]


def keep_heads(model: ModelProto, outputs: Sequence[str]) -> ModelProto:
    """Return the model whose outputs are exactly these tensors, in this order, and nothing beyond them.

    Args:
        model: any model; a head may be an output or an internal tensor (the logits before a Sigmoid).
        outputs: tensor names, each once.

    Returns:
        The model without the nodes, constants and inputs that these tensors do not need.

    Raises:
        ModelError: no names, a name twice, a tensor that no node computes, or one of unknown type.
    """
    if not outputs:
        raise ModelError("no heads were named", "name at least the heatmap tensor")
    twice = sorted({name for name in outputs if outputs.count(name) > 1})
    if twice:
        raise ModelError(
            f"heads named more than once: {', '.join(twice)}", "each head needs a tensor of its own"
        )
    model = g.copy_model(model)
    graph = model.graph
    made = g.producers(graph)
    for name in outputs:
        if name not in made:
            raise _missing(model, name)
    kept = [_value(model, name) for name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    g.prune(graph)
    used = {name for node in graph.node for name in g.node_uses(node)}
    g.keep_only(graph.input, lambda value: value.name in used)
    if not graph.input:
        raise ModelError(
            f"the heads {', '.join(outputs)} do not depend on any input of the graph",
            "name the network's heads",
        )
    return model


def _value(model: ModelProto, name: str) -> ValueInfoProto:
    """Return the type of a tensor as the model notes it, else as shape inference finds it."""
    for attempt in range(2):
        for value in (*model.graph.output, *model.graph.value_info):
            if value.name == name and value.type.WhichOneof("value"):
                found = ValueInfoProto()
                found.CopyFrom(value)
                return found
        if not attempt:
            model = g.copy_model(model)
            inference.refresh_shapes(model, clear_outputs=False)
    raise ModelError(
        f"the type of tensor {name!r} is unknown: it comes from an operator that ONNX does not define",
        "make it an output of the graph when exporting",
    )


def _missing(model: ModelProto, name: str) -> ModelError:
    graph = model.graph
    outputs = [value.name for value in graph.output]
    if name in {value.name for value in graph.input} or name in g.initializers(graph):
        return ModelError(
            f"{name!r} is an input or constant of the graph, not something it computes; "
            f"its outputs are {', '.join(outputs)}",
            "name a tensor that a node makes",
        )
    near = g.near_names(name, g.producers(graph).keys())
    found = f"; near names: {', '.join(near)}" if near else ""
    return ModelError(
        f"the graph has no tensor {name!r}{found}; its outputs are {', '.join(outputs)}",
        "name the heads in the spec by the tensors of this graph",
    )
