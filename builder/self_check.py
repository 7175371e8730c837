"""The self-checks of `doctor`: a convolution in ONNX Runtime, and one compiled by TensorRT."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange
from centernet_trt.runtime.trt.flavours import FlavourName, load_flavour


def tiny_model() -> ModelProto:
    """Make a 3x3 convolution from 3 to 2 channels, fp16, on an 8x8 input named `x`."""
    weight = np.full((2, 3, 3, 3), 0.125, dtype=np.float16)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["batch", 2, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def try_onnxruntime() -> str:
    """Run a convolution in ONNX Runtime.

    Returns:
        What it computed, and what it should have.

    Raises:
        BackendError: it fails.
    """
    result = run_model(tiny_model(), {"x": np.ones((1, 3, 8, 8), dtype=np.float16)}, threads=1)["y"]
    # Away from the border: 27 ones, each times 0.125.
    return f"runs a convolution: {float(result[0, 0, 4, 4])}, expected 3.375"


def try_tensorrt(name: FlavourName) -> str:
    """Compile a convolution with a flavour of TensorRT.

    Returns:
        What was built.

    Raises:
        BackendError: it fails, or TensorRT is not installed.
    """
    profile = ProfileRecord(
        batch=ShapeRange.parse("1"), height=ShapeRange.parse("8"), width=ShapeRange.parse("8")
    )
    plan = build_plan(tiny_model(), "x", [profile], flavour=load_flavour(name))
    return f"compiles a convolution: a plan of {len(plan.data)} bytes, target {plan.target}, {plan.seconds:.1f} s"
