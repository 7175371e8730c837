"""The whole road on the tiny network: bundle, plan, comparison, and what is refused or survives."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.tiny_centernet import save_tiny_model, scene, tiny_spec

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.graph.source_comparison import batch_check_shape
from centernet_trt.builder.profiles import ProfileRequest, resolve_profiles
from centernet_trt.errors import BundleError, InputError, ModelError, SpecError
from centernet_trt.runtime import Detector, EngineBundle, preset
from centernet_trt.runtime.manifest import ProfileRecord, ShapeRange

# The attribute of the package is the function.
module = importlib.import_module("centernet_trt.builder.build")
SMALL = ShapeRange(min=32, opt=64, max=128)
OPTIONS = {"height": SMALL, "width": SMALL, "flavour": "none"}


def options(**over: Any) -> BuildOptions:
    return BuildOptions(**{**OPTIONS, **over})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_with_a_plan_detects(tmp_path: Path, precision: Any) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = save_tiny_model(tmp_path)
    bundle = build(model, tiny_spec(), tmp_path / "b", options(precision=precision, flavour="rtx"))
    read = EngineBundle.load(tmp_path / "b")
    assert read.manifest == bundle.manifest
    (plan,) = read.manifest.plans
    assert (plan.flavour, plan.target, plan.tf32) == ("rtx", "portable", False)
    assert (tmp_path / "b" / plan.file).stat().st_size == plan.bytes > 1000
    assert {head.dtype for head in read.manifest.heads} == {"float32" if precision == "fp32" else "float16"}
    with Detector.load(read, mode="faithful", threads=1) as detector:
        found = detector.detect(scene(), threshold=0.5)
        assert "the plan was built, not run" in detector.note
    assert found.label.tolist() == [0]
    # 0.02 pixels: the width is about 5 cells, an fp16 step there 1/256 of a cell.
    level = 128 / 255
    assert found.xyxy[0, 2] - found.xyxy[0, 0] == pytest.approx(4 * (8 * level + 1), abs=0.02)


def test_fp16_is_typed_and_differs_while_fp32_does_not(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    exact = build(model, tiny_spec(), tmp_path / "a", options(precision="fp32")).manifest
    half = build(model, tiny_spec(), tmp_path / "b", options(precision="fp16")).manifest
    # The offset head is a constant that fp16 holds, so only the others can differ.
    for head in ("hm", "wh"):
        assert exact.comparison[head].max_rel < 1e-5
        assert 1e-5 < half.comparison[head].max_rel < 1e-2
    rows = json.loads((tmp_path / "b" / "layers.json").read_text())
    assert {row["precision"] for row in rows} == {"fp16"}
    assert {row["source"] for row in rows} == {"graph"}


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    manifest = build(model, tiny_spec(), tmp_path / "b", options(command="centernet-trt build x")).manifest
    assert manifest.command == "centernet-trt build x"
    assert manifest.spec.input.name == "image"
    assert manifest.source.file == "tiny.onnx"
    assert manifest.source.bytes == model.stat().st_size
    assert manifest.passes[0].name == "load"
    assert str(tmp_path) not in (tmp_path / "b" / "manifest.json").read_text()


def test_a_failing_or_interrupted_build_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path)
    build(model, tiny_spec(), tmp_path / "b", options())
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    for error in (KeyboardInterrupt(), ModelError("made up")):

        def dying(*_: Any, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(module, "requested_layers", dying)
        with pytest.raises(type(error)):
            build(model, tiny_spec(), tmp_path / "b", options())
        assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    EngineBundle.load(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "tiny.onnx"]


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"heads": {"heatmap": {"tensor": "heat"}, "box": {"tensor": "wh"}}}, "heat"),
        ({"class_names": ["a", "b", "c"]}, r"'hm' has shape .* expected \(N, 3, H, W\)"),
        ({"stride": 8}, "stride 8"),
        (
            {"heads": {"heatmap": {"tensor": "hm"}, "box": {"tensor": "wh", "encoding": "ltrb"}}},
            r"'wh' has shape .* expected \(N, 4, H, W\)",
        ),
    ],
)
def test_a_spec_that_does_not_fit_is_named(tmp_path: Path, over: dict[str, Any], words: str) -> None:
    with pytest.raises((SpecError, ModelError), match=words):
        build(save_tiny_model(tmp_path), tiny_spec(**over), tmp_path / "b", options())
    assert not (tmp_path / "b").exists()


def test_two_inputs_need_a_name(tmp_path: Path) -> None:
    model = onnx.load(save_tiny_model(tmp_path))
    model.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["other"], ["negative"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("negative", onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(SpecError, match="2 inputs: image, other"):
        build(tmp_path / "two.onnx", tiny_spec(), tmp_path / "b", options())


def test_a_fixed_graph_takes_the_specs_size(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path, size=(128, 128))
    size = {"size": {"rule": "fixed", "width": 96, "height": 64}, "resize": {"policy": "stretch"}}
    manifest = build(model, tiny_spec(input=size), tmp_path / "b", BuildOptions(flavour="none")).manifest
    assert (manifest.profile.height.max, manifest.profile.width.max) == (64, 96)


def test_profiles_are_held_to_the_size_rule() -> None:
    odd = ShapeRange(min=32, opt=100, max=128)
    with pytest.raises(InputError, match="multiple of 32"):
        resolve_profiles(tiny_spec(), ProfileRequest(height=odd))
    with pytest.raises(InputError, match="the spec fixes the width at 512"):
        resolve_profiles(preset("ttf-ltrb"), ProfileRequest(width=SMALL))
    (only,) = resolve_profiles(preset("official-hourglass"), ProfileRequest())
    assert str(only.height) == "128:512:1024"


def test_output_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="not a bundle"):
        build(save_tiny_model(tmp_path), tiny_spec(), tmp_path / "b", options())
    assert (tmp_path / "b" / "thesis.txt").read_text() == "precious"


def beyond_fp16(tmp_path: Path, back: bool) -> Path:
    """The tiny network with logits of about 8 times 60000: beyond 65504; `back`: divided again."""
    model = onnx.load(save_tiny_model(tmp_path))
    bias = next(t for t in model.graph.initializer if t.name == "hm.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([8, 8], dtype=np.float32), "hm.bias"))
    constants = {"big": 60000.0, "small": 1 / 60000}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name)
        for name, value in constants.items()
    )
    model.graph.node[0].output[0] = "logits"
    large = "large" if back else "hm"
    model.graph.node.append(onnx.helper.make_node("Mul", ["logits", "big"], [large], name="enlarge"))
    if back:
        model.graph.node.append(onnx.helper.make_node("Mul", ["large", "small"], ["hm"], name="reduce"))
    onnx.save(model, tmp_path / "big.onnx")
    return tmp_path / "big.onnx"


def test_what_fp16_cannot_hold_stays_fp32_and_says_why(tmp_path: Path) -> None:
    model = beyond_fp16(tmp_path, back=True)
    manifest = build(model, tiny_spec(), tmp_path / "b", options(precision="fp16")).manifest
    assert set(manifest.kept_fp32) == {"enlarge", "reduce"}
    assert "tensor large reaches" in manifest.kept_fp32["enlarge"]
    assert manifest.comparison["hm"].max_rel < 1e-2
    rows = {row["name"]: row for row in json.loads((tmp_path / "b" / "layers.json").read_text())}
    assert rows["enlarge"]["precision"] == "fp32"
    assert rows["enlarge"]["reason"] == manifest.kept_fp32["enlarge"]


def test_a_head_that_fp16_cannot_hold_is_an_error_or_fp32(tmp_path: Path) -> None:
    model = beyond_fp16(tmp_path, back=False)
    with pytest.raises(ModelError, match="head 'hm' reaches") as error:
        build(model, tiny_spec(), tmp_path / "b", options(precision="fp16"))
    assert "--heads fp32" in error.value.hint
    manifest = build(model, tiny_spec(), tmp_path / "b", options(precision="fp16", heads="fp32")).manifest
    assert manifest.comparison["hm"].max_rel < 1e-2
    assert {head.dtype for head in manifest.heads} == {"float32"}


def test_fp32_heads_are_computed_in_fp32(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    manifest = build(model, tiny_spec(), tmp_path / "b", options(heads="fp32")).manifest
    assert {head.dtype for head in manifest.heads} == {"float32"}
    assert manifest.input.dtype == "float16"
    assert set(manifest.kept_fp32.values()) == {f"makes the fp32 head {name}" for name in ("hm", "wh", "reg")}


def test_several_targets_make_several_plans(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = save_tiny_model(tmp_path)
    over = {"flavour": "rtx", "targets": ("portable", "sm_75")}
    plans = build(model, tiny_spec(), tmp_path / "b", options(**over)).manifest.plans
    assert [(plan.file, plan.target) for plan in plans] == [
        ("rtx-portable.plan", "portable"),
        ("rtx-sm_75.plan", "sm_75"),
    ]
    EngineBundle.load(tmp_path / "b")


def test_a_quantised_graph_is_int8_and_nothing_else(tmp_path: Path) -> None:
    model = onnx.load(save_tiny_model(tmp_path))
    pair = {"s": np.array(1 / 127, np.float32), "z": np.zeros((), np.int8)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in pair.items())
    for node in model.graph.node:
        node.input[0] = "image_dq"
    q = onnx.helper.make_node("QuantizeLinear", ["image", "s", "z"], ["image_q"], name="q")
    dq = onnx.helper.make_node("DequantizeLinear", ["image_q", "s", "z"], ["image_dq"], name="dq")
    nodes = [q, dq, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(InputError, match="carries quantisation of its own"):
        build(tmp_path / "q.onnx", tiny_spec(), tmp_path / "b", options(precision="fp16"))
    bundle = build(tmp_path / "q.onnx", tiny_spec(), tmp_path / "b", options(precision="int8"))
    kinds = {node.op_type for node in onnx.load(bundle.model_path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    with Detector.load(bundle, threads=1) as detector:
        assert detector.detect(scene(), threshold=0.5).label.tolist() == [0]


@pytest.mark.parametrize(
    ("step", "sides", "wanted"),
    [
        (32, (32, 512, 1024), 128),
        (32, (256, 512, 1024), 256),  # not below the profile
        (32, (32, 64, 1024), 64),  # nor above what it is tuned for
        (48, (48, 480, 960), 144),  # a multiple of the step
    ],
)
def test_the_batch_is_checked_at_a_small_size(step: int, sides: tuple[int, int, int], wanted: int) -> None:
    profile = ProfileRecord(batch=SMALL, height=ShapeRange.of(*sides), width=ShapeRange.of(*sides))
    image = {"size": {"rule": "multiple", "multiple": step}, "resize": {"policy": "stretch"}}
    spec = tiny_spec(input=image)
    assert batch_check_shape(spec.input, profile) == (wanted, wanted)
    fixed = preset("ttf-ltrb").input
    assert batch_check_shape(fixed, profile) == (512, 512)
