"""`centernet-trt build`: an ONNX file or a recipe -> an engine bundle."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from centernet_trt.builder.profiles import ProfileRequest
from centernet_trt.builder.recipe import Recipe, find_model, is_recipe, read_recipe
from centernet_trt.cli.console import (
    EXIT_TOLERANCE,
    BuildProgress,
    err,
    out,
    progress_bar,
    show_error,
    write_json,
)
from centernet_trt.errors import InputError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.manifest import Manifest, Precision, ShapeRange
from centernet_trt.runtime.presets import PRESET_NAMES, read_spec
from centernet_trt.runtime.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from centernet_trt.builder.prepare import SpecFinder


class FlavourChoice(StrEnum):
    """Which TensorRT compiles the plan."""

    auto = "auto"
    rtx = "rtx"
    tensorrt = "tensorrt"
    none = "none"


class HeadsChoice(StrEnum):
    """Type of the head tensors."""

    fp16 = "fp16"
    fp32 = "fp32"


class MethodChoice(StrEnum):
    """How int8 thresholds are chosen from histograms."""

    entropy = "entropy"
    mse = "mse"
    percentile = "percentile"
    max = "max"
    as_published = "entropy-as-published"


class PrecisionChoice(StrEnum):
    """Precision of weights and activations."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


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


_RangeOption = typer.Option(parser=_range, metavar="MIN:OPT:MAX", show_default=False)


def build_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL.onnx|RECIPE", help="An ONNX file, a recipe's name, or RECIPE.toml."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the bundle. [default: engines/NAME-PRECISION]"),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FILE",
            help=f"What the network means: {', '.join(PRESET_NAMES)}, or a .toml or .json file.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="FILE.onnx", help="The ONNX file of a recipe that cannot fetch its own."
        ),
    ] = None,
    precision: Annotated[
        PrecisionChoice | None, typer.Option(help="[default: the recipe's, or fp16]", show_default=False)
    ] = None,
    batch: Annotated[ShapeRange | None, _RangeOption] = None,
    height: Annotated[ShapeRange | None, _RangeOption] = None,
    width: Annotated[ShapeRange | None, _RangeOption] = None,
    profile: Annotated[
        list[ProfileRequest] | None,
        typer.Option(
            parser=_profile,
            metavar="batch=..,height=..,width=..",
            help="Input shapes to tune a set of kernels for; may be given several times. What one leaves out is that "
            "of --batch, --height and --width.",
            show_default=False,
        ),
    ] = None,
    flavour: Annotated[
        FlavourChoice,
        typer.Option(help="auto: full TensorRT where it is installed and a GPU is there, else RTX."),
    ] = FlavourChoice.auto,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET,...",
            help="portable, current, or sm_75, sm_80, ... (RTX); a plan for each. [default: the flavour's]",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        HeadsChoice,
        typer.Option(help="Type of the head tensors; fp32 keeps their last convolutions in fp32."),
    ] = HeadsChoice.fp16,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|COCO.json",
            help="Images of your own training set: int8 is calibrated on them (100 to 500), fp16's range check "
            "looks at them. [default: for fp16, pictures that ship]",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="int8: the drop in AP that may be expected, at most.")
    ] = 0.005,
    min_agreement: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="int8: F1 of matched boxes against fp32, at least.")
    ] = 0.95,
    method: Annotated[
        MethodChoice, typer.Option("--calibration-method", help="int8: how thresholds are chosen first.")
    ] = MethodChoice.mse,
    record: Annotated[
        Path | None,
        typer.Option(
            "--calibration-record",
            metavar="calibration.json",
            help="int8: use this record again; it must be of the same model, images and pre-processing.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--calibration-cache",
            metavar="FILE",
            help="int8: take the scales from TensorRT's text calibration cache.",
        ),
    ] = None,
    every_layer: Annotated[
        bool,
        typer.Option(
            "--every-layer", help="int8: no search, every layer that may be int8 is: an experiment."
        ),
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let fp32 convolutions round their inputs to TF32.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the manifest there too.")
    ] = None,
) -> None:
    """Compile a CenterNet ONNX graph into an engine bundle."""
    from centernet_trt.builder.build import BuildOptions, build
    from centernet_trt.builder.int8.quantise import Int8Options
    from centernet_trt.builder.int8.search import Budget, BudgetError

    recipe = read_recipe(model) if is_recipe(model) else None
    path = find_model(recipe, Path(model).parent, weights, err.print) if recipe else Path(model)
    if recipe is None and weights is not None:
        raise InputError("--model goes with a recipe", "give the ONNX file alone, or name a recipe")
    chosen: Precision = precision.value if precision else recipe.build.precision if recipe else "fp16"
    defaults = recipe.build if recipe else None
    options = BuildOptions(
        precision=chosen,
        batch=batch or (defaults.batch if defaults else None),
        height=height or (defaults.height if defaults else None),
        width=width or (defaults.width if defaults else None),
        profiles=tuple(profile or ()) or (defaults.profiles if defaults else ()),
        flavour=flavour.value,
        targets=tuple(part.strip() for part in target.split(",")) if target else (),
        heads=heads.value,
        calibration=calibration,
        int8=Int8Options(
            record=record,
            cache=cache,
            method=method.value,
            budget=Budget(max_drop, min_agreement),
            everything=every_layer,
        ),
        tf32=tf32,
        command=shlex.join(["centernet-trt", *sys.argv[1:]]),
    )
    name = recipe.name if recipe else path.stem
    folder = output or Path("engines") / f"{name}-{chosen}"
    try:
        with progress_bar() as progress:
            bundle = build(path, _choose_spec(recipe, spec), folder, options, BuildProgress(progress))
    except BudgetError as error:
        show_error(error)
        raise typer.Exit(EXIT_TOLERANCE) from None
    show_bundle(bundle)
    if json_file is not None:
        write_json(json_file, bundle.manifest.model_dump(mode="json", by_alias=True))


def _choose_spec(recipe: Recipe | None, spec: str | None) -> "ModelSpec | SpecFinder":
    """The spec: given, the recipe's, or to be guessed from the graph and shown."""
    if spec is not None:
        return read_spec(spec)
    return _guess_and_show if recipe is None else recipe.spec


def _guess_and_show(model: "ModelProto") -> ModelSpec:
    from centernet_trt.builder.guess.spec import guess_spec

    guess = guess_spec(model)
    found = guess.require_spec()
    err.print("no --spec was given; guessed from the graph:")
    for reason in guess.reasons:
        err.print(f"  {reason}", highlight=False, markup=False)
    return found


def passes_line(manifest: Manifest) -> str:
    """What each pass took, and the most memory that the process held, TensorRT's part apart."""
    seconds = sum(one.seconds for one in manifest.passes)
    times = ", ".join(f"{one.name} {one.seconds:.2f} s" for one in manifest.passes if one.seconds >= 0.01)
    text = f"{seconds:.1f} s: {times}"
    peaks = [one.peak_bytes for one in manifest.passes if one.peak_bytes is not None]
    if peaks:
        text += f"; peak memory {max(peaks) / 1e9:.2f} GB"
    plans = [plan.peak_bytes for plan in manifest.plans if plan.peak_bytes is not None]
    return f"{text}, with TensorRT {max(plans) / 1e9:.2f} GB" if plans and peaks else text


def show_bundle(bundle: EngineBundle) -> None:
    """Print what was built."""
    manifest = bundle.manifest
    table = Table(title=f"{bundle.path}", title_justify="left", show_header=False)
    table.add_row("precision", manifest.precision)
    table.add_row("input", f"{manifest.input.name}  {manifest.input.dtype}")
    for number, profile in enumerate(manifest.profiles):
        table.add_row("profile" if len(manifest.profiles) == 1 else f"profile {number}", str(profile))
    for head in manifest.heads:
        row = manifest.comparison.get(head.name)
        differs = f", differs from the source by {row.max_rel:.1e} of its largest magnitude" if row else ""
        table.add_row(f"head {head.name}", f"{head.channels} channels{differs}")
    nodes = f", {manifest.passes[-1].nodes} nodes" if manifest.passes else ""
    table.add_row(
        "model.onnx",
        f"{manifest.model.bytes / 1e6:.1f} MB{nodes}, {len(manifest.kept_fp32)} kept in fp32 by choice",
    )
    for plan in manifest.plans:
        table.add_row(
            plan.file,
            f"{plan.bytes / 1e6:.1f} MB, {plan.flavour} {plan.version}, target {plan.target}, built in {plan.seconds:.1f} s",
        )
    if manifest.passes:
        table.add_row("passes", passes_line(manifest))
    for note in manifest.notes:
        table.add_row("note", note)
    if (calibration := manifest.calibration) is not None:
        table.add_row(
            "int8",
            f"{calibration.int8_share:.1%} of the multiply-adds; expected drop {calibration.expected_drop:.4f} AP, "
            f"F1 {calibration.agreement_f1:.4f} against fp32 on {calibration.judged_images} images "
            f"({calibration.mode}); layers and reasons in int8.md",
        )
    if not manifest.plans:
        table.add_row("plan", "none (--flavour none)")
    out.print(table)
