import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_centernet import save_tiny_model, scene, tiny_spec
from typer.testing import CliRunner

from centernet_trt.builder.build import BuildOptions, build
from centernet_trt.builder.profiles import ProfileRequest, resolve_profiles
from centernet_trt.cli.app import app
from centernet_trt.errors import InputError, SpecError
from centernet_trt.runtime import Detector, EngineBundle, preset
from centernet_trt.runtime.manifest import ShapeRange
from centernet_trt.runtime.trt.flavours import load_flavour

parse = ProfileRequest.parse


def test_profiles_are_read_from_text() -> None:
    wanted = ProfileRequest(ShapeRange.of(1, 4, 8), ShapeRange.of(512, 512, 512), None)
    assert parse("batch=1:4:8,height=512") == wanted
    assert parse(" height = 512 , batch=1:4:8") == wanted
    for text, words in [
        ("", "expected batch=, height= or width=, got '' in the profile ''"),
        ("batch=1,depth=3", "'depth=3' in the profile"),
        ("batch", "'batch' in the profile"),
        ("batch=1,batch=2", "gives the batch twice"),
        ("width=1:2", "'1:2' is not a range"),
        ("width=0", "not ordered"),
        ("batch=1;width=2", "'1;width=2' is not a range"),
    ]:
        with pytest.raises(InputError) as caught:
            parse(text)
        assert words in caught.value.message


def test_what_a_profile_leaves_out_is_the_common_range() -> None:
    common = ProfileRequest(batch=ShapeRange.of(2, 2, 2), height=ShapeRange.of(64, 64, 64))
    found = resolve_profiles(tiny_spec(), common, [parse("width=32"), parse("width=96,batch=1")])
    assert [str(profile) for profile in found] == [
        "batch 2, height 64, width 32",
        "batch 1, height 64, width 96",
    ]
    (usual,) = resolve_profiles(tiny_spec(), ProfileRequest())
    assert str(usual) == "batch 1:1:8, height 32:512:1024, width 32:512:1024"


@pytest.mark.parametrize(
    ("spec", "profiles", "words"),
    [
        (tiny_spec(), ["batch=1", "batch=2,height=48"], "expected a multiple of 32 for --height"),
        (
            tiny_spec(),
            ["batch=1", "batch=2", "batch=1:1:1"],
            "expected different profiles, got one twice: batch 1, height",
        ),
        (preset("ttf-ltrb"), ["batch=1", "width=256"], "the spec fixes the width at 512"),
    ],
)
def test_profiles_that_cannot_be(spec: Any, profiles: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_profiles(spec, ProfileRequest(), list(map(parse, profiles)))


class Spy:
    """Keeps what TensorRT was given: the configurations, and the shapes of the profiles."""

    def __init__(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configs: list[Any] = []
        self.profiles: list[Any] = []
        spy, real = self, module.Builder

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.real = real(logger)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

            def create_builder_config(self) -> Any:
                spy.configs.append(self.real.create_builder_config())
                return spy.configs[-1]

            def create_optimization_profile(self) -> Any:
                spy.profiles.append(self.real.create_optimization_profile())
                return spy.profiles[-1]

        monkeypatch.setattr(module, "Builder", Builder)


def test_one_plan_has_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line; TensorRT for RTX builds them, and says how many it took."""
    pytest.importorskip("tensorrt_rtx")
    spy = Spy(load_flavour("rtx").module, monkeypatch)
    model = save_tiny_model(tmp_path)
    (tmp_path / "spec.json").write_text(tiny_spec().model_dump_json())
    words = ["build", str(model), "-o", str(tmp_path / "b"), "--spec", str(tmp_path / "spec.json")]
    words += ["--flavour", "rtx", "--batch", "1:2:4", "--precision", "fp32"]
    words += ["--profile", "height=64,width=64", "--profile", "batch=1,height=32:64:128,width=32:96:128"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "profile 1" in done.output
    (config,) = spy.configs
    assert config.num_optimization_profiles == 2
    manifest = EngineBundle.load(tmp_path / "b").manifest
    shapes = [
        [
            (getattr(p.batch, what), 3, getattr(p.height, what), getattr(p.width, what))
            for what in ("min", "opt", "max")
        ]
        for p in manifest.profiles
    ]
    assert [[tuple(shape) for shape in given.get_shape("image")] for given in spy.profiles] == shapes
    assert shapes[0] == [(1, 3, 64, 64), (2, 3, 64, 64), (4, 3, 64, 64)]
    assert shapes[1] == [(1, 3, 32, 32), (1, 3, 64, 96), (1, 3, 128, 128)]
    plan = tmp_path / "b" / manifest.plans[0].file
    first = BuildOptions(precision="fp32", profiles=(parse("batch=1:2:4,height=64,width=64"),))
    only = build(model, tiny_spec(), tmp_path / "one", first).manifest
    # A second set of kernels takes room: the profile is in the plan, not only in the configuration.
    assert plan.stat().st_size > only.plans[0].bytes


@pytest.mark.parametrize(
    "words", [["--profile", "batch=1,height=33"], ["--profile", "colour=3"], ["--profile", "batch=3:2:1"]]
)
def test_the_command_refuses_what_is_no_profile(tmp_path: Path, words: list[str]) -> None:
    model = save_tiny_model(tmp_path)
    (tmp_path / "spec.json").write_text(tiny_spec().model_dump_json())
    done = CliRunner().invoke(
        app,
        ["build", str(model), "--spec", str(tmp_path / "spec.json"), "-o", str(tmp_path / "b"), *words],
    )
    assert done.exit_code != 0
    assert not (tmp_path / "b").exists()


def test_the_bundle_detects_in_every_profile(tmp_path: Path) -> None:
    """Sizes of both profiles, against a bundle with one wide profile."""
    profiles = (parse("height=32,width=32:64:96"), parse("height=96,width=64,batch=2"))
    options = BuildOptions(precision="fp32", flavour="none", profiles=profiles)
    model = save_tiny_model(tmp_path)
    several = build(model, tiny_spec(), tmp_path / "several", options)
    one = build(model, tiny_spec(), tmp_path / "one", BuildOptions(precision="fp32", flavour="none"))
    with Detector.load(several, threads=1) as detector, Detector.load(one, threads=1) as wide:
        for (height, width), repeat in itertools.product([(30, 90), (90, 60), (20, 40)], range(2)):
            image = np.random.default_rng(repeat).integers(0, 256, (height, width, 3), dtype=np.uint8)
            found, wanted = detector.detect(image, 0.1), wide.detect(image, 0.1)
            assert len(found)
            np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
            np.testing.assert_array_equal(found.score, wanted.score)
        with pytest.raises(InputError, match=r"profile 0: .*profile 1: batch 2, height 96, width 64"):
            detector.detect(scene(90, 90))


def test_a_recipe_may_name_profiles(tmp_path: Path) -> None:
    from centernet_trt.builder.recipe import read_recipe

    text = """
name = "mine"
description = "x"
[model]
file = "m.onnx"
source = "x"
licence = "x"
[spec]
preset = "official"
[build]
profiles = ["height=512,width=512", "batch=1,height=1024,width=1024"]
"""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert read_recipe(path).build.profiles == (
        parse("height=512,width=512"),
        parse("batch=1,height=1024,width=1024"),
    )
    path.write_text(text.replace("height=512", "size=512"))
    with pytest.raises(SpecError, match=r"'size=512' in the profile"):
        read_recipe(path)
