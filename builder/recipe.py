"""Read recipes: everything about a known model but its weights, in one TOML file (`engines/*.toml`)."""

import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from centernet_trt.builder.profiles import ProfileRequest
from centernet_trt.errors import InputError, ModelError, SpecError
from centernet_trt.runtime.bundle import sha256_file
from centernet_trt.runtime.manifest import Precision, ShapeRange
from centernet_trt.runtime.presets import describe_validation, spec_from_mapping
from centernet_trt.runtime.spec import ModelSpec


class RecipePart(BaseModel):
    """Base of a recipe's tables: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeModel(RecipePart):
    """Where the weights come from.

    Attributes:
        file: an ONNX file, relative to the recipe.
        fetch: the name of a public model, as in `centernet-trt fetch NAME`.
        arch: the architecture to export a checkpoint with, as in `centernet-trt export --arch ARCH`.
        sha256: of the ONNX file that the recipe was made for.
        source: where the weights are published.
        licence: of the weights.
    """

    file: str | None = None
    fetch: str | None = None
    arch: str | None = None
    sha256: str | None = None
    source: str
    licence: str


class RecipeBuild(RecipePart):
    """Defaults of `centernet-trt build`: ranges as MIN:OPT:MAX or one number, profiles as for `--profile`."""

    precision: Precision = "fp16"
    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None
    profiles: tuple[ProfileRequest, ...] = ()

    @field_validator("profiles", mode="before")
    @classmethod
    def _profiles(cls, value: Any) -> Any:
        try:
            return tuple(ProfileRequest.parse(str(text)) for text in value)
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("batch", "height", "width", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, (str, int)):
            return value
        try:
            return ShapeRange.parse(str(value))
        except InputError as error:
            raise ValueError(error.message) from None


class PublishedAccuracy(RecipePart):
    """An accuracy that was published for these weights, and where."""

    metric: str
    value: float
    precision: str = "fp32"
    images: str
    source: str


class Recipe(RecipePart):
    """A known model: name, description, weights, spec, build defaults and published accuracy."""

    name: str
    description: str
    model: RecipeModel
    spec: ModelSpec
    build: RecipeBuild = RecipeBuild()
    published: tuple[PublishedAccuracy, ...] = ()


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that ship with the product."""
    folder = files("centernet_trt.engines")
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml")))


def is_recipe(source: str) -> bool:
    """Whether a word of the command line names a recipe: a shipped one, or a .toml file."""
    return source in recipe_names() or Path(source).suffix == ".toml"


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: the name of a shipped recipe, or the path of a .toml file.

    Raises:
        SpecError: there is no such recipe, it cannot be read, or a key or value is invalid.
    """
    if str(source) in recipe_names():
        text = files("centernet_trt.engines").joinpath(f"{source}.toml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                f"cannot read the recipe {str(source)!r}: {getattr(error, 'strerror', None) or error}",
                f"recipes that ship: {', '.join(recipe_names())}",
            ) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"the recipe {source} is not valid TOML: {error}") from None
    if "spec" in data:
        data["spec"] = spec_from_mapping(data["spec"], f"[spec] of the recipe {source}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise SpecError(
            f"the recipe {source} is not valid:\n{describe_validation(error)}",
            "keys are: name, description, [model], [spec], [build], [[published]]",
        ) from None


def find_model(
    recipe: Recipe, folder: Path, given: Path | None, report: Callable[[str], object] = lambda _: None
) -> Path:
    """Find the ONNX file of a recipe: the given one, the one beside the recipe, or a public one, which is fetched.

    Args:
        recipe: from `read_recipe`.
        folder: the folder that the recipe's `file` is relative to.
        given: the file that the user named, which takes precedence.
        report: called with a line on what is fetched, and with one if the file is not the recipe's (by SHA-256).

    Returns:
        The path of the file; whether it exists is checked when it is read.

    Raises:
        ModelError: the recipe has no weights of its own and no file was given, or they cannot be fetched.
    """
    from centernet_trt.builder.fetch.download import fetch_model

    model = recipe.model
    if given is not None:
        path = given
    elif model.file is not None:
        path = folder / model.file
    elif model.fetch is not None:
        report(f"fetching {model.fetch} ({model.licence})")
        path = fetch_model(model.fetch)
    else:
        give = f"give the file: centernet-trt build {recipe.name} --model FILE.onnx"
        if model.arch is not None:
            give = (
                f"export the checkpoint: centernet-trt export --arch {model.arch} --weights FILE, "
                f"and give the ONNX file: centernet-trt build {recipe.name} --model {model.arch}.onnx"
            )
        raise ModelError(
            f"the recipe {recipe.name} does not bring its weights (source: {model.source})", give
        )
    if model.sha256 is not None and path.is_file() and sha256_file(path) != model.sha256:
        report(
            f"note: {path} is not the file that the recipe {recipe.name} was made for (its SHA-256 differs)"
        )
    return path
