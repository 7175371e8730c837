"""The straight road, on the two public models."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.input_profiles import input_profile
from onnx import ModelProto, TensorProto

from centernet_trt.builder.graph.compare import check_dynamic_batch, compare_models, run_model
from centernet_trt.builder.graph.io import keep_heads, make_dynamic
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.graph.shapes import element_types
from centernet_trt.builder.passes.batch_norm import fold_batch_norm
from centernet_trt.builder.passes.fold import fold_constants, remove_identities
from centernet_trt.builder.passes.fp16 import Fp16Result, to_fp16
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.runtime.trt.flavours import load_flavour

pytestmark = pytest.mark.shared


@dataclass(frozen=True)
class Case:
    """A model, how it is prepared, and how far fp16 may be from fp32: (least, most), relative."""

    path: str
    input_name: str
    heads: tuple[str, ...]
    dynamic_size: bool
    size: tuple[int, int]
    nodes: int
    fp16: dict[str, tuple[float, float]]


CASES = {
    "coco": Case(
        "mb3_centernet_coco/mb3_centernet.onnx",
        "images",
        ("hm", "wh_ltrb"),
        False,
        (512, 512),
        258,
        # Measured 1.4e-3 and 8e-3. Merely rounding the outputs gives 3.5e-4 and 4.3e-4: the least is above.
        {"hm": (6e-4, 5e-3), "wh_ltrb": (2e-3, 2e-2)},
    ),
    "centerface": Case(
        "centerface/centerface.onnx",
        "input.1",
        ("536", "538", "539", "540"),
        True,
        (192, 256),
        118,
        # Measured 6e-3, 1.3e-2, 3.5e-2, 1.5e-2: mostly from rounding the weights.
        {"536": (1e-3, 2e-2), "538": (2e-3, 4e-2), "539": (5e-3, 1e-1), "540": (2e-3, 4e-2)},
    ),
}


@cache
def source(shared: Path, name: str) -> ModelProto:
    return load_model(shared / "assets" / CASES[name].path)


@cache
def cut(shared: Path, name: str) -> ModelProto:
    case = CASES[name]
    return keep_heads(make_dynamic(source(shared, name), case.input_name, size=case.dynamic_size), case.heads)


@cache
def prepared(shared: Path, name: str) -> ModelProto:
    return fold_batch_norm(remove_identities(fold_constants(cut(shared, name))))


@cache
def half(shared: Path, name: str) -> Fp16Result:
    return to_fp16(prepared(shared, name))


def pixels(name: str, batch: int = 1) -> dict[str, np.ndarray]:
    """Return random grey levels, which fp16 holds exactly."""
    grey = np.random.default_rng(5).integers(0, 256, (batch, 3, *CASES[name].size))
    return {CASES[name].input_name: grey.astype(np.float32)}


both = pytest.mark.parametrize("name", CASES)


def test_centerface_is_raised_with_the_same_outputs(shared: Path) -> None:
    raw = onnx.load(shared / "assets" / CASES["centerface"].path)
    loaded = source(shared, "centerface")
    assert [value.name for value in loaded.graph.input] == ["input.1"]
    feeds = {"input.1": np.random.default_rng(0).uniform(0, 255, (10, 3, 32, 32)).astype(np.float32)}
    # ONNX Runtime wants no value for the inputs that are constants, nor do we give any.
    expected, found = run_model(raw, feeds), run_model(loaded, feeds)
    assert list(found) == ["537", "538", "539", "540"]
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6)


@both
def test_structural_passes_keep_the_outputs(shared: Path, name: str) -> None:
    reference, made = cut(shared, name), prepared(shared, name)
    assert len(made.graph.node) == CASES[name].nodes
    types = {node.op_type for node in made.graph.node}
    assert not types & {"BatchNormalization", "Identity", "Dropout", "Constant"}
    assert ("Sigmoid" in types) == (name == "coco")  # CenterFace's was behind a head, this one is inside
    onnx.checker.check_model(made, full_check=True)
    for output, error in compare_models(reference, made, pixels(name)).items():
        assert error.magnitude > 0.1
        assert error.max_rel <= 1e-5, (output, error)


def test_the_cut_head_is_the_logit_of_the_source(shared: Path) -> None:
    feeds = pixels("centerface")
    full = make_dynamic(source(shared, "centerface"), "input.1", size=True)
    logits = run_model(prepared(shared, "centerface"), feeds)["536"].astype(np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), run_model(full, feeds)["537"], atol=2e-6)


@both
def test_the_batch_is_dynamic(shared: Path, name: str) -> None:
    check_dynamic_batch(
        prepared(shared, name), CASES[name].input_name, (3, *CASES[name].size), value_range=(0, 255)
    )


@both
def test_fp16_is_typed_throughout(shared: Path, name: str) -> None:
    result = half(shared, name)
    assert result.kept == {}
    assert result.casts == 0
    onnx.checker.check_model(result.model, full_check=True)
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)
    left = [t for t, kind in element_types(result.model).items() if kind == TensorProto.FLOAT]
    assert left == (["sc"] if name == "coco" else [])  # the scales of Resize


@both
def test_fp16_rounds_as_much_as_fp16_does(shared: Path, name: str) -> None:
    errors = compare_models(prepared(shared, name), half(shared, name).model, pixels(name))
    for output, (least, most) in CASES[name].fp16.items():
        assert least <= errors[output].max_rel <= most, (output, errors[output])


@both
@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16 with fp32 inputs and outputs"])
def test_plans_are_built_without_a_gpu(shared: Path, name: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    case, made = CASES[name], prepared(shared, name)
    if precision == "fp16":
        made = half(shared, name).model
    elif precision != "fp32":
        made = to_fp16(made, io_types="fp32").model
    profile = input_profile("1:1:8", "128:512:1024" if case.dynamic_size else "512")
    plan = build_plan(made, case.input_name, [profile], flavour=load_flavour("rtx"))
    weights = sum(len(tensor.raw_data) for tensor in made.graph.initializer)
    assert len(plan.data) > weights
    assert plan.log == []
    assert plan.seconds < 60
