"""The whole road: an ONNX file and a spec -> an engine bundle on disk."""

import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import onnx
from onnx import ModelProto

from centernet_trt import __version__
from centernet_trt.builder.flavours import load_flavour
from centernet_trt.builder.graph import copy_model
from centernet_trt.builder.inference import PROTOBUF_LIMIT, serialised_size
from centernet_trt.builder.layers import requested_layers
from centernet_trt.builder.plan import Plan, Profile, build_plan
from centernet_trt.builder.prepare import Reporter, Silence, prepare
from centernet_trt.errors import CalibrationError, InputError
from centernet_trt.runtime.bundle import MANIFEST, EngineBundle, record_file
from centernet_trt.runtime.bundle_writer import replacing_folder
from centernet_trt.runtime.manifest import (
    FileRecord,
    Manifest,
    PlanRecord,
    Precision,
    ProfileRecord,
    ShapeRange,
)
from centernet_trt.runtime.spec import FixedSize, ModelSpec


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        precision: of weights and activations.
        batch: images in a call; None is 1 to 8, tuned for 1.
        height: rows of the network input, for a spec whose size is not fixed; None is up to 1024, tuned for 512.
        width: columns, likewise.
        flavour: which TensorRT compiles the plan; `none` leaves the bundle without a plan.
        target: GPUs to build for; None is the flavour's default.
        tf32: let fp32 convolutions round their inputs to TF32.
        command: recorded in the manifest as the line that makes this bundle again; None for the plain one.
    """

    precision: Precision = "fp16"
    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None
    flavour: Literal["auto", "rtx", "tensorrt", "none"] = "auto"
    target: str | None = None
    tf32: bool = False
    command: str | None = None


def build(
    model: Path,
    spec: ModelSpec,
    output: Path,
    options: BuildOptions | None = None,
    reporter: Reporter | None = None,
) -> EngineBundle:
    """Compile an ONNX CenterNet into an engine bundle.

    Args:
        model: the ONNX file.
        spec: what the network means.
        output: the bundle's folder. A bundle that is there is replaced when the new one is whole, not before.
        options: see `BuildOptions`.
        reporter: hears the progress.

    Raises:
        ModelError: the graph cannot be read or built, or does not compute what its source does.
        SpecError: the spec does not fit the graph.
        InputError: a range of the options does not fit the spec.
        BundleError: the output folder cannot be written.
        BackendError: TensorRT is missing or refuses the graph.
    """
    options, reporter = options or BuildOptions(), reporter or Silence()
    if options.precision == "int8":
        raise CalibrationError("int8 is not built by this version", "build with --precision fp16")
    profile = resolve_profile(spec, options)
    # Whatever is missing should show before minutes of work, so TensorRT is looked for and the folder made first.
    flavour = None if options.flavour == "none" else load_flavour(options.flavour)
    with replacing_folder(output) as folder:
        reporter.stage("graph")
        prepared = prepare(model, spec, profile, options.precision, reporter)
        reporter.stage("write")
        record = _write_model(prepared.model, folder)
        layers = folder / "layers.json"
        layers.write_text(json.dumps(requested_layers(prepared.model, prepared.kept_fp32), indent=1) + "\n")
        plans: tuple[PlanRecord, ...] = ()
        notes: tuple[str, ...] = ()
        if flavour is not None:
            reporter.stage(f"TensorRT ({flavour.name} {flavour.version})")
            plan = build_plan(
                prepared.model,
                prepared.input.name,
                Profile(profile.batch, profile.height, profile.width),
                flavour=flavour,
                target=options.target,
                tf32=options.tf32,
                progress=reporter.step,
            )
            plans, notes = (_write_plan(plan, folder),), tuple(plan.log)
        manifest = Manifest(
            name=output.name,
            product=f"centernet-trt {__version__}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=options.command or _plain_command(model, output, options),
            precision=options.precision,
            spec=prepared.spec,
            profile=profile,
            input=prepared.input,
            heads=prepared.heads,
            source=record_file(model),
            model=record,
            plans=plans,
            files=(record_file(layers), *_external_data(folder)),
            passes=tuple(prepared.passes),
            kept_fp32=prepared.kept_fp32,
            comparison=prepared.comparison,
            notes=notes,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return EngineBundle(output, manifest)


def resolve_profile(spec: ModelSpec, options: BuildOptions) -> ProfileRecord:
    """The input shapes to build for: the options', filled in from the spec.

    Raises:
        InputError: a range that contradicts a fixed size, or sides that the size rule never gives.
    """
    batch = options.batch or ShapeRange.of(1, 1, 8)
    size = spec.input.size
    if isinstance(size, FixedSize):
        sides = {"height": size.height, "width": size.width}
        for what, side in sides.items():
            asked = getattr(options, what)
            if asked is not None and (asked.min, asked.max) != (side, side):
                raise InputError(
                    f"--{what} {asked} was asked for, the spec fixes the {what} at {side}",
                    f"leave --{what} out, or change [spec.input.size]",
                )
        fixed = {what: ShapeRange.of(side, side, side) for what, side in sides.items()}
        return ProfileRecord(batch=batch, **fixed)
    step = size.multiple
    usual = ShapeRange.of(step, max(512 // step, 1) * step, max(1024 // step, 1) * step)
    ranges = {"height": options.height or usual, "width": options.width or usual}
    for what, asked in ranges.items():
        if asked.min % step or asked.opt % step or asked.max % step:
            raise InputError(
                f"--{what} {asked} was asked for; by the spec's size rule every {what} is a multiple of {step}",
                f"give multiples of {step}",
            )
    return ProfileRecord(batch=batch, **ranges)


def _write_model(model: ModelProto, folder: Path) -> FileRecord:
    """Write `model.onnx`, beyond 2 GB with its weights in a file beside it."""
    path = folder / "model.onnx"
    if serialised_size(model) < PROTOBUF_LIMIT:
        onnx.save_model(model, path)
    else:
        onnx.save_model(copy_model(model), path, save_as_external_data=True, location="model.weights")
    return record_file(path)


def _external_data(folder: Path) -> tuple[FileRecord, ...]:
    path = folder / "model.weights"
    return (record_file(path),) if path.exists() else ()


def _write_plan(plan: Plan, folder: Path) -> PlanRecord:
    path = folder / f"{plan.flavour}-{plan.target}.plan"
    path.write_bytes(plan.data)
    return PlanRecord(
        **record_file(path).model_dump(),
        flavour=plan.flavour,
        version=plan.version,
        target=plan.target,
        tf32=plan.tf32,
        seconds=round(plan.seconds, 3),
    )


def _plain_command(model: Path, output: Path, options: BuildOptions) -> str:
    words = ["centernet-trt", "build", str(model), "--output", str(output), "--precision", options.precision]
    return shlex.join(words) + "  # built from Python: add --spec"
