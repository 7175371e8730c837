"""Small trials of what a build needs: does it work here, beyond being installed?"""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from centernet_trt.builder.equivalence import run_model
from centernet_trt.builder.flavours import FlavourName, load_flavour
from centernet_trt.builder.plan import Profile, build_plan
from centernet_trt.runtime.manifest import ShapeRange


def tiny_model() -> ModelProto:
    """One 3x3 convolution from 3 to 2 channels, fp16, on an 8x8 input named `x`."""
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
    """Run a convolution in ONNX Runtime; what it says. Raises BackendError when it fails."""
    result = run_model(tiny_model(), {"x": np.ones((1, 3, 8, 8), dtype=np.float16)}, threads=1)["y"]
    # In the interior 27 ones, each times 0.125.
    return f"runs a convolution: {float(result[0, 0, 4, 4])}, expected 3.375"


def try_tensorrt(name: FlavourName) -> str:
    """Compile a convolution with this flavour; what was built. Raises BackendError when it cannot."""
    plan = build_plan(tiny_model(), "x", Profile(ShapeRange.of(1, 1, 1)), flavour=load_flavour(name))
    return f"compiles a convolution: a plan of {len(plan.data)} bytes, target {plan.target}, {plan.seconds:.1f} s"
