"""`centernet-trt build`: compile an ONNX file or a recipe into an engine bundle."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.profiles import ProfileRequest
from centernet_trt.builder.recipe import Recipe, RecipeBuild, find_model, is_recipe, read_recipe
from centernet_trt.cli.console import (
    EXIT_TOLERANCE,
    BuildProgress,
    err,
    out,
    progress_bar,
    show_error,
    write_json,
)
from centernet_trt.cli.spec_lines import preprocessing_line
from centernet_trt.errors import InputError, ToleranceError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import Manifest, Precision, ShapeRange
from centernet_trt.runtime.presets import PRESET_NAMES, read_spec
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.trt.flavours import FlavourName

if TYPE_CHECKING:
    from onnx import ModelProto

    from centernet_trt.builder.prepare import SpecFinder


def _range(text: str) -> ShapeRange:
    try:
        return ShapeRange.parse(text)
    except InputError as error:
        raise typer.BadParameter(error.message) from None


def _profile(text: str) -> ProfileRequest:
    try:
        return ProfileRequest.parse(text)
    except InputError as error:
        raise typer.BadParameter(f"{error.message}; {error.hint}") from None


def _range_option(text: str) -> Any:
    return typer.Option(parser=_range, metavar="MIN:OPT:MAX", help=text, show_default=False)


def build_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL.onnx|RECIPE", help="An ONNX file, a recipe's name, or RECIPE.toml."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the bundle.", show_default="engines/NAME-PRECISION"),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FILE",
            help=f"Meaning of the network: {', '.join(PRESET_NAMES)}, or a .toml or .json file.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE.onnx", help="ONNX file for a recipe that cannot download its own."
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of weights and activations.", show_default="the recipe's, or fp16"),
    ] = None,
    batch: Annotated[ShapeRange | None, _range_option("Images per call.")] = None,
    height: Annotated[
        ShapeRange | None, _range_option("Rows of the input, if the spec does not fix them.")
    ] = None,
    width: Annotated[ShapeRange | None, _range_option("Columns of the input, likewise.")] = None,
    profile: Annotated[
        list[ProfileRequest] | None,
        typer.Option(
            parser=_profile,
            metavar="batch=..,height=..,width=..",
            help="Input shapes to tune a set of kernels for; repeatable. Omitted parts are those of --batch, --height "
            "and --width.",
            show_default=False,
        ),
    ] = None,
    flavour: Annotated[
        Literal[FlavourName, "none"],
        typer.Option(help="auto: full TensorRT if it is installed and there is a GPU, otherwise RTX."),
    ] = "auto",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET,...",
            help="portable, current, or sm_75, sm_80, ... (RTX); one plan for each.",
            show_default="the flavour's",
        ),
    ] = None,
    heads: Annotated[
        Literal["fp16", "fp32"],
        typer.Option(help="Type of the head tensors; fp32 keeps their last convolutions in fp32."),
    ] = "fp16",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|COCO.json",
            help="Images of your training set, to calibrate int8 (100 to 500 of them) and to check the ranges of fp16.",
            show_default="fp16: images that ship",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="int8: largest expected drop in AP.")
    ] = 0.005,
    min_agreement: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="int8: lowest F1 of matched boxes, and agreement of further heads, against fp32.",
        ),
    ] = 0.95,
    method: Annotated[
        Method, typer.Option("--calibration-method", help="int8: method for the thresholds to try first.")
    ] = "mse",
    record: Annotated[
        Path | None,
        typer.Option(
            "--calibration-record",
            metavar="calibration.json",
            help="int8: reuse this record; model, images and pre-processing must be the same.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--calibration-cache",
            metavar="FILE",
            help="int8: take the scales from a calibration cache of TensorRT (text).",
        ),
    ] = None,
    every_layer: Annotated[
        bool,
        typer.Option(
            "--every-layer", help="int8: quantise every layer that can be, without a search (experimental)."
        ),
    ] = False,
    keep_fp32: Annotated[
        str | None,
        typer.Option(
            metavar="NODE,...", help="Nodes that stay fp32 in an fp16 or int8 build, named as in layers.json."
        ),
    ] = None,
    max_difference: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest difference of a head from the source, as a share of the head's root mean square.",
            show_default="fp32 0.001, fp16 0.06, int8 0.5",
        ),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Allow fp32 convolutions to round their inputs to TF32.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the manifest there, too.")
    ] = None,
) -> None:
    """Compile a CenterNet ONNX graph into an engine bundle."""
    from centernet_trt.builder.build import BuildOptions, build
    from centernet_trt.builder.int8.quantise import Int8Options
    from centernet_trt.builder.int8.search import Budget, BudgetError

    recipe = read_recipe(model) if is_recipe(model) else None
    path = find_model(recipe, Path(model).parent, weights, err.print) if recipe else Path(model)
    if recipe is None and weights is not None:
        raise InputError("--model needs a recipe", "give the ONNX file alone, or name a recipe")
    defaults = recipe.build if recipe else RecipeBuild()
    chosen: Precision = precision or defaults.precision
    options = BuildOptions(
        precision=chosen,
        batch=batch or defaults.batch,
        height=height or defaults.height,
        width=width or defaults.width,
        profiles=tuple(profile or ()) or defaults.profiles,
        flavour=flavour,
        targets=_names(target),
        heads=heads,
        calibration=calibration,
        int8=Int8Options(
            record=record,
            cache=cache,
            method=method,
            budget=Budget(max_drop, min_agreement),
            everything=every_layer,
        ),
        keep_fp32=_names(keep_fp32),
        max_difference=max_difference,
        tf32=tf32,
        command=shlex.join(["centernet-trt", *sys.argv[1:]]),
    )
    name = recipe.name if recipe else path.stem
    folder = output or Path("engines") / f"{name}-{chosen}"
    try:
        with progress_bar() as progress:
            bundle = build(path, _choose_spec(recipe, spec), folder, options, BuildProgress(progress))
    except (BudgetError, ToleranceError) as error:
        show_error(error)
        raise typer.Exit(EXIT_TOLERANCE) from None
    show_bundle(bundle)
    if json_file is not None:
        write_json(json_file, bundle.manifest.model_dump(mode="json", by_alias=True))


def _names(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _choose_spec(recipe: Recipe | None, spec: str | None) -> "ModelSpec | SpecFinder":
    """The given spec, the recipe's, or a function that guesses it from the graph."""
    if spec is None and recipe is None:
        return _guess_and_show
    if spec is not None:
        given, origin = read_spec(spec), f"of --spec {spec}"
    else:
        assert recipe is not None
        given, origin = recipe.spec, f"of recipe {recipe.name}"
    _show_preprocessing(given, origin)
    return given


def _show_preprocessing(spec: ModelSpec, origin: str) -> None:
    err.print(f"pre-processing {origin}\n  {preprocessing_line(spec)}", highlight=False, markup=False)


def _guess_and_show(model: "ModelProto") -> ModelSpec:
    from centernet_trt.builder.guess.spec import guess_spec

    guess = guess_spec(model)
    found = guess.require_spec()
    err.print("no --spec given, guessed from the graph:")
    for reason in guess.reasons:
        err.print(f"  {reason}", highlight=False, markup=False)
    _show_preprocessing(found, guess.preprocessing)
    return found


def passes_line(manifest: Manifest) -> str:
    """Summarise the time of each pass, and the peak memory of the process with and without TensorRT."""
    seconds = sum(step.seconds for step in manifest.passes)
    times = ", ".join(f"{step.name} {step.seconds:.2f} s" for step in manifest.passes if step.seconds >= 0.01)
    text = f"{seconds:.1f} s: {times}"
    peaks = [step.peak_bytes for step in manifest.passes if step.peak_bytes is not None]
    if peaks:
        text += f"; peak memory {max(peaks) / 1e9:.2f} GB"
    plans = [plan.peak_bytes for plan in manifest.plans if plan.peak_bytes is not None]
    return f"{text}, with TensorRT {max(plans) / 1e9:.2f} GB" if plans and peaks else text


def show_bundle(bundle: EngineBundle) -> None:
    """Print a summary of a bundle."""
    table = Table(title=escape(str(bundle.path)), title_justify="left", show_header=False)
    for name, text in _bundle_rows(bundle.manifest):
        table.add_row(name, escape(text))
    out.print(table)


def _bundle_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "precision", manifest.precision
    yield "input", f"{manifest.input.name}  {manifest.input.dtype}"
    yield "pre-processing", preprocessing_line(manifest.spec).removeprefix("image: ")
    for number, profile in enumerate(manifest.profiles):
        yield "profile" if len(manifest.profiles) == 1 else f"profile {number}", str(profile)
    for head in manifest.heads:
        row = manifest.comparison.get(head.name)
        differs = f", differs from the source by {row.max_rel:.1e} of its largest magnitude" if row else ""
        yield f"head {head.name}", f"{head.channels} channels{differs}"
    nodes = f", {manifest.passes[-1].nodes} nodes" if manifest.passes else ""
    size = f"{manifest.model.bytes / 1e6:.1f} MB"
    yield "model.onnx", f"{size}{nodes}, {len(manifest.kept_fp32)} kept in fp32 by choice"
    for plan in manifest.plans:
        built = f"target {plan.target}, built in {plan.seconds:.1f} s"
        yield plan.file, f"{plan.bytes / 1e6:.1f} MB, {plan.flavour} {plan.version}, {built}"
    if manifest.passes:
        yield "passes", passes_line(manifest)
    for note in manifest.notes:
        yield "note", note
    if (int8 := manifest.calibration) is not None:
        heads = "".join(f", {name} {value:.4f}" for name, value in int8.agreement_heads.items())
        text = (
            f"{int8.int8_share:.1%} of the multiply-adds; expected drop {int8.expected_drop:.4f} AP, "
            f"F1 {int8.agreement_f1:.4f}{heads} against fp32 on {int8.judged_images} images "
            f"({int8.mode}); layers and reasons in int8.md"
        )
        yield "int8", text
    if not manifest.plans:
        yield "plan", "none (--flavour none)"
