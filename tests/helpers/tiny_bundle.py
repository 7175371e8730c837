"""A bundle of the tiny CenterNet, written without the builder: for tests of the runtime alone."""

from pathlib import Path
from typing import Any

import onnx

from centernet_trt.runtime.bundle import EngineBundle, record_file, replacing_folder
from centernet_trt.runtime.manifest import Manifest, ProfileRecord, ShapeRange, TensorRecord
from helpers.tiny_centernet import tiny_model, tiny_spec


def write_tiny_bundle(folder: Path, batch: int = 4, largest: int = 256, **spec: Any) -> EngineBundle:
    """Write the bundle (fp32, no plan) for inputs of 32 to `largest` pixels a side and up to `batch` images."""
    with replacing_folder(folder) as work:
        onnx.save(tiny_model(), work / "model.onnx")
        sides = ShapeRange(min=32, opt=64, max=largest)
        record = record_file(work / "model.onnx")
        manifest = Manifest(
            name=folder.name,
            product="centernet-trt test",
            created="2026-01-01T00:00:00+00:00",
            command="centernet-trt build tiny.onnx",
            precision="fp32",
            spec=tiny_spec(**spec),
            profiles=(ProfileRecord(batch=ShapeRange(min=1, opt=1, max=batch), height=sides, width=sides),),
            input=TensorRecord(name="image", dtype="float32", channels=3),
            heads=tuple(TensorRecord(name=n, dtype="float32", channels=2) for n in ("hm", "wh", "reg")),
            source=record,
            model=record,
        )
        (work / "manifest.json").write_text(manifest.to_json())
    return EngineBundle(folder, manifest)
