"""`bench`, `verify` and `eval` of several bundles as a user meets them."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers.bench_reports import made_up_entry, made_up_report
from helpers.tiny_bundle import write_tiny_bundle
from helpers.tiny_centernet import save_tiny_model, tiny_model
from onnx import numpy_helper

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.evaluation.bench import run as benchmark
from centernet_trt.evaluation.bench.report import read_report
from centernet_trt.evaluation.bench.roofline import MachineRates

SHORT = ["--duration", "0.05", "--iterations", "3", "--warmup", "0", "--allow-short"]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    data = {
        "images": [
            {"id": row, "file_name": name, "width": 96, "height": 64}
            for row, name in enumerate(["a.png", "b.jpg"])
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    return path


def test_bench_writes_every_kind_of_report(
    run: Any, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path)
    bundle = write_tiny_bundle(tmp_path / "b")
    source = bundle.manifest.source
    assert source.sha256  # the tiny bundle's model is its own source
    files = {kind: tmp_path / f"r.{kind}" for kind in ("json", "png", "html")}
    words = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    monkeypatch.setattr(benchmark, "measure_rates", lambda cores: MachineRates(1e10, 1e11, "made up"))
    done = run(
        "bench", bundle.path, "--images", pictures, *SHORT, "--source", model, "--batches", "1,2", *words
    )
    assert done.code == 0, done.err
    report = read_report(files["json"])
    assert report.command.startswith("centernet-trt bench ")
    (entry,) = report.entries
    assert (
        entry.multiply_adds == 32 * 24 * 6 * 48
    )  # 96x64 becomes 128x96: 32x24 cells, 6 channels of 4x4x3 weights
    assert "short run" in done.err
    assert "network alone" in done.out
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "data-key" in files["html"].read_text()
    again = run("bench", "--compare", files["json"], files["json"], "--json", tmp_path / "c.json")
    assert again.code == 0, again.err
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert {row["verdict"] for row in rows} == {"no difference"}
    assert "no difference" in again.out


def test_compare_finds_a_slowdown_and_refuses_other_models(run: Any, tmp_path: Path) -> None:
    reports = {
        "a": made_up_report([made_up_entry("one", 1)]),
        "slow": made_up_report([made_up_entry("one", 2, 1.1)]),
        "other": made_up_report([made_up_entry("one", 2, source_sha256="c" * 64)]),
    }
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(report.to_text())
    done = run("bench", "--compare", tmp_path / "a.json", tmp_path / "slow.json")
    assert done.code == 0, done.err
    assert done.out.count("slower") == 7
    done = run("bench", "--compare", tmp_path / "a.json", tmp_path / "other.json")
    assert done.code == 1
    assert "different models" in done.err


@pytest.mark.parametrize(
    ("words", "code", "found"),
    [
        (["bench"], 2, "name the folder of a bundle"),
        (["bench", "{tmp}/absent"], 1, "no engine bundle"),
        (["bench", "{tmp}/b", "--duration", "1"], 1, "too short"),
        (["bench", "{tmp}/b", "--iterations", "2"], 1, "too short"),
        (["bench", "{tmp}/b", "--batches", "1,x"], 2, "not a list of positive numbers"),
        (["bench", "{tmp}/b", "--bandwidth", "10"], 2, "go together"),
        (["bench", "{tmp}/b", "--bandwidth", "10", "--rate", "-1"], 1, "positive numbers"),
        (["bench", "{tmp}/b", "--images", "{tmp}/absent"], 1, "no folder"),
        (["bench", "{tmp}/b", "--source", "{tmp}/absent.onnx"], 1, "there is no file"),
        (["bench", "{tmp}/b", "--source", "{tmp}/instances.json"], 1, "none of the bundles was built from"),
        (["bench", "{tmp}/b", "--compare", "{tmp}/x.json", "{tmp}/y.json"], 2, "no bundles"),
        (["bench", "--compare", "{tmp}/x.json", "{tmp}/y.json"], 1, "cannot read the report"),
        (["bench", "--compare", "{tmp}/instances.json", "{tmp}/y.json"], 1, "not a bench report"),
        (["verify", "{tmp}/b", "--against", "{tmp}/absent.onnx"], 1, "no file or folder"),
        (["verify", "{tmp}/b", "--against", "{tmp}/instances.json"], 1, "not an ONNX file"),
        (["verify", "{tmp}/b", "--annotations", "{tmp}/instances.json"], 2, "needs --images"),
        (["verify", "{tmp}/b", "--min-agreement", "7"], 1, "0 to 1"),
        (
            ["verify", "{tmp}/b", "--images", "{tmp}/pictures", "--worst-image", "{tmp}/p.gif"],
            1,
            "name it .png or .jpg",
        ),
        (
            ["verify", "{tmp}/b", "--images", "{tmp}/pictures", "--annotations", "{tmp}/no.json"],
            1,
            "cannot read the annotations",
        ),
    ],
)
def test_mistakes_are_told(
    run: Any, tmp_path: Path, pictures: Path, annotations: Path, words: list[str], code: int, found: str
) -> None:
    write_tiny_bundle(tmp_path / "b")
    done = run(*(word.replace("{tmp}", str(tmp_path)) for word in words))
    said = re.sub(r"[│╭╮╰╯─\s]+", " ", done.err)
    assert found in said
    assert done.code == code
    assert "Traceback" not in done.err


def test_verify_passes_fails_and_draws(run: Any, tmp_path: Path, pictures: Path, annotations: Path) -> None:
    bundle, model = write_tiny_bundle(tmp_path / "b"), save_tiny_model(tmp_path)
    words = ["verify", bundle.path, "--images", pictures]
    done = run(*words, "--against", model, "--annotations", annotations, "--json", tmp_path / "v.json")
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "v.json").read_text())
    assert result["passed"] is True
    assert result["ap"]["drop"] == 0.0
    assert result["environment"]["cores"] >= 1
    assert "is not the file" not in done.err
    # A model with another heatmap: exit code 3, with the stage; and a note that it is another file.
    other = tiny_model()
    (bias,) = (t for t in other.graph.initializer if t.name == "hm.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([2.0, -2.0], np.float32), "hm.bias"))
    onnx.save(other, tmp_path / "other.onnx")
    drawn, alias = tmp_path / "new" / "worst.png", tmp_path / "alias.png"
    differs = [*words, "--against", tmp_path / "other.onnx", "--json", tmp_path / "v.json"]
    done = run(*differs, "--worst-image", drawn)
    assert run(*differs, "--picture", alias).code == 3  # the option's former name
    assert alias.read_bytes() == drawn.read_bytes()
    assert "--picture" not in run("verify", "--help").out
    assert done.code == 3
    assert "the first stage that differs is network (SQNR of hm" in done.err
    assert "is not the file that the bundle was built from" in done.err
    assert json.loads((tmp_path / "v.json").read_text())["passed"] is False
    assert cv2.imread(str(drawn)) is not None
    # Two bundles; and the bundle beside its own graph.
    second = write_tiny_bundle(tmp_path / "c")
    assert run(*words, "--against", second.path, "--max-images", 1).code == 0
    assert run("verify", bundle.path, "--images", pictures).code == 0


def test_fp16_is_judged_by_its_own_tolerance(run: Any, tmp_path: Path, pictures: Path) -> None:
    model, reference = save_tiny_model(tmp_path), write_tiny_bundle(tmp_path / "b")
    options = BuildOptions(precision="fp16", flavour="none")
    build(model, reference.manifest.spec, tmp_path / "half", options)
    words = ["verify", tmp_path / "half", "--against", model, "--images", pictures]
    done = run(*words)
    assert done.code == 0, done.err
    assert ">= 25 dB" in done.out
    strict = run(*words, "--min-sqnr", 200)
    assert strict.code == 3
    assert "network" in strict.err


def test_eval_of_several_bundles_is_one_table(
    run: Any, tmp_path: Path, pictures: Path, annotations: Path
) -> None:
    write_tiny_bundle(tmp_path / "a")
    write_tiny_bundle(tmp_path / "b")
    words = ["eval", tmp_path / "a", tmp_path / "b", "--images", pictures, "--annotations", annotations]
    done = run(*words, "--no-time", "--json", tmp_path / "e.json", "--markdown", tmp_path / "e.md")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "e.json").read_text())
    assert [row["bundle"] for row in rows] == ["a", "b"]
    assert rows[0]["ap_drop"] is None
    assert rows[1]["ap_drop"]["drop"] == 0.0
    assert rows[0]["multiply_adds"] == 16 * 16 * 6 * 48  # 64x64: 16x16 cells, 6 channels of 4x4x3 weights
    assert rows[0]["parameters"] == 6 * 48 + 6
    text = (tmp_path / "e.md").read_text()
    assert text.startswith("| model | precision | mAP@.5:.95 | mAP@.5 |")
    assert "| b | fp32 |" in text
    assert "mAP@.5:.95" in done.out


def test_eval_refuses_other_classes(run: Any, tmp_path: Path, pictures: Path, annotations: Path) -> None:
    write_tiny_bundle(tmp_path / "a")
    write_tiny_bundle(tmp_path / "b", class_names=["green", "blue"])
    words = ["--images", pictures, "--annotations", annotations, "--no-time"]
    done = run("eval", tmp_path / "a", tmp_path / "b", *words)
    assert done.code == 1
    assert "different class names: number 0 is 'blue' in one and 'green' in the other" in done.err
    # Two names are exchanged: no category is what the spec calls it.
    done = run("eval", tmp_path / "b", *words)
    assert done.code == 1
    assert "number 1 is 'green' in the spec and 'blue' in the annotations" in done.err
