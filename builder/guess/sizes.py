"""Sizes of a graph's tensors, and the values that parts of it compute: Sizes, run_part."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from centernet_trt.builder.graph import edit as g
from centernet_trt.builder.graph.compare import random_feeds, run_model
from centernet_trt.builder.graph.shapes import element_types, refresh_shapes
from centernet_trt.errors import CenterNetError

_FLOATS = (1, 10)  # TensorProto.FLOAT, FLOAT16


class Sizes:
    """Sizes of the tensors of a graph whose input has a fixed size.

    A size that inference does not know, as behind a reshape to a computed shape, comes from one run of the graph.
    """

    def __init__(self, model: ModelProto) -> None:
        """Infer the shapes of the model (in place)."""
        refresh_shapes(model)
        self.model = model
        self.types = element_types(model)
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self._known = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self._known |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self._has_run = False

    def rank(self, name: str) -> int | None:
        """Number of dimensions as far as inference knows it; never runs the graph."""
        return len(self._known[name]) if name in self._known else None

    def get(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; empty or with zeros where it is unknown."""
        unknown = name not in self._known or 0 in self._known[name][1:]
        if unknown and not self._has_run:
            self._has_run = True
            self._measure()
        return self._known.get(name, ())

    def _measure(self) -> None:
        """Run the graph once, with every float tensor of unknown size as an output."""
        model = g.copy_model(self.model)
        for value in model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if not dim.dim_value:
                    dim.dim_value = 1
        unknown = [
            name
            for node in model.graph.node
            for name in node.output
            if name and self.types.get(name, 1) in _FLOATS and 0 in self._known.get(name, (0, 0))[1:]
        ]
        del model.graph.output[:]
        del model.graph.value_info[:]
        model.graph.output.extend(
            helper.make_tensor_value_info(name, self.types.get(name, 1), None) for name in unknown
        )
        try:
            found = run_model(model, random_feeds(model), mode="fast")
        except CenterNetError:  # an operator that ONNX Runtime does not have: the sizes stay unknown
            return
        self._known |= {name: array.shape for name, array in found.items()}


def run_part(sizes: Sizes, feeds: Mapping[str, NDArray[Any]], target: str) -> NDArray[Any] | None:
    """Compute a tensor from given values of tensors before it.

    Args:
        sizes: of the graph.
        feeds: values by tensor name. Other tensors that are needed, such as features, get random numbers.
        target: name of the tensor.

    Returns:
        Its value, or None if the part cannot be run by itself.
    """
    graph, made = sizes.model.graph, g.producers(sizes.model.graph)
    constants = g.initializers(graph)
    inputs, tensors = dict(feeds), {}
    wanted: set[str] = set()
    queue, seen = [target], set(feeds)
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        maker = made.get(name)
        if name in constants:
            tensors[name] = constants[name]
        elif maker is not None and maker.op_type == "Shape" and all(sizes.get(maker.input[0])[1:]):
            shape = (1, *sizes.get(maker.input[0])[1:])
            first, last = g.attribute(maker, "start", 0), g.attribute(maker, "end", len(shape))
            tensors[name] = numpy_helper.from_array(np.array(shape[first:last], dtype=np.int64), name)
        elif maker is None or maker.op_type in ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"):
            shape = sizes.get(name)
            if len(shape) != 4 or 0 in shape[1:]:
                return None
            inputs[name] = np.random.default_rng(1).normal(size=(1, *shape[1:])).astype(np.float32)
        else:
            wanted.update(maker.output)
            queue += list(g.node_uses(maker))
    part = ModelProto()
    part.ir_version = sizes.model.ir_version
    part.opset_import.extend(sizes.model.opset_import)
    part.graph.name = "part"
    part.graph.node.extend(node for node in graph.node if not wanted.isdisjoint(filter(None, node.output)))
    part.graph.initializer.extend(tensors.values())
    for name, array in inputs.items():
        part.graph.input.append(helper.make_tensor_value_info(name, sizes.types.get(name, 1), array.shape))
    part.graph.output.append(helper.make_tensor_value_info(target, sizes.types.get(target, 1), None))
    try:
        return run_model(part, inputs, mode="fast", threads=1)[target]
    except CenterNetError:
        return None
