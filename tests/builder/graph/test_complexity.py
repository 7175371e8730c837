"""Operations of a graph counted by hand, by each published convention."""

import numpy as np
import pytest
from helpers.onnx_graphs import Node, model

from centernet_trt.builder.graph.complexity import count_complexity
from centernet_trt.errors import ModelError


def test_both_conventions_on_a_graph_counted_by_hand() -> None:
    """A 3x3 convolution with bias 3 -> 4, ReLU, a transposed 2x2 one of stride 2, 4 -> 2, on 8x8 cells."""
    constants = {
        "w": np.zeros((4, 3, 3, 3), np.float32),
        "b": np.zeros(4, np.float32),
        "t": np.zeros((4, 2, 2, 2), np.float32),
    }
    nodes = [
        Node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        Node("Relu", ["c"], ["r"]),
        Node("ConvTranspose", ["r", "t"], ["y"], strides=[2, 2]),
    ]
    found = count_complexity(model(nodes, ["y"], constants, inputs={"x": [1, 3, 8, 8]}), 8, 8)
    cells = 64
    convolution, transposed = 4 * 3 * 9 * cells, 4 * 2 * 4 * cells
    assert found.parameters == 4 * 3 * 9 + 4 + 4 * 2 * 4
    assert found.multiply_adds == convolution + transposed
    assert found.output_convention == convolution + 4 * transposed
    assert found.mmcv_flops == convolution + transposed + 4 * cells + 4 * cells  # the bias, and the ReLU


def test_two_inputs_are_refused() -> None:
    both = model([Node("Add", ["x", "z"], ["y"])], ["y"], inputs={"x": [1, 3, 4, 4], "z": [1, 3, 4, 4]})
    with pytest.raises(ModelError, match="expected a graph with one input, got 2"):
        count_complexity(both, 4, 4)
