"""Build an engine bundle from an ONNX file and a ModelSpec."""

import json
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto

from centernet_trt._version import __version__
from centernet_trt.builder.calibration.images import find_images
from centernet_trt.builder.graph.external_data import (
    PROTOBUF_LIMIT,
    external_weights,
    inline_weights,
    save_with_external_data,
    serialised_size,
)
from centernet_trt.builder.graph.shapes import element_types
from centernet_trt.builder.int8.layers import layers_in_int8
from centernet_trt.builder.int8.report import layer_rows, summary, write_int8
from centernet_trt.builder.options import BuildOptions
from centernet_trt.builder.prepare import Prepared, SpecFinder, prepare
from centernet_trt.builder.progress import BuildReporter, Silence, peak_memory
from centernet_trt.builder.trt.plan import Plan, build_plan
from centernet_trt.calib_data import FOLDER
from centernet_trt.runtime.bundle import MANIFEST, EngineBundle, record_file, replacing_folder
from centernet_trt.runtime.manifest import FileRecord, Manifest, PlanRecord
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.trt.flavours import load_flavour

__all__ = ["BuildOptions", "build", "requested_layers"]

_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8"}


def requested_layers(
    model: ModelProto, kept_fp32: dict[str, str], reasons: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """List the layers of a typed graph with the precision that the graph requests of each.

    What TensorRT makes of a layer is known only from its engine inspector, on a GPU; hence `source` is `graph`.

    Args:
        model: the graph, with the type of every tensor.
        kept_fp32: reasons of the nodes that stayed fp32 by choice.
        reasons: reasons of the layers of an int8 graph.

    Returns:
        For each node its `name`, `op`, `precision` (that of its result; `int8` if its activations and weights are
        dequantised), `source`, and `reason` if there is one.
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


def build(
    model: Path,
    spec: ModelSpec | SpecFinder,
    output: Path,
    options: BuildOptions | None = None,
    reporter: BuildReporter | None = None,
) -> EngineBundle:
    """Compile an ONNX CenterNet into an engine bundle.

    Args:
        model: the ONNX file.
        spec: what the network's inputs and outputs mean; or a function that finds the spec in the loaded graph, such as
            `lambda graph: guess_spec(graph).require_spec()`.
        output: the bundle's folder. An existing bundle is replaced once the new one is complete.
        options: precision, input shapes, flavour and more; None is the defaults of `BuildOptions`.
        reporter: receives the progress; an exception that it raises cancels the build.

    Returns:
        The bundle, as `EngineBundle.load(output)` would give it.

    Raises:
        ModelError: the graph cannot be read or built, or the built graph does not compute what its source does.
        ToleranceError: the built graph differs from its source by more than a limit.
        SpecError: the spec does not fit the graph, or cannot be found.
        InputError: a range of the options does not fit the spec, or the precision does not fit the graph.
        BundleError: the output folder cannot be written.
        CalibrationError: the calibration images, record or cache cannot be used, or no int8 graph is inside the budget.
        BackendError: TensorRT is missing or refuses the graph, or ONNX Runtime refuses it.
    """
    options, reporter = options or BuildOptions(), reporter or Silence()
    # Fail before minutes of work on what is wrong or missing: a range, TensorRT, the GPU, the output folder.
    if isinstance(spec, ModelSpec):
        options.resolve_profiles(spec)
    flavour = None if options.flavour == "none" else load_flavour(options.flavour)
    targets = () if flavour is None else options.targets or (flavour.default_target,)
    for target in targets:
        assert flavour is not None
        flavour.require_device(target)
    with replacing_folder(output) as folder, external_weights():
        reporter.stage("graph")
        images = find_images(options.calibration or FOLDER)
        own = None if options.calibration is None else images
        prepared = prepare(
            model,
            spec,
            replace(options, int8=replace(options.int8, calibration=own)),
            images,
            lower_deform_conv=flavour is not None and not flavour.imports_deform_conv,
            reporter=reporter,
        )
        reporter.stage("write")
        record = _write_model(prepared.model, folder)
        beside = _write_reports(prepared, folder)
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


def _write_reports(prepared: Prepared, folder: Path) -> list[Path]:
    """Write `layers.json` and, for an int8 search, its reports."""
    layers = folder / "layers.json"
    reasons = {row["layer"]: row["reason"] for row in layer_rows(prepared.int8)} if prepared.int8 else {}
    rows = requested_layers(prepared.model, prepared.kept_fp32, reasons)
    layers.write_text(json.dumps(rows, indent=1) + "\n")
    if prepared.int8 is None:
        return [layers]
    return [layers, *write_int8(folder, prepared.int8, prepared.measured)]


def _write_model(model: ModelProto, folder: Path) -> FileRecord:
    """Write `model.onnx`; above 2 GB its weights go to a file beside it."""
    path = folder / "model.onnx"
    if serialised_size(model) < PROTOBUF_LIMIT:
        onnx.save_model(inline_weights(model), path)
    else:
        save_with_external_data(model, path, "model.weights")
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
