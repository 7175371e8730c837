"""int8 of the two public models: plans of TensorRT for RTX, exact equalisation, and what it gains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.calibration.images import CalibrationImages, find_images
from centernet_trt.builder.graph.compare import run_model
from centernet_trt.builder.graph.io import keep_heads, set_input_size
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.graph.shapes import refresh_shapes
from centernet_trt.builder.int8.detection_loss import LossEvaluator
from centernet_trt.builder.int8.equalise import replay
from centernet_trt.builder.int8.layers import Rules
from centernet_trt.builder.int8.quantise import Int8Options, make_int8
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import fold_constants
from centernet_trt.builder.prepare import Silence
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.presets import read_spec

pytestmark = [pytest.mark.slow, pytest.mark.shared]

MODELS = {
    "coco": ("mb3_centernet_coco/mb3_centernet.onnx", "ttf-ltrb"),
    "centerface": ("centerface/centerface.onnx", "centerface"),
}


@pytest.fixture(scope="module")
def few(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of the training images, in a folder."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((shared / "assets/coco128_train2017/images").iterdir())[:8]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_builds_an_int8_plan_of_every_layer_that_may_be(
    name: str, shared: Path, few: Path, tmp_path: Path
) -> None:
    path, preset = MODELS[name]
    options = BuildOptions("int8", flavour="rtx", calibration=few, int8=Int8Options(everything=True))
    if name == "centerface":
        options = replace(options, height=ShapeRange.of(32, 480, 1088), width=ShapeRange.of(32, 640, 1920))
    made = build(shared / "assets" / path, read_spec(preset), tmp_path / name, options)
    assert made.manifest.plans[0].bytes > 1_000_000
    assert made.manifest.calibration is not None
    assert made.manifest.calibration.int8_share > 0.8


def test_equalisation_is_exact_and_worth_it(shared: Path, few: Path) -> None:
    """Every layer in int8 by percentile: with equalisation the boxes stay, without it most are lost."""
    spec = read_spec("ttf-ltrb")
    model = load_model(shared / "assets" / MODELS["coco"][0])
    model = keep_heads(set_input_size(model, "images", 512, 512), spec.heads.tensors)
    model = fold_batch_norm(fold_constants(model))
    refresh_shapes(model)
    images: CalibrationImages = find_images(few)
    options = Int8Options(calibration=images, method="percentile", everything=True)
    evaluator = LossEvaluator(model, spec, images.images)
    f1 = {}
    for equal in (True, False):
        rules = Rules(equalise=equal, correct_bias=equal)
        result = make_int8(model, spec, (512, 512), replace(options, rules=rules), Silence())
        f1[equal] = evaluator.evaluate(result.model).agreement.f1
        if equal:
            exponents = {n: t.exponents for n, t in result.record.tensors.items() if t.exponents}
            equalised = replay(model, exponents)
    x = np.random.default_rng(0).uniform(0, 255, (1, 3, 512, 512)).astype(np.float32)
    before, after = (run_model(one, {"images": x}, mode="fast") for one in (model, equalised))
    assert len(exponents) > 40
    for head, value in before.items():
        np.testing.assert_array_equal(after[head], value)
    assert f1[True] > f1[False] + 0.05
