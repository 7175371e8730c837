"""Bundles whose plan the fake TensorRT loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from centernet_trt.runtime.bundle import EngineBundle, record_file, replacing_folder
from centernet_trt.runtime.manifest import Manifest, PlanRecord, ProfileRecord, ShapeRange, TensorRecord
from centernet_trt.runtime.spec import ModelSpec
from helpers.fake_tensorrt import fake_plan

VERSIONS = {"rtx": "1.7.1.116", "tensorrt": "10.13.3.9"}


def write_bundle(
    folder: Path,
    model: onnx.ModelProto,
    spec: ModelSpec,
    batch: tuple[int, int, int],
    sides: tuple[int, int, int],
    flavour: str = "rtx",
    further: Sequence[ProfileRecord] = (),
    **plan: Any,
) -> EngineBundle:
    """Write a bundle of this graph: profile ranges as (min, opt, max), `sides` for height and width alike.

    `further`: profiles after that one. `plan`: what its record says otherwise; `engine_profiles` what the engine has.
    """
    data = model.SerializeToString()
    with replacing_folder(folder) as work:
        (work / "model.onnx").write_bytes(data)
        record = record_file(work / "model.onnx")
        version = str(plan.pop("version", VERSIONS[flavour]))
        ranges = [ShapeRange.of(*batch), ShapeRange.of(*sides), ShapeRange.of(*sides)]
        profiles = (ProfileRecord(batch=ranges[0], height=ranges[1], width=ranges[2]), *further)
        shapes = plan.pop("engine_profiles", _shapes(profiles))
        (work / "fake.plan").write_bytes(fake_plan(data, flavour, version, shapes))
        told = {"flavour": flavour, "version": version, "target": "portable", "tf32": False, "seconds": 0.0}
        plans = (PlanRecord(**(record_file(work / "fake.plan").model_dump() | told | plan)),)
        manifest = Manifest(
            name=folder.name,
            product="centernet-trt test",
            created="2026-01-01T00:00:00+00:00",
            command="centernet-trt build tiny.onnx",
            precision="fp32",
            spec=spec,
            profiles=profiles,
            input=_tensor(model.graph.input[0]),
            heads=tuple(_tensor(value) for value in model.graph.output),
            source=record,
            model=record,
            plans=plans,
        )
        (work / "manifest.json").write_text(manifest.to_json())
    return EngineBundle.load(folder)


def _shapes(profiles: Sequence[ProfileRecord]) -> list[list[list[int]]]:
    return [
        [
            [getattr(p.batch, which), 3, getattr(p.height, which), getattr(p.width, which)]
            for which in ("min", "opt", "max")
        ]
        for p in profiles
    ]


def _tensor(value: onnx.ValueInfoProto) -> TensorRecord:
    tensor = value.type.tensor_type
    kind = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}[tensor.elem_type]
    return TensorRecord(name=value.name, dtype=kind, channels=tensor.shape.dim[1].dim_value)  # type: ignore[arg-type]
