"""Graphs that come with Q/DQ, from ONNX Runtime's quantiser and in the style of quantisation-aware training."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.input_profiles import input_profile
from helpers.tiny_centernet import save_tiny_model, tiny_spec
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.passes.qdq import carries_quantisation, repair_quantised
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.errors import ModelError
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.trt.flavours import load_flavour

IMAGE = np.random.default_rng(3).uniform(0, 1, (2, 3, 32, 32)).astype(np.float32)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """A few random images."""

    def __init__(self) -> None:
        self.rows: Iterator[Any] = iter([{"image": IMAGE}] * 2)

    def get_next(self) -> Any:
        return next(self.rows, None)


@pytest.fixture
def quantised(tmp_path: Path) -> Any:
    """Quantise the tiny network with ONNX Runtime; extra arguments go to `quantize_static`."""

    def make(**arguments: Any) -> ModelProto:
        source = save_tiny_model(tmp_path)
        target = tmp_path / "quantised.onnx"
        quantize_static(source, target, Reader(), **arguments)
        return load_model(target)

    return make


SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}


def same(a: ModelProto, b: ModelProto) -> None:
    before, after = (run_model(model, {"image": IMAGE}) for model in (a, b))
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8 around 128"])
def test_onnxruntimes_symmetric_graphs_are_repaired_exactly(
    quantised: Any, kind: Any, per_channel: bool
) -> None:
    source = quantised(
        activation_type=kind, weight_type=QuantType.QInt8, per_channel=per_channel, extra_options=SYMMETRIC
    )
    assert carries_quantisation(source)
    repaired = repair_quantised(source)
    same(source, repaired)
    kinds = {t.name: t.data_type for t in repaired.graph.initializer}
    assert TensorProto.INT32 not in kinds.values()
    for node in repaired.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert kinds[node.input[2]] == TensorProto.INT8
    refresh_shapes(repaired)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    plan = build_plan(repaired, "image", [input_profile("1:2:2", "32:32:64")], flavour=load_flavour("rtx"))
    assert len(plan.data) > 1000


@pytest.mark.filterwarnings("ignore")
def test_asymmetric_graphs_are_refused_by_name(quantised: Any) -> None:
    source = quantised(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    with pytest.raises(ModelError, match=r"QuantizeLinear of 'image'\): uint8 with zero point 0") as error:
        repair_quantised(source)
    assert "symmetric int8" in error.value.hint


@pytest.mark.filterwarnings("ignore")
def test_integer_operators_are_refused(quantised: Any) -> None:
    source = quantised(
        quant_format=QuantFormat.QOperator, weight_type=QuantType.QInt8, extra_options=SYMMETRIC
    )
    with pytest.raises(ModelError, match="QLinearConv"):
        repair_quantised(source)


def trained_style(scale: float = 0.01, zero: Any = None, weight_scale: float = 0.02) -> ModelProto:
    """As fake quantisation is exported: float weights behind Q/DQ of their own, per channel."""
    zero = np.zeros((), np.int8) if zero is None else zero
    weight = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(np.float32)
    tensors = {
        "s": np.array(scale, np.float32), "z": zero, "w": weight,
        "ws": np.full(4, weight_scale, np.float32), "wz": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dq"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0, name="wq"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0, name="wdq"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], pads=[1, 1, 1, 1], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "qat",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, ["n", 4, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_the_style_of_training_is_taken_as_it_is() -> None:
    source = trained_style()
    repaired = repair_quantised(source)
    assert [node.op_type for node in repaired.graph.node] == [node.op_type for node in source.graph.node]
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    refresh_shapes(repaired)
    assert build_plan(repaired, "x", [input_profile("1:1:2", "16")], flavour=load_flavour("rtx")).data


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": 0.0}, "q: expected a scale above 0, got 0.0"),
        ({"scale": float("nan")}, "q: expected a scale above 0, got nan"),
        ({"weight_scale": -0.1}, "wq: expected a scale above 0, got -0.1"),
        ({"zero": np.array(3, np.int8)}, "int8 with zero point 3"),
        ({"zero": np.array(0, np.int16)}, "int16 with zero point 0"),
    ],
)
def test_what_tensorrt_refuses_is_named(arguments: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        repair_quantised(trained_style(**arguments))


def test_a_graph_without_quantisation_comes_back_as_it_is(tmp_path: Path) -> None:
    source = onnx.load(save_tiny_model(tmp_path))
    assert repair_quantised(source) is source


def test_pytorchs_fake_quantisation_is_built(tmp_path: Path) -> None:
    """Exported by PyTorch itself, scales and zero points behind Identity; the result within fp16 of what PyTorch meant."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    quantisation = torch.ao.quantization

    def quantiser(observer: Any, scheme: Any, **more: Any) -> Any:
        limits = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
        return quantisation.FakeQuantize(observer=observer, qscheme=scheme, **limits, **more)

    class Conv(torch.nn.Conv2d):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.given = quantiser(quantisation.MovingAverageMinMaxObserver, torch.per_tensor_symmetric)
            observer = quantisation.MovingAveragePerChannelMinMaxObserver
            self.own = quantiser(observer, torch.per_channel_symmetric, ch_axis=0)

        def forward(self, x: Any) -> Any:
            return self._conv_forward(self.given(x), self.own(self.weight), self.bias)

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            layers = [Conv(3, 8, 4, 4), torch.nn.ReLU(), Conv(8, 8, 3, padding=1), torch.nn.ReLU()]
            self.body = torch.nn.Sequential(*layers)
            self.hm, self.wh, self.reg = (Conv(8, 2, 1) for _ in range(3))

        def forward(self, x: Any) -> Any:
            features = self.body(x)
            return self.hm(features), self.wh(features), self.reg(features)

    torch.manual_seed(0)
    network, names = Net(), ("hm", "wh", "reg")
    for _ in range(3):
        network(torch.rand(2, 3, 64, 96))
    network.eval().apply(quantisation.disable_observer)
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}} | {name: {0: "batch"} for name in names}
    path = tmp_path / "trained.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(2, 3, 64, 96),), path, input_names=["image"], output_names=list(names),
            dynamic_axes=dynamic, opset_version=17, dynamo=False,
        )  # fmt: skip
    side = ShapeRange.of(32, 64, 96)
    options = BuildOptions(precision="int8", flavour="none", height=side, width=side)
    bundle = build(path, tiny_spec(), tmp_path / "b", options)
    assert all(row.max_rel < 0.02 for row in bundle.manifest.comparison.values())
    kinds = [node.op_type for node in onnx.load(bundle.model_path).graph.node]
    assert kinds.count("QuantizeLinear") >= 5
