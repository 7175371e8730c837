"""ONNX Runtime sessions: from every source, in every mode, with a clear error for a graph that it refuses."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from centernet_trt.errors import BackendError
from centernet_trt.runtime.host.onnxruntime import Mode, open_session


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


@pytest.mark.parametrize("source", ["one file", "external weights", "bytes", "model"])
@pytest.mark.parametrize(("mode", "expected"), [("fast", 60000.0), ("faithful", np.inf)])
def test_only_faithful_mode_overflows_as_fp16_does(
    tmp_path: Path, mode: Any, expected: float, source: str
) -> None:
    path = tmp_path / "half.onnx"
    external = source == "external weights"
    onnx.save_model(half_model(), path, save_as_external_data=external, location="w.bin", size_threshold=0)
    given: dict[str, Any] = {"bytes": path.read_bytes(), "model": half_model()}
    session = open_session(given.get(source, path), mode, threads=1)
    (found,) = session.run(None, {"x": np.array([60000], dtype=np.float16)})
    assert found.tolist() == [expected]


def test_refusals_carry_onnxruntimes_words(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="refuses the graph"):
        open_session(b"not a graph")
    for mode in get_args(Mode):
        with pytest.raises(BackendError, match="refuses the graph"):
            open_session(tmp_path / "absent.onnx", mode)


def test_rounding_leaves_a_graph_without_fp16_alone(tmp_path: Path) -> None:
    """Its weights are then mapped by ONNX Runtime, and not read here."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "single",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    before = model.SerializeToString()
    (found,) = open_session(model, "faithful").run(None, {"x": np.array([3], dtype=np.float32)})
    assert found.tolist() == [-3]
    assert model.SerializeToString() == before


def test_sessions_are_opened_in_one_place() -> None:
    root = Path(__file__).parents[3]
    product = [root / name for name in ("builder", "cli", "evaluation", "runtime", "src")]
    openers = [
        str(path.relative_to(root))
        for folder in product
        for path in folder.rglob("*.py")
        if "InferenceSession(" in path.read_text(encoding="utf-8")
    ]
    assert openers == ["runtime/host/onnxruntime.py"]
