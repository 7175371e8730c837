"""Every command that reads a source graph takes deformable convolutions of every public spelling; `build` reads it once."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.deform_centernet import SPELLINGS, save_deform_centernet
from helpers.tiny_centernet import save_tiny_model

from centernet_trt.builder.graph import load as loading
from centernet_trt.evaluation.bench import run as benchmark
from centernet_trt.evaluation.bench.roofline import MachineRates
from centernet_trt.runtime import EngineBundle

BUILD = ["--flavour", "none", "--precision", "fp32", "--height", "32:64:128", "--width", "32:64:128"]
SHORT = ["--duration", "0.05", "--iterations", "3", "--warmup", "0", "--allow-short", "--latency-only"]


@pytest.fixture
def run(run: Any) -> Any:
    """Run a command that succeeds -> what it printed."""

    def call(*words: object) -> tuple[str, str]:
        done = run(*words)
        assert done.code == 0, done.err
        return done.out, done.err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    # Noise: on flat areas neighbouring scores tie, and the order of ties is not compared here.
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    (folder / "a.png").write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_inspect(run: Any, tmp_path: Path, spelling: str) -> None:
    out, _ = run("inspect", save_deform_centernet(tmp_path, spelling), "--json", tmp_path / "i.json")
    assert "1 DeformConv" in out
    assert "G multiply-adds" in out
    assert json.loads((tmp_path / "i.json").read_text())["spec"]["heads"]["heatmap"]["tensor"] == "hm"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_build_guesses_then_verify_and_bench_take_the_source(
    run: Any, tmp_path: Path, pictures: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = save_deform_centernet(tmp_path, spelling), tmp_path / "b"
    _, said = run("build", model, "-o", bundle, *BUILD)
    assert "heatmap is hm, 2 classes: by its name" in said
    manifest = EngineBundle.load(bundle).manifest
    assert manifest.spec.heads.tensors == ("hm", "wh", "reg")
    assert [one.name for one in manifest.passes][:2] == ["load", "deformable"]

    run("verify", bundle, "--against", model, "--images", pictures, "--json", tmp_path / "v.json")
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["passed"] is True
    assert verdict["reference"].startswith(model.name)

    monkeypatch.setattr(benchmark, "measure_rates", lambda cores: MachineRates(1e10, 1e11, "made up"))
    out, _ = run("bench", bundle, "--images", pictures, *SHORT, "--source", model)
    assert "network alone" in out


def test_a_build_without_a_spec_reads_the_file_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, parse = save_tiny_model(tmp_path), [], loading._parse

    def counting(path: Path) -> Any:
        read.append(path)
        return parse(path)

    monkeypatch.setattr(loading, "_parse", counting)
    run("build", model, "-o", tmp_path / "b", *BUILD)
    assert read == [model]
