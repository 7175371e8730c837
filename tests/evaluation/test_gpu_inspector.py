"""Counting layers as engine inspectors tell them: names alone, or with types and formats."""

import json
from typing import Any

from centernet_trt.evaluation.gpu.inspector import count_layers, inspect_engine

INT8 = {
    "Name": "conv1 + relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
    "Weights": {"Type": "Int8", "Count": 9408},
}
HALF = {
    "Name": "conv2",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "y", "Format/Datatype": "Channel major FP16 format"}],
    "TacticName": "sm80_xmma_fprop_f16f16",
}
POOL = {"Name": "pool", "LayerType": "PoolingV2", "Inputs": [{"Name": "z", "Format/Datatype": "Int8"}]}


def test_layers_with_details() -> None:
    found = count_layers([INT8, HALF, POOL])
    assert (found["layers"], found["convolutions"], found["int8_convolutions"]) == (3, 2, 1)
    assert found["detailed"]
    told = found["told"][0]
    assert (told["Name"], told["TacticName"]) == (INT8["Name"], INT8["TacticName"])
    assert told["Inputs"] == ["Thirty-two wide channel vectorized row major Int8 format"]
    assert "Weights" not in told


def test_names_alone_say_nothing_of_int8() -> None:
    found = count_layers(["Conv_0 int8", "Relu_1"])
    assert (found["layers"], found["convolutions"], found["int8_convolutions"]) == (2, 1, 0)
    assert not found["detailed"]


def test_a_long_list_is_cut_and_counted_whole() -> None:
    found = count_layers([INT8] * 1000)
    assert found["int8_convolutions"] == 1000
    assert len(found["told"]) == 150


class Module:
    __name__, __version__ = "tensorrt_rtx", "1.7"

    class LayerInformationFormat:
        JSON = 1


class Engine:
    def __init__(self, text: Any) -> None:
        self.text = text

    def create_engine_inspector(self) -> "Engine":
        return self

    def get_engine_information(self, form: int) -> str:
        assert form == 1
        if isinstance(self.text, Exception):
            raise self.text
        return str(self.text)


def test_an_engine_is_asked_and_its_refusals_are_told() -> None:
    assert inspect_engine(Module, Engine(json.dumps({"Layers": [INT8]})))["int8_convolutions"] == 1
    assert "no engine inspector" in inspect_engine(Module, object())["problem"]
    assert "gives no JSON" in inspect_engine(Module, Engine("nothing"))["problem"]
    assert "fails: broken" in inspect_engine(Module, Engine(RuntimeError("broken")))["problem"]
