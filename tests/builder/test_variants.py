"""Whatever a user brings: guessed, built with a TensorRT plan, and its boxes held to the known answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import variants
from onnx import ModelProto, numpy_helper
from tiny_centernet import scene, tiny_model, tiny_spec

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.guess import guess_spec
from centernet_trt.builder.loading import load_model
from centernet_trt.runtime import Detector
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.spec import ModelSpec


def external(folder: Path) -> Path:
    path = folder / "external.onnx"
    onnx.save_model(tiny_model(), path, save_as_external_data=True, location="external.bin", size_threshold=0)
    return path


def saved(make: Callable[[], ModelProto]) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        onnx.save(make(), folder / "model.onnx")
        return folder / "model.onnx"

    return save


MMDET = {"hm": "center_heatmap", "wh": "wh", "reg": "offset"}
GRAPHS: dict[str, Callable[[Path], Path]] = {
    "dynamic": saved(tiny_model),
    "static": saved(lambda: tiny_model(size=(64, 96))),
    "mmdet names": saved(lambda: variants.renamed(MMDET)),
    "sigmoid baked in": saved(variants.baked_sigmoid),
    "peaks baked in": saved(variants.baked_peaks),
    "decode baked in": saved(variants.baked_decode),
    "one concatenated output": saved(variants.concatenated),
    "channels last": saved(variants.channels_last),
    "identities, strays": saved(variants.with_identities),
    "fp16": saved(variants.half_exported),
    "external data": external,
    **{f"opset {version}": saved(lambda v=version: variants.at_opset(v)) for version in (9, 11, 13, 17, 19, 21, 23, 25)},
}  # fmt: skip


def as_tiny(guessed: ModelSpec, tiny: ModelSpec) -> ModelSpec:
    """The guess, with the tiny network's own normalisation: that no graph tells."""
    fields = ("channel_order", "scale", "mean", "std")
    image = guessed.input.model_copy(update={name: getattr(tiny.input, name) for name in fields})
    return guessed.model_copy(update={"input": image, "class_names": tiny.class_names})


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS.keys())
def test_guessed_built_and_right(make: Callable[[Path], Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    path = make(tmp_path)
    spec = as_tiny(guess_spec(load_model(path)).require_spec(), tiny_spec())
    side = ShapeRange.of(32, 64, 128)
    ranges: dict[str, Any] = {} if spec.input.size.rule == "fixed" else {"height": side, "width": side}
    bundle = build(path, spec, tmp_path / "b", BuildOptions(precision="fp16", flavour="rtx", **ranges))
    assert bundle.manifest.plans[0].bytes > 1000
    assert {head.dtype for head in bundle.manifest.heads} == {"float16"}
    image = scene(64, 96)
    with Detector.load(bundle, mode="faithful", threads=1) as detector:
        found = detector.detect(image, threshold=0.5)
    assert found.label.tolist() == [0]
    assert found.score[0] == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-3)
    width = found.xyxy[0, 2] - found.xyxy[0, 0]
    assert width == pytest.approx(4 * (8 * 128 / 255 + 1), abs=0.02)


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
