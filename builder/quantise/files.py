"""Writes what an int8 build leaves in its bundle beside the graph: record, cache, report, and table."""

import json
from pathlib import Path

from centernet_trt.builder.calibration.trt_cache import format_cache
from centernet_trt.builder.quantise.int8 import Int8Result
from centernet_trt.builder.quantise.layers import Rules
from centernet_trt.builder.quantise.measured import Measured
from centernet_trt.builder.quantise.placement import activation_scale
from centernet_trt.builder.quantise.report import markdown, report
from centernet_trt.runtime.manifest import CalibrationSummary

__all__ = ["summary", "write_int8"]


def write_int8(folder: Path, result: Int8Result, measured: Measured | None = None) -> list[Path]:
    """Write the files into a bundle's folder; their paths.

    `calibration.json` the record, `calibration.cache` the scales of the int8 tensors as TensorRT's text cache,
    `int8.json` the report with the search log, `int8.md` its table.
    """
    data = report(result, measured)
    texts = {
        "calibration.json": result.record.to_json(),
        "calibration.cache": format_cache(_scales(result)),
        "int8.json": json.dumps(data, indent=1) + "\n",
        "int8.md": markdown(data),
    }
    paths = []
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def summary(result: Int8Result, measured: Measured | None = None) -> CalibrationSummary:
    """What the manifest says of a calibration."""
    found = result.search.damage if measured is None else measured.damage
    return CalibrationSummary(
        method=result.options.method,
        images=len(result.record.identity.images),
        int8_share=round(result.search.share, 6),
        max_drop=result.options.budget.max_drop,
        min_agreement=result.options.budget.min_agreement,
        expected_drop=round(found.drop, 6),
        agreement_f1=round(found.agreement.f1, 6),
        judged_images=len(result.judge.images),
        mode="simulated" if measured is None else "faithful",
    )


def _scales(result: Int8Result) -> dict[str, float]:
    """The scale of every activation that an int8 layer reads, of the bundle's own graph."""
    rules: Rules = result.options.rules
    return {
        unit.tensor: activation_scale(result.search.thresholds[unit.tensor], rules)
        for unit in result.search.chosen
    }
