"""Recipes: the shipped ones are valid, mistakes are named."""

from pathlib import Path

import pytest

from centernet_trt.builder.recipe import find_model, is_recipe, read_recipe, recipe_names
from centernet_trt.errors import ModelError, SpecError

GOOD = """
name = "mine"
description = "my model"
[model]
file = "mine.onnx"
source = "trained here"
licence = "mine"
[spec]
preset = "official"
[build]
batch = "1:2:4"
height = 512
"""


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.model.licence
    assert recipe.spec.class_names


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert str(recipe.build.batch) == "1:2:4"
    assert str(recipe.build.height) == "512"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[build]", "[buidl]", "buidl"),
        ('batch = "1:2:4"', 'batch = "4:2:1"', "build.batch: .*not ordered"),
        ('preset = "official"', 'preset = "ofical"', r"'ofical', which \[spec\] of the recipe"),
        ('preset = "official"', 'preset = "official"\ntopk = 3', "topk"),
        ("[model]", "[model", "not valid TOML"),
        ('licence = "mine"', "", "model.licence: Field required"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SpecError, match=words):
        read_recipe(path)


def test_an_absent_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        read_recipe(tmp_path / "absent.toml")
    assert "centerface" in error.value.hint


def test_where_the_weights_come_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    recipe = read_recipe(tmp_path / "mine.toml")
    said: list[str] = []
    assert find_model(recipe, tmp_path, None, said.append) == tmp_path / "mine.onnx"
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other weights")
    assert find_model(recipe, tmp_path, other, said.append) == other
    assert not said
    hashed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"sha256": "0" * 64})})
    assert find_model(hashed, tmp_path, other, said.append) == other
    assert len(said) == 1
    assert "SHA-256" in said[0]


@pytest.mark.parametrize(("arch", "words"), [("res_18", "export --arch res_18"), (None, "--model FILE.onnx")])
def test_a_recipe_without_weights_says_how_to_get_them(tmp_path: Path, arch: str | None, words: str) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    recipe = read_recipe(tmp_path / "mine.toml")
    bare = recipe.model_copy(update={"model": recipe.model.model_copy(update={"file": None, "arch": arch})})
    with pytest.raises(ModelError, match="does not bring its weights") as error:
        find_model(bare, tmp_path, None)
    assert words in error.value.hint


def test_a_word_is_a_recipe_by_its_name_or_suffix() -> None:
    assert is_recipe("centerface")
    assert is_recipe("some/folder/mine.toml")
    assert not is_recipe("centerface.onnx")
