"""What a change of the graph does to the detections: measured on images, without labels, against the fp32 graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.calibration.statistics import Simulation, batches
from centernet_trt.builder.graph.shapes import open_session
from centernet_trt.evaluation.accuracy.agreement import Agreement, agreement, match
from centernet_trt.evaluation.accuracy.expected_ap import DrawnAnnotations
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["DetectionLoss", "LossEvaluator", "weighted_loss"]

# Below this score a detection of the reference hardly counts; leaving it out saves most of the matching.
_FAINTEST = 0.05
_SAME_OBJECT = 0.3


@dataclass(frozen=True)
class DetectionLoss:
    """How far a candidate is from the reference on the judge's images.

    Attributes:
        loss: `weighted_loss`, 0 for equal detections; changes smoothly, so it ranks small damages.
        drop: expected drop in AP (`evaluation.expected_ap`), the unit of the budget.
        agreement: matched boxes at the spec's threshold.
    """

    loss: float
    drop: float
    agreement: Agreement


class LossEvaluator:
    """Holds a reference graph's detections on some images, and compares other graphs with them."""

    def __init__(
        self,
        reference: ModelProto,
        spec: ModelSpec,
        images: Sequence[CalibrationImage],
        *,
        threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the reference.

        Args:
            reference: the fp32 graph.
            spec: pre-processing and decode.
            images: at least one.
            threads: of ONNX Runtime.
            progress: called with (images done, images in all).
        """
        self._spec, self.images, self._threads = spec, images, threads
        self.reference = self.detections(reference, progress)
        self._annotations = DrawnAnnotations(self.reference)

    @property
    def reference_ap(self) -> float:
        """Expected AP of the reference: what `drop` is taken from."""
        return self._annotations.reference_ap

    def detections(
        self, model: ModelProto, progress: Callable[[int, int], None] | None = None
    ) -> list[Detections]:
        """Detections of every image: no threshold, the spec's top K."""
        simulation = Simulation(model, self._threads)
        found = []
        for done, batch in enumerate(batches(self.images, self._spec.input)):
            if progress is not None:
                progress(done, len(self.images))
            found += decode(simulation.run(batch.tensor), self._spec, batch.placements, threshold=0.0)
        return found

    def damage(self, model: ModelProto, progress: Callable[[int, int], None] | None = None) -> DetectionLoss:
        """Run a candidate, a graph with the reference's input and heads, and compare."""
        return self.compare(self.detections(model, progress))

    def faithful_detections(
        self, model: ModelProto, progress: Callable[[int, int], None] | None = None
    ) -> list[Detections]:
        """As `detections`, for a typed graph: every fp16 tensor is rounded (see `runtime.faithful`), which is slow."""
        session = open_session(model, "faithful", self._threads)
        given = model.graph.input[0]
        dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        names = [value.name for value in model.graph.output]
        found: list[Detections] = []
        for done, batch in enumerate(batches(self.images, self._spec.input)):
            if progress is not None:
                progress(done, len(self.images))
            heads = dict(
                zip(names, session.run(names, {given.name: batch.tensor.astype(dtype)}), strict=True)
            )
            found += decode(heads, self._spec, batch.placements, threshold=0.0)
        return found

    def compare(self, found: Sequence[Detections]) -> DetectionLoss:
        """Compare detections of the judge's images with the reference's."""
        return DetectionLoss(
            weighted_loss(self.reference, found),
            self._annotations.drop(found),
            agreement(self.reference, found, threshold=self._spec.threshold),
        )


def weighted_loss(reference: Sequence[Detections], candidate: Sequence[Detections]) -> float:
    """Difference of detections as a part of the reference's own weight, the sum of its scores.

    A pair costs |difference of scores| + score * (1 - overlap), a detection that was lost twice its score. Detections
    with a score below 0.05 are left out of the reference.
    """
    cost = weight = 0.0
    for right, judged in zip(reference, candidate, strict=True):
        right = right[right.score >= _FAINTEST]
        score = right.score.astype(np.float64)
        each = 2 * score
        pairs = match(right, judged, _SAME_OBJECT)
        apart = np.abs(score[pairs.reference] - judged.score[pairs.candidate])
        each[pairs.reference] = apart + score[pairs.reference] * (1 - pairs.iou)
        cost += float(each.sum())
        weight += float(score.sum())
    return cost / weight if weight else 0.0
