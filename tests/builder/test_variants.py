"""Whatever a user brings: guessed, built with a TensorRT plan, and its boxes held to the known answer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graph_cases import GRAPHS, build_case
from helpers.tiny_centernet import scene, tiny_model, tiny_spec
from onnx import numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.runtime import Detector
from centernet_trt.runtime.manifest import ShapeRange


@pytest.mark.filterwarnings("ignore")  # ONNX Runtime's quantiser
@pytest.mark.parametrize("name", GRAPHS)
def test_guessed_built_and_right(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    _, bundle = build_case(name, tmp_path)
    assert bundle.manifest.plans[0].bytes > 1000
    assert {head.dtype for head in bundle.manifest.heads} == {"float16"}
    with Detector.load(bundle, mode="faithful", threads=1) as detector:
        found = detector.detect(scene(64, 96), threshold=0.5)
    assert found.label.tolist() == [0]
    int8 = bundle.manifest.precision == "int8"
    assert found.score[0] == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-2 if int8 else 1e-3)
    width = found.xyxy[0, 2] - found.xyxy[0, 0]
    assert width == pytest.approx(4 * (8 * 128 / 255 + 1), abs=0.3 if int8 else 0.02)


def test_weights_shared_by_two_heads_survive(tmp_path: Path) -> None:
    model = tiny_model()
    shared = np.zeros((2, 3, 4, 4), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(shared, "shared"))
    for node in model.graph.node[1:]:
        node.input[1] = "shared"
    onnx.save(model, tmp_path / "model.onnx")
    bundle = build(
        tmp_path / "model.onnx",
        tiny_spec(),
        tmp_path / "b",
        BuildOptions(
            precision="fp16",
            flavour="none",
            height=ShapeRange.of(32, 32, 32),
            width=ShapeRange.of(32, 32, 32),
        ),
    )
    assert bundle.manifest.comparison["wh"].max_rel == 0
