import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.input_profiles import input_profile
from helpers.pth_writer import tensor, write_legacy, write_pth
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from centernet_trt.builder.export.export import architecture_names, export_model, random_weights
from centernet_trt.builder.export.registry import ARCHITECTURES
from centernet_trt.builder.graph.io import save_model
from centernet_trt.builder.graph.load import load_model
from centernet_trt.builder.passes.deform_conv_lowering import lower_deform_conv
from centernet_trt.builder.passes.fp16 import to_fp16
from centernet_trt.builder.trt.plan import build_plan
from centernet_trt.errors import ModelError
from centernet_trt.runtime.trt.flavours import load_flavour

Array = NDArray[Any]


def weights(name: str, *, seed: int = 0, **options: Any) -> dict[str, Array]:
    return random_weights(ARCHITECTURES[name].network(**options).parameters, seed)


def constants(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: str | bytes, size: int = 64) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(5).normal(size=(1, 3, size, size)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, (np.asarray(x) for x in session.run(None, {"input": image})), strict=True))


def same(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float = 0) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() <= tolerance * np.abs(value).max(), name


@pytest.fixture(scope="module")
def res_18() -> dict[str, Array]:
    return weights("res_18")


def test_the_graph_is_readable(res_18: dict[str, Array]) -> None:
    model = export_model("res_18", res_18)
    assert set(constants(model)) == set(res_18)
    nodes = {node.name: node for node in model.graph.node}
    assert len(nodes) == len(model.graph.node)
    assert nodes["layer2.0.conv1"].op_type == "Conv"
    assert list(nodes["layer2.0.conv1"].input)[1:] == ["layer2.0.conv1.weight"]
    assert nodes["hm.2"].output[0] == "hm"
    (image,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    notes = {prop.key: prop.value for prop in model.metadata_props}
    assert notes["centernet_trt.architecture"] == "res_18"
    assert notes["centernet_trt.preset"] == "official"
    assert [opset.version for opset in model.opset_import] == [19]


@pytest.mark.parametrize("name", ["res_18", "resdcn_18", "dla_34", "mmdet_r18_dcnv2"])
def test_folding_changes_the_graph_and_not_the_outputs(name: str) -> None:
    values = weights(name)
    plain, folded = (export_model(name, values, fold_bn=fold) for fold in (False, True))
    assert "BatchNormalization" in {node.op_type for node in plain.graph.node}
    assert "BatchNormalization" not in {node.op_type for node in folded.graph.node}
    same(run(folded.SerializeToString()), run(plain.SerializeToString()), 1e-5)


@pytest.mark.parametrize("kind", ["zip", "legacy", "wrapped", "half", "npz"])
def test_checkpoint_files(tmp_path: Path, res_18: dict[str, Array], kind: str) -> None:
    parts = {name: tensor(value) for name, value in res_18.items()}
    path = tmp_path / "model.pth"
    if kind == "zip":
        counters = {"bn1.num_batches_tracked": tensor(np.array(9, np.int64))}
        write_pth(path, {**parts, **counters})
    elif kind == "legacy":
        write_legacy(path, parts)
    elif kind == "wrapped":
        write_pth(path, {"epoch": 3, "state_dict": {f"module.{name}": part for name, part in parts.items()}})
    elif kind == "half":
        write_pth(path, {name: tensor(value.astype(np.float16)) for name, value in res_18.items()})
    else:
        path = tmp_path / "model.npz"
        np.savez(path, **res_18)
    found = constants(export_model("res_18", path))
    for name, value in res_18.items():
        wanted = value.astype(np.float16).astype(np.float32) if kind == "half" else value
        np.testing.assert_array_equal(found[name], wanted)


def test_other_names_of_the_offset_layer() -> None:
    # mmcv: `.conv_offset.`; before its version 2 `_offset.`; official: `.conv_offset_mask.`.
    values = weights("mmdet_r18_dcnv2")
    wanted = run(export_model("mmdet_r18_dcnv2", values).SerializeToString(), 32)
    for other in (".conv_offset_mask.", "_offset."):
        renamed = {name.replace(".conv_offset.", other): value for name, value in values.items()}
        assert renamed.keys() != values.keys()
        same(run(export_model("mmdet_r18_dcnv2", renamed).SerializeToString(), 32), wanted)


def test_what_public_checkpoints_hold_beside_the_network() -> None:
    values = weights("dla_34")
    values["base.fc.weight"] = np.zeros((1000, 512, 1, 1), np.float32)
    values["base.fc.bias"] = np.zeros(1000, np.float32)
    # Weights that the public model has and never uses may also be missing.
    del values["base.level3.project.0.weight"]
    model = export_model("dla_34", values)
    assert "base.fc.weight" not in constants(model)


def test_the_weights_taken_are_reported_and_recorded(tmp_path: Path, res_18: dict[str, Array]) -> None:
    average = {name: value * np.float32(1.5) for name, value in res_18.items()}
    saved = {
        key: {f"net.{name}": tensor(value) for name, value in values.items()}
        for key, values in (("state_dict", res_18), ("state_dict_ema", average))
    }
    path = write_pth(tmp_path / "a.ckpt", {**saved, "loss": {"weight": tensor(np.ones(2, np.float32))}})
    for ema, prefix, wanted in ((False, "state_dict.net.", res_18), (True, "state_dict_ema.net.", average)):
        lines: list[str] = []
        model = export_model("res_18", path, ema=ema, report=lines.append)
        found = constants(model)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
        assert lines[0].startswith(f"weights: {len(res_18)} tensors under '{prefix}' of a.ckpt")
        assert ("EMA" in lines[0]) == ema
        assert "loss (1)" in lines[1]
        notes = {prop.key: prop.value for prop in model.metadata_props}
        assert notes["centernet_trt.weights"] == f"a.ckpt (prefix {prefix})"


@pytest.mark.parametrize("name", ["mmdet_r18_dcnv2", "dla_34"])
def test_prefixes_of_networks_with_offset_layers_of_other_names(name: str) -> None:
    values = weights(name)
    other = ".conv_offset." if name == "dla_34" else ".conv_offset_mask."
    used = ".conv_offset_mask." if name == "dla_34" else ".conv_offset."
    renamed = {f"detector.{key.replace(used, other)}": value for key, value in values.items()}
    assert any(other in key for key in renamed)
    found = constants(export_model(name, renamed))
    assert all(np.array_equal(found[key], values[key]) for key in found if key in values)
    # Two copies that differ in one offset layer are not the same.
    key = next(key for key in values if used in key)
    changed = {**values, key: values[key] + 1}
    refused(name, {**renamed, **{f"b.{k}": v for k, v in changed.items()}}, "2 sets of tensors fit")


def test_a_prefix_does_not_hide_the_advice(tmp_path: Path) -> None:
    values = {f"net.{name}": value for name, value in weights("res_18", classes=20).items()}
    values["loss.weight"] = np.ones(3, np.float32)
    found = refused("res_18", values, "(prefix net.)", "2 misshaped")
    assert found.hint.endswith("pass --classes 20")
    assert constants(export_model("res_18", values, classes=20))
    values = {f"net.{name}": value for name, value in weights("dla_34").items()}
    assert "fits dla_34 best" in refused("res_18", values, "(prefix net.)").hint
    average = {"model": weights("res_18", classes=20), "ema": weights("res_18", classes=20, seed=1)}
    flat = {f"{key}.{name}": value for key, given in average.items() for name, value in given.items()}
    assert refused("res_18", flat, "(prefix ema.)", ema=True).hint.endswith("pass --classes 20")


def test_integers_are_no_weights(res_18: dict[str, Array]) -> None:
    quantised = (res_18["conv1.weight"] * 50).astype(np.int8)
    refused(
        "res_18", {**res_18, "conv1.weight": quantised}, "'conv1.weight' has type int8, expected floating"
    )


# Misfits -----------------------------------------------------------------------------------------------------------


def refused(arch: str, values: Mapping[str, Array], *said: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        export_model(arch, values, **options)
    for words in said:
        assert words in str(caught.value), str(caught.value)
    return caught.value


def test_every_missing_extra_and_misshaped_tensor_is_listed(res_18: dict[str, Array]) -> None:
    values = dict(res_18)
    values["layer1.0.convolution1.weight"] = values.pop("layer1.0.conv1.weight")
    del values["bn1.bias"]
    values["layer2.0.conv1.weight"] = np.zeros((128, 64, 1, 1), np.float32)
    found = refused(
        "res_18",
        values,
        "2 missing",
        "bn1.bias",
        "layer1.0.conv1.weight (near: layer1.0.convolution1.weight",
        "1 misshaped",
        "layer2.0.conv1.weight: expected [128, 64, 3, 3], got [128, 64, 1, 1]",
        "1 extra",
        "layer1.0.convolution1.weight [64, 64, 3, 3]",
    )
    assert "the file is incomplete" in found.hint


def test_long_lists_are_cut_and_counted(res_18: dict[str, Array]) -> None:
    values = {name: value for name, value in res_18.items() if not name.startswith("layer1")}
    found = refused("res_18", values, "20 missing", "... and 12 more")
    assert len(str(found).splitlines()) < 20


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("resdcn_18", "res_18"),
        ("res_18", "resdcn_18"),
        ("res_18", "dla_34"),
        ("dla_34", "hourglass"),
        ("mmdet_r18", "mmdet_r18_dcnv2"),
        ("mmdet_r18_dcnv2", "res_18"),
        ("res_34", "res_18"),
        ("res_50", "res_101"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_recognised(given: str, asked: str) -> None:
    shapes = ARCHITECTURES[given].network().parameters
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    found = refused(asked, values, f"expected the tensors of {asked}")
    assert f"fits {given} best ({len(shapes)} of {len(shapes)} tensors)" in found.hint


def test_a_checkpoint_of_no_architecture() -> None:
    found = refused("res_18", {"encoder.weight": np.zeros(3)}, "missing")
    assert "fits none of" in found.hint


@pytest.mark.parametrize("name", ["res_18", "dla_34", "mmdet_r18", "mmdet_r18_dcnv2"])
def test_a_wrong_number_of_classes_is_told(name: str) -> None:
    found = refused(name, weights(name, classes=20), "misshaped")
    assert found.hint == f"it is a {name} with other classes or heads: pass --classes 20"
    assert constants(export_model(name, weights(name, classes=20), classes=20))
    # The other way round: the default is what has to be said.
    found = refused(name, weights(name), "misshaped", classes=20)
    assert found.hint.endswith("pass --classes 80")


def test_hourglass_tells_the_classes_of_both_stacks() -> None:
    shapes = ARCHITECTURES["hourglass"].network(20).parameters
    values = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    found = refused("hourglass", values, "4 misshaped", "hm.0.1.weight", "hm.1.1.weight")
    assert found.hint.endswith("pass --classes 20")


POSE = {"hps": 34, "hm_hp": 17, "hp_offset": 2}


@pytest.mark.parametrize(
    ("arch", "options", "said", "flags"),
    [
        ("res_18", {"head_conv": 128}, "misshaped", "--classes 80 --head-conv 128"),
        ("res_18", {"head_conv": 0}, "12 missing", "--classes 80 --head-conv 0"),
        ("res_18", {"heads": {"wh": 4}}, "misshaped", "--classes 80 --heads wh=4"),
        ("res_18", {"heads": {"hps": 34}}, "hps.2.weight [34, 64, 1, 1]", "--classes 80 --heads hps=34"),
        (
            "dla_34",
            {"classes": 1, "heads": POSE},
            "12 extra",
            "--classes 1 --heads hps=34,hm_hp=17,hp_offset=2",
        ),
    ],
)
def test_the_options_that_fit_are_told(arch: str, options: dict[str, Any], said: str, flags: str) -> None:
    found = refused(arch, weights(arch, **options), said)
    assert found.hint.endswith(f"pass {flags}")


def test_extra_tensors_are_ignored_where_that_is_allowed(res_18: dict[str, Array]) -> None:
    values = weights("res_18", heads={"hps": 34})
    refused("res_18", values, "4 extra", "hps.2.weight [34, 64, 1, 1]")
    heads = ["hm", "wh", "reg"]
    assert list(run(export_model("res_18", values, strict=False).SerializeToString(), 32)) == heads
    more = export_model("res_18", values, heads={"hps": 34})
    assert list(run(more.SerializeToString(), 32)) == [*heads, "hps"]
    found = refused("res_18", {**res_18, "ema.weight": np.zeros(3)}, "1 extra")
    assert "--no-strict" in found.hint


def test_a_head_can_be_left_out(res_18: dict[str, Array]) -> None:
    values = {name: value for name, value in res_18.items() if not name.startswith("reg.")}
    found = refused("res_18", values, "4 missing")
    assert found.hint.endswith("pass --classes 80 --heads reg=0")
    assert list(run(export_model("res_18", values, heads={"reg": 0}).SerializeToString(), 32)) == ["hm", "wh"]


def test_another_architecture_is_told_with_its_options() -> None:
    found = refused("res_18", weights("dla_34", classes=20, head_conv=64), "missing")
    assert found.hint.startswith("the checkpoint fits dla_34 best (")
    assert found.hint.endswith("pass --arch dla_34 --classes 20 --head-conv 64")


@pytest.mark.parametrize("name", ["res_18", "resdcn_18", "mmdet_r18"])
def test_weights_of_a_backbone_alone(name: str) -> None:
    values = {n: v for n, v in weights(name).items() if n.startswith(("conv1", "bn1", "layer", "backbone"))}
    values["fc.weight"] = np.zeros((1000, 512), np.float32)
    assert "holds only the backbone" in refused(name, values, "missing").hint


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(res_18: dict[str, Array], value: float) -> None:
    spoilt = res_18["layer3.0.conv1.weight"].copy()
    spoilt[3, 1, 0, 0] = value
    refused(
        "res_18",
        {**res_18, "layer3.0.conv1.weight": spoilt},
        "1 tensors have NaN or infinite values",
        "layer3.0.conv1.weight",
    )
    refused(
        "res_18",
        {**res_18, "bn1.running_var": -np.ones(64, np.float32)},
        "negative variances",
        "bn1.running_var",
    )


# Files ---------------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_model(tmp_path: Path) -> None:
    model = export_model("res_18", None, classes=3)
    path = tmp_path / "model.onnx"
    assert save_model(model, path) == (path,)
    assert os.listdir(tmp_path) == ["model.onnx"]
    same(run(str(path)), run(model.SerializeToString()))
    load_model(path)
    save_model(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_large_models_keep_their_weights_in_a_file_beside_them(tmp_path: Path) -> None:
    model = export_model("res_18", None, classes=3)
    path = tmp_path / "model.onnx"
    written = save_model(model, path, external_above=1000)
    data = [name for name in os.listdir(tmp_path) if name != "model.onnx"]
    assert len(data) == 1
    assert written == (path, tmp_path / data[0])
    assert re.fullmatch(r"model\.onnx\.[0-9a-f]{12}\.data", data[0])
    assert path.stat().st_size < 100_000
    onnx.checker.check_model(path, full_check=True)
    same(run(str(path)), run(model.SerializeToString()))
    assert run(load_model(path).SerializeToString()).keys() == {"hm", "wh", "reg"}
    assert constants(model)["conv1.weight"].size  # the caller's model still has its weights


@pytest.mark.parametrize("limit", [1000, 1 << 40])
def test_a_write_that_dies_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = tmp_path / "model.onnx"
    old = export_model("res_18", None, classes=3)
    save_model(old, path, external_above=limit)
    before = run(str(path))

    def full(source: object, target: object) -> None:
        if Path(str(target)) == path:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    replace = os.replace
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match="No space left"):
        save_model(export_model("res_18", weights("res_18", seed=1)), path, external_above=limit)
    same(run(str(path)), before)
    with pytest.raises(ModelError, match="cannot write"):
        save_model(old, tmp_path / "no" / "folder" / "model.onnx")


def test_nothing_is_written_for_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "a.pth", {"x": tensor(np.zeros(3, np.float32))})
    with pytest.raises(ModelError, match=r"a\.pth: expected the tensors of res_18"):
        export_model("res_18", path)
    assert os.listdir(tmp_path) == ["a.pth"]


# Plans -------------------------------------------------------------------------------------------------------------------

QUICK = (("res_18", "fp16"), ("resdcn_18", "fp32"), ("resdcn_18", "fp16"), ("dla_34", "fp16"))
PLANS = [
    pytest.param(name, precision, marks=() if (name, precision) in QUICK else pytest.mark.slow)
    for name in architecture_names()
    for precision in ("fp32", "fp16")
]


@pytest.mark.parametrize(("name", "precision"), PLANS)
def test_rtx_builds_every_seed_model_without_a_gpu(name: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = lower_deform_conv(export_model(name, None, fold_bn=True))
    if precision == "fp16":
        model = to_fp16(model).model
    step = ARCHITECTURES[name].multiple
    profile = input_profile("1:1:4", f"{2 * step}:512:{512 + step}")
    plan = build_plan(model, "input", [profile], flavour=load_flavour("rtx"))
    size = 4 if precision == "fp32" else 2
    elements = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert 0.9 < len(plan.data) / (size * elements) < 1.5
    assert plan.log == []
