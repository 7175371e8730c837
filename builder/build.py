"""Build an engine bundle from an ONNX file and a ModelSpec."""

import json
import shlex
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import ModelProto, TensorProto

from centernet_trt._version import __version__
from centernet_trt.builder.calibration.images import CalibrationImages, find_images
from centernet_trt.builder.graph import external_data as weights
from centernet_trt.builder.graph.shapes import PROTOBUF_LIMIT, element_types, serialised_size
from centernet_trt.builder.int8.layers import layers_in_int8
from centernet_trt.builder.int8.quantise import Int8Options
from centernet_trt.builder.int8.report import layer_rows, summary, write_int8
from centernet_trt.builder.prepare import Reporter, Silence, SpecFinder, Typing, peak_memory, prepare
from centernet_trt.builder.profiles import ProfileRequest, resolve_profiles
from centernet_trt.builder.trt.plan import Plan, build_plan
from centernet_trt.calib_data import FOLDER
from centernet_trt.runtime.bundle import MANIFEST, EngineBundle, record_file, replacing_folder
from centernet_trt.runtime.manifest import FileRecord, Manifest, PlanRecord, Precision, ShapeRange
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.trt.flavours import load_flavour

_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8"}


def requested_layers(
    model: ModelProto, kept_fp32: dict[str, str], reasons: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row for each node of a typed graph: name, operator, precision, and why it stayed fp32 or fp16.

    The precision is that of the node's result; `int8` for a layer whose activations and weights are dequantised.
    `reasons` says, for layers of an int8 graph, why each is what it is.

    `source` is `graph`: what was asked for. What an engine made of it only TensorRT's inspector can say, on a GPU.
    """
    types = element_types(model)
    in_int8 = layers_in_int8(model)
    why = (reasons or {}) | kept_fp32
    rows = []
    for node in model.graph.node:
        kind = types.get(str(node.output[0]), int(TensorProto.UNDEFINED))
        row = {
            "name": node.name,
            "op": node.op_type,
            "precision": _NAMES.get(kind, str(TensorProto.DataType.Name(kind)).lower()),
            "source": "graph",
        }
        if node.name in in_int8:
            row["precision"] = "int8"
        if node.name in why:
            row["reason"] = why[node.name]
        rows.append(row)
    return rows


# The range check of fp16 is to cost no more than some dozen seconds of one core by itself: multiply-adds.
RANGE_CHECK_WORK = 3e11


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        precision: of weights and activations.
        batch: images in a call; None is 1 to 8, tuned for 1.
        height: rows of the network input, for a spec whose size is not fixed; None is up to 1024, tuned for 512.
        width: columns, likewise.
        profiles: optimisation profiles, each tuned for its own shape; what one leaves open is `batch`, `height` or
            `width`. None is the one profile of these three. At the first one's tuned size the graph is compared.
        flavour: which TensorRT compiles the plan; `none` leaves the bundle without a plan.
        targets: GPUs to build a plan for each; none is the flavour's default.
        heads: type of the head tensors where the graph is not fp32; `fp32` keeps their last convolutions in fp32.
        calibration: a folder of images, or a COCO file: what fp16's range check looks at; None is the pictures that
            ship with the product.
        int8: how an int8 graph is searched; its images are those of `calibration`.
        tf32: let fp32 convolutions round their inputs to TF32.
        command: recorded in the manifest as the line that makes this bundle again; None for the plain one.
    """

    precision: Precision = "fp16"
    batch: ShapeRange | None = None
    height: ShapeRange | None = None
    width: ShapeRange | None = None
    profiles: tuple[ProfileRequest, ...] = ()
    flavour: Literal["auto", "rtx", "tensorrt", "none"] = "auto"
    targets: tuple[str, ...] = ()
    heads: Literal["fp16", "fp32"] = "fp16"
    calibration: Path | None = None
    int8: Int8Options = field(default_factory=Int8Options)
    tf32: bool = False
    command: str | None = None


def build(
    model: Path,
    spec: ModelSpec | SpecFinder,
    output: Path,
    options: BuildOptions | None = None,
    reporter: Reporter | None = None,
) -> EngineBundle:
    """Compile an ONNX CenterNet into an engine bundle.

    Args:
        model: the ONNX file.
        spec: what the network means, or what finds that in the graph as `lambda graph: guess_spec(graph).require_spec()` does.
        output: the bundle's folder. A bundle that is there is replaced when the new one is whole, not before.
        options: see `BuildOptions`.
        reporter: hears the progress.

    Raises:
        ModelError: the graph cannot be read or built, or does not compute what its source does.
        SpecError: the spec does not fit the graph.
        InputError: a range of the options does not fit the spec.
        BundleError: the output folder cannot be written.
        CalibrationError: the calibration images cannot be used.
        BackendError: TensorRT is missing or refuses the graph.
    """
    options, reporter = options or BuildOptions(), reporter or Silence()
    common = ProfileRequest(options.batch, options.height, options.width)
    profiles_of = partial(resolve_profiles, common=common, profiles=options.profiles)
    # What is wrong or missing should show before minutes of work: a range, TensorRT, the output folder.
    if isinstance(spec, ModelSpec):
        profiles_of(spec)
    flavour = None if options.flavour == "none" else load_flavour(options.flavour)
    targets = () if flavour is None else options.targets or (flavour.default_target,)
    for target in targets:
        assert flavour is not None
        flavour.require_device(target)
    with replacing_folder(output) as folder, weights.weights_outside():
        reporter.stage("graph")
        images = _images(options)
        typing = Typing(
            options.precision,
            options.heads,
            () if images is None else images.images,
            image_work=RANGE_CHECK_WORK if options.calibration is None else None,
            int8=replace(options.int8, calibration=None if options.calibration is None else images),
            lower_deform_conv=flavour is not None and not flavour.imports_deform_conv,
        )
        prepared = prepare(model, spec, profiles_of, typing, reporter)
        reporter.stage("write")
        record = _write_model(prepared.model, folder)
        layers = folder / "layers.json"
        reasons = {row["layer"]: row["reason"] for row in layer_rows(prepared.int8)} if prepared.int8 else {}
        rows = requested_layers(prepared.model, prepared.kept_fp32, reasons)
        layers.write_text(json.dumps(rows, indent=1) + "\n")
        beside = [layers]
        if prepared.int8 is not None:
            beside += write_int8(folder, prepared.int8, prepared.measured)
        plans: list[PlanRecord] = []
        notes = [*prepared.notes, *(prepared.int8.notes if prepared.int8 else ())]
        for target in targets:
            assert flavour is not None
            reporter.stage(f"TensorRT ({flavour.name} {flavour.version}, {target})")
            plan = build_plan(
                prepared.model,
                prepared.input.name,
                prepared.profiles,
                flavour=flavour,
                target=target,
                tf32=options.tf32,
                progress=reporter.step,
            )
            plans.append(_write_plan(plan, folder))
            notes += [line for line in dict.fromkeys([*plan.log, *plan.notes]) if line not in notes]
        if plans and flavour is not None and options.precision == "int8":
            notes += flavour.int8_notes
        manifest = Manifest(
            name=output.name,
            product=f"centernet-trt {__version__}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=options.command or _plain_command(model, output, options),
            precision=options.precision,
            spec=prepared.spec,
            profiles=prepared.profiles,
            input=prepared.input,
            heads=prepared.heads,
            source=record_file(model),
            model=record,
            plans=tuple(plans),
            files=(*map(record_file, beside), *_external_data(folder)),
            passes=tuple(prepared.passes),
            kept_fp32=prepared.kept_fp32,
            comparison=prepared.comparison,
            calibration=summary(prepared.int8, prepared.measured) if prepared.int8 else None,
            notes=tuple(notes),
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return EngineBundle(output, manifest)


def _images(options: BuildOptions) -> CalibrationImages | None:
    """What int8 is calibrated on and fp16's range check looks at."""
    return None if options.precision == "fp32" else find_images(options.calibration or FOLDER)


def _write_model(model: ModelProto, folder: Path) -> FileRecord:
    """Write `model.onnx`, beyond 2 GB with its weights in a file beside it."""
    path = folder / "model.onnx"
    if serialised_size(model) < PROTOBUF_LIMIT:
        onnx.save_model(weights.inlined(model), path)
    else:
        weights.save_beside(model, path, "model.weights")
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
        peak_bytes=peak_memory(),
    )


def _plain_command(model: Path, output: Path, options: BuildOptions) -> str:
    words = ["centernet-trt", "build", str(model), "--output", str(output), "--precision", options.precision]
    return shlex.join(words) + "  # built from Python: add --spec"
