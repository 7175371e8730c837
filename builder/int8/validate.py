"""Measure the typed graph in mode `faithful`, against fp32 and against labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from centernet_trt.builder.int8.detection_loss import DetectionLoss
from centernet_trt.builder.int8.quantise import Int8Result
from centernet_trt.errors import InputError, SpecError
from centernet_trt.evaluation.accuracy.bootstrap import ApDrop, paired_drop
from centernet_trt.evaluation.accuracy.coco import CocoGroundTruth, check_categories, coco_rows
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["Measured", "measure"]


@dataclass(frozen=True)
class Measured:
    """Accuracy of the typed graph in mode `faithful`, on the evaluator's images.

    Attributes:
        loss: against the fp32 graph's detections.
        labelled: drop in COCO AP with its interval; None if the images have no annotations of the model's classes.
        notes: what was repaired in a COCO file, or why there is no such figure although the images came from one.
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
        paths = [images.folder / image.name for image in evaluator.images]
        try:
            truth = CocoGroundTruth(images.annotations, images.folder, only=set(paths))
            labelled = _labelled(truth, paths, evaluator.reference, found, spec)
            notes = truth.notes
        except (InputError, SpecError) as error:
            notes = (f"no AP on the calibration images: {error.message}",)
    return Measured(evaluator.compare(found), labelled, notes)


def _labelled(
    truth: CocoGroundTruth,
    paths: Sequence[Path],
    reference: Sequence[Detections],
    found: Sequence[Detections],
    spec: ModelSpec,
) -> ApDrop:
    """The drop on these images; InputError or SpecError if the annotations do not fit."""
    own = check_categories(spec, truth)
    ids = {image.path: image.id for image in truth.images}
    rows = [
        coco_rows({ids[path]: replace(one, category_ids=own) for path, one in zip(paths, each, strict=True)})
        for each in (reference, found)
    ]
    return paired_drop(truth, rows[0], rows[1])
