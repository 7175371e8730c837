"""Makes ONNX Runtime's CPU provider really round an fp16 graph to fp16, operation by operation.

The CPU provider has no fp16 arithmetic: it runs such nodes in fp32 and casts at the edges of the graph. Even with
every optimisation off (ORT_DISABLE_ALL) it drops the casts *between* nodes, so 60000 * 2 * 0.5 gives 60000
where fp16 gives inf (measured, 1.31). It keeps them where two nodes in a row take any type as it is: two
Identity nodes behind each fp16 tensor therefore force the rounding.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


def round_every_tensor(model: "ModelProto") -> None:
    """Put two Identity nodes behind every float16 tensor that a node computes (in place).

    The values are the same by ONNX's definition; run without optimisation, ONNX Runtime's come to agree with it.
    Tensor names stay. The model must state the type of every tensor (`value_info`), as a bundle's model does.
    """
    from onnx import NodeProto, TensorProto, helper

    graph = model.graph
    values = (*graph.value_info, *graph.output)
    half = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes: list[NodeProto] = []
    for node in graph.node:
        behind = []
        for index, name in enumerate(node.output):
            if name in half:
                raw, once = f"{name}/before_rounding", f"{name}/between_rounding"
                node.output[index] = raw
                behind += [
                    helper.make_node("Identity", [raw], [once]),
                    helper.make_node("Identity", [once], [name]),
                ]
        nodes += [node, *behind]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
