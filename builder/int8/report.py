"""Report an int8 build: `int8.json`, `int8.md`, and the bundle's calibration files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from centernet_trt.builder.calibration.record import format_cache
from centernet_trt.builder.calibration.thresholds import METHODS
from centernet_trt.builder.int8.detection_loss import DetectionLoss
from centernet_trt.builder.int8.placement import activation_scale
from centernet_trt.builder.int8.probe import Probe, predicted_loss
from centernet_trt.builder.int8.quantise import Int8Result
from centernet_trt.builder.int8.validate import Measured
from centernet_trt.runtime.manifest import CalibrationSummary

__all__ = ["layer_rows", "markdown", "report", "summary", "write_int8"]


def report(result: Int8Result, measured: Measured | None = None) -> dict[str, Any]:
    """Return the report as plain data, as `int8.json` has it.

    Args:
        result: of `make_int8`.
        measured: the typed graph in mode `faithful`; None if it was not measured.
    """
    found = result.search
    chosen = [probe for probe in found.probes if probe.unit in found.chosen]
    return {
        "method": result.options.method,
        "budget": {
            "max_drop": result.options.budget.max_drop,
            "min_agreement": result.options.budget.min_agreement,
        },
        "share_of_multiply_adds_in_int8": round(found.share, 6),
        "predicted": {
            "loss": round(predicted_loss(chosen), 6),
            "drop_as_sum_of_single_drops": round(sum(max(p.loss.drop, 0.0) for p in chosen), 6),
        },
        "simulated": _loss(found.loss),
        "faithful": None if measured is None else _loss(measured.loss),
        "labelled": None if measured is None or measured.labelled is None else measured.labelled.to_json(),
        "reference_expected_ap": round(result.evaluator.reference_ap, 6),
        "layers": layer_rows(result),
        "skips": [list(pair) for pair in found.skips],
        "trials": [
            {
                "what": trial.what,
                "units": trial.units,
                "share": round(trial.share, 6),
                "inside": trial.inside,
                **_loss(trial.loss),
            }
            for trial in found.trials
        ],
        "images": {
            "calibration": [image.model_dump() for image in result.record.identity.images],
            "judged": [{"name": i.name, "sha256": i.sha256} for i in result.evaluator.images],
            "probed": list(result.probe_images),
        },
        "notes": [*result.notes, *(measured.notes if measured else ())],
    }


def _loss(loss: DetectionLoss) -> dict[str, Any]:
    return {
        "loss": round(loss.weighted, 6),
        "expected_drop": round(loss.drop, 6),
        "agreement": loss.agreement.to_json(),
        "heads": {name: round(value, 6) for name, value in loss.heads.items()},
    }


def layer_rows(result: Int8Result) -> list[dict[str, Any]]:
    """One row per layer with weights: precision, thresholds of its input by each method, SQNR, loss, reason."""
    probes = {layer.name: probe for probe in result.search.probes for layer in probe.unit.layers}
    total = result.survey.multiply_adds or 1
    rows = []
    for layer in result.survey.layers:
        tensor = result.record.tensors.get(layer.input)
        probe = probes.get(layer.name)
        method = result.search.methods.get(layer.input, result.options.method)
        in_int8 = layer.name in result.search.layers
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "input": layer.input,
                "precision": "int8" if in_int8 else "fp16",
                "share": round(layer.multiply_adds / total, 6),
                "method": method if in_int8 else None,
                "thresholds": dict(tensor.thresholds) if tensor else {},
                "signal_to_noise": tensor.signal_to_noise.get(method) if tensor else None,
                "loss": round(probe.loss.weighted, 6) if probe else None,
                "expected_drop": round(probe.loss.drop, 6) if probe else None,
                "reason": _reason(layer.name, probe, in_int8, result),
            }
        )
    return rows


def _reason(name: str, probe: Probe | None, in_int8: bool, result: Int8Result) -> str:
    if name in result.survey.excluded:
        return result.survey.excluded[name]
    if in_int8:
        return "inside the budget"
    if probe is None:
        return "not probed"
    share = probe.unit.multiply_adds / (result.survey.multiply_adds or 1)
    return f"a loss of {probe.loss.weighted:.3f} for {share:.1%} of the multiply-adds"


def markdown(data: Mapping[str, Any]) -> str:
    """Render the data of `report` as `int8.md`."""
    faithful = data["faithful"]
    lines = [
        "# int8 report",
        "",
        f"- multiply-adds in int8: {data['share_of_multiply_adds_in_int8']:.1%}",
        f"- budget: drop {data['budget']['max_drop']:g}, agreement {data['budget']['min_agreement']:g}",
        (
            f"- predicted from the layers alone: loss {data['predicted']['loss']:.4f}, "
            f"drop {data['predicted']['drop_as_sum_of_single_drops']:.4f} (their sum)"
        ),
        f"- the whole graph: {_words(data['simulated'])} (int8 simulated, fp32 around it)",
    ]
    if faithful is not None:
        lines.append(f"- the typed graph: {_words(faithful)} (faithful mode, int8 and fp16)")
    if (labelled := data["labelled"]) is not None:
        lines.append(
            f"- against the annotations of {labelled['images']} calibration images: AP {labelled['candidate_ap']:.4f}, "
            f"fp32 {labelled['reference_ap']:.4f}, drop {labelled['drop']:+.4f} "
            f"(95 % of resamplings: {labelled['low']:+.4f} to {labelled['high']:+.4f})"
        )
    images = data["images"]
    lines += [
        (
            f"- images: {len(images['calibration'])} for calibration, {len(images['judged'])} for whole "
            f"graphs, {len(images['probed'])} for single layers; their hashes are in int8.json"
        ),
        *(f"- note: {note}" for note in data["notes"]),
        "",
        *_table(data["layers"]),
    ]
    return "\n".join(lines) + "\n"


def _words(loss: Mapping[str, Any]) -> str:
    agreement = loss["agreement"]
    return (
        f"loss {loss['loss']:.4f}, expected drop {loss['expected_drop']:.4f}, F1 {agreement['f1']:.4f} of "
        f"{agreement['reference']} boxes at score {agreement['threshold']:g}"
        + "".join(f", {name} {value:.4f}" for name, value in loss["heads"].items())
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["layer", "kind", "share", "precision", "method", *METHODS, "SQNR dB", "loss", "drop", "reason"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["layer"], row["kind"], f"{row['share']:.2%}", row["precision"], row["method"] or ""]
        cells += [f"{row['thresholds'][m]:.4g}" if m in row["thresholds"] else "" for m in METHODS]
        noise = row["signal_to_noise"]
        cells.append("" if noise is None else f"{noise:.1f}")
        cells += ["" if row[k] is None else f"{row[k]:.4f}" for k in ("loss", "expected_drop")]
        lines.append("| " + " | ".join([*cells, row["reason"]]) + " |")
    return lines


def write_int8(folder: Path, result: Int8Result, measured: Measured | None = None) -> list[Path]:
    """Write the calibration files of a bundle.

    `calibration.json` is the record, `calibration.cache` the scales of the int8 tensors as TensorRT's text cache,
    `int8.json` the report with the log of the search, `int8.md` its table.

    Args:
        folder: of the bundle.
        result: of `make_int8`.
        measured: the typed graph in mode `faithful`; None if it was not measured.

    Returns:
        Paths of the files.
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
    """Return the manifest's entry about a calibration; arguments as for `report`."""
    found = result.search.loss if measured is None else measured.loss
    return CalibrationSummary(
        method=result.options.method,
        images=len(result.record.identity.images),
        int8_share=round(result.search.share, 6),
        max_drop=result.options.budget.max_drop,
        min_agreement=result.options.budget.min_agreement,
        expected_drop=round(found.drop, 6),
        agreement_f1=round(found.agreement.f1, 6),
        agreement_heads={name: round(value, 6) for name, value in found.heads.items()},
        judged_images=len(result.evaluator.images),
        mode="simulated" if measured is None else "faithful",
    )


def _scales(result: Int8Result) -> dict[str, float]:
    """The scale of every activation that an int8 layer of the bundle's graph reads."""
    thresholds = result.search.thresholds
    return {unit.tensor: activation_scale(thresholds[unit.tensor]) for unit in result.search.chosen}
