"""ONNX Runtime as executor: faithful to the graph's types when asked, and clear when it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from centernet_trt.errors import BackendError
from centernet_trt.runtime.host.onnxruntime import open_session


def half_model() -> onnx.ModelProto:
    """y = (x * 2) * 0.5 in fp16: 60000 overflows on the way."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Mul", ["d", "half"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])],
        [
            numpy_helper.from_array(np.array([2], dtype=np.float16), "two"),
            numpy_helper.from_array(np.array([0.5], dtype=np.float16), "half"),
        ],
        value_info=[helper.make_tensor_value_info("d", TensorProto.FLOAT16, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external weights"])
@pytest.mark.parametrize(("mode", "expected"), [("fast", 60000.0), ("faithful", np.inf)])
def test_only_faithful_mode_overflows_as_fp16_does(
    tmp_path: Path, mode: Any, expected: float, external: bool
) -> None:
    path = tmp_path / "half.onnx"
    onnx.save_model(half_model(), path, save_as_external_data=external, location="w.bin", size_threshold=0)
    session = open_session(path, mode, threads=1)
    (found,) = session.run(None, {"x": np.array([60000], dtype=np.float16)})
    assert found.tolist() == [expected]


def test_refusals_carry_onnxruntimes_words(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="refuses the graph"):
        open_session(b"not a graph")
    with pytest.raises(BackendError, match="refuses the graph"):
        open_session(tmp_path / "absent.onnx")
