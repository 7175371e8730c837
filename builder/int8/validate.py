"""Measure the typed graph in mode `faithful`, against fp32 and against labels."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from centernet_trt.builder.int8.detection_loss import DetectionLoss
from centernet_trt.builder.int8.quantise import Int8Result
from centernet_trt.errors import InputError, SpecError
from centernet_trt.evaluation.accuracy.bootstrap import ApDrop, paired_drop
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, check_categories
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["Measured", "measure"]


@dataclass(frozen=True)
class Measured:
    """Accuracy of the typed graph in mode `faithful`, on the evaluator's images.

    Attributes:
        loss: against the fp32 graph's detections.
        labelled: drop in COCO AP with its interval; None if the images have no annotations of the model's classes.
        notes: why there is no such figure although the images came from a COCO file.
    """

    loss: DetectionLoss
    labelled: ApDrop | None
    notes: tuple[str, ...] = ()


def measure(
    result: Int8Result, typed: ModelProto, spec: ModelSpec, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """Run the typed graph on the evaluator's images, every fp16 tensor rounded.

    Whether the loss is inside the budget is for the caller to decide (`Int8Result.inside_budget`).

    Args:
        result: of `make_int8`.
        typed: its graph, typed.
        spec: classes and category ids.
        progress: called with (images done, total).
    """
    evaluator = result.evaluator
    found = evaluator.faithful_detections(typed, progress)
    images = result.options.calibration
    labelled: ApDrop | None = None
    notes: tuple[str, ...] = ()
    if images is not None and images.annotations is not None and images.folder is not None:
        names = [image.name for image in evaluator.images]
        try:
            labelled = _labelled(images.annotations, images.folder, names, evaluator.reference, found, spec)
        except (InputError, SpecError) as error:
            notes = (f"no AP on the calibration images: {error.message}",)
    return Measured(evaluator.compare(found), labelled, notes)


def _labelled(
    annotations: Path,
    folder: Path,
    names: Sequence[str],
    reference: Sequence[Detections],
    found: Sequence[Detections],
    spec: ModelSpec,
) -> ApDrop:
    """The drop on these images alone; InputError or SpecError if the annotations do not fit."""
    data = json.loads(annotations.read_text(encoding="utf-8"))
    images = [row for row in data["images"] if row["file_name"] in set(names)]
    ids = {row["file_name"]: row["id"] for row in images}
    known = set(ids.values())
    kept = [row for row in data.get("annotations", []) if row["image_id"] in known]
    if not kept:
        raise InputError(f"{annotations} annotates no object in them")
    with tempfile.TemporaryDirectory(prefix="centernet-trt-") as scratch:
        part = Path(scratch) / annotations.name
        part.write_text(json.dumps({**data, "images": images, "annotations": kept}), encoding="utf-8")
        truth = CocoGroundTruth(part, folder)
    truth.path = annotations  # for messages: the temporary file is gone
    check_categories(spec, truth)
    rows = [
        [row for name, one in zip(names, each, strict=True) for row in one.to_coco(ids[name])]
        for each in (reference, found)
    ]
    return paired_drop(truth, rows[0], rows[1])
