"""Detection-level loss of a graph against the fp32 graph, on images without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, helper

from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.calibration.statistics import Simulation, batches
from centernet_trt.builder.graph.shapes import open_session
from centernet_trt.evaluation.accuracy.agreement import Agreement, agreement, match
from centernet_trt.evaluation.accuracy.expected_ap import DrawnAnnotations
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.spec import ModelSpec, PointsExtra

__all__ = ["DetectionLoss", "LossEvaluator", "further_heads", "weighted_loss"]

# Reference detections below this score hardly count; leaving them out saves most of the matching.
_FAINTEST = 0.05
_SAME_OBJECT = 0.3


@dataclass(frozen=True)
class DetectionLoss:
    """Difference between the detections of a candidate and of the reference, on the evaluator's images.

    Attributes:
        weighted: `weighted_loss`, plus 1 minus the agreement of each further head: 0 for equal detections. It changes
            smoothly, so it ranks small differences.
        drop: expected drop in AP (`evaluation.accuracy.expected_ap`), the unit of the budget.
        agreement: matched boxes at the spec's threshold.
        heads: `further_heads`, 1 for equal values.
    """

    weighted: float
    drop: float
    agreement: Agreement
    heads: Mapping[str, float] = field(default_factory=dict)


class LossEvaluator:
    """Compares the detections of graphs with those of a reference graph, on the same images.

    Attributes:
        images: that every graph is run on.
        reference: detections of the reference graph, one entry per image.
    """

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
            progress: called with (images done, total).
        """
        self._spec, self.images, self._threads = spec, images, threads
        self.reference = self.detections(reference, progress)
        self._annotations = DrawnAnnotations(self.reference)

    @property
    def reference_ap(self) -> float:
        """Expected AP of the reference, 0..1: `drop` is the difference from it."""
        return self._annotations.reference_ap

    def detections(
        self, model: ModelProto, progress: Callable[[int, int], None] | None = None
    ) -> list[Detections]:
        """Detections of every image: no score threshold, the spec's top K."""
        simulation = Simulation(model, self._threads)
        found = []
        for done, batch in enumerate(batches(self.images, self._spec.input)):
            if progress is not None:
                progress(done, len(self.images))
            found += decode(simulation.run(batch.tensor), self._spec, batch.placements, threshold=0.0)
        return found

    def evaluate(
        self, model: ModelProto, progress: Callable[[int, int], None] | None = None
    ) -> DetectionLoss:
        """Run a candidate, which has the reference's input and heads, and compare."""
        return self.compare(self.detections(model, progress))

    def faithful_detections(
        self, model: ModelProto, progress: Callable[[int, int], None] | None = None
    ) -> list[Detections]:
        """As `detections`, for a typed graph in mode `faithful`: every fp16 tensor is rounded, which is slow."""
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
        """Compare detections, one entry per image of the evaluator, with the reference's."""
        heads = further_heads(self.reference, found, self._spec)
        return DetectionLoss(
            weighted_loss(self.reference, found) + sum(1 - value for value in heads.values()),
            self._annotations.drop(found),
            agreement(self.reference, found, threshold=self._spec.threshold),
            heads,
        )


def weighted_loss(reference: Sequence[Detections], candidate: Sequence[Detections]) -> float:
    """Difference of detections, relative to the sum of the reference's scores.

    A matched pair costs |difference of scores| + score * (1 - IoU), a lost detection twice its score. Reference
    detections with a score below 0.05 are ignored.
    """
    cost = weight = 0.0
    for right, found in zip(reference, candidate, strict=True):
        right = right[right.score >= _FAINTEST]
        score = right.score.astype(np.float64)
        each = 2 * score
        pairs = match(right, found, _SAME_OBJECT)
        apart = np.abs(score[pairs.reference] - found.score[pairs.candidate])
        each[pairs.reference] = apart + score[pairs.reference] * (1 - pairs.iou)
        cost += float(each.sum())
        weight += float(score.sum())
    return cost / weight if weight else 0.0


def further_heads(
    reference: Sequence[Detections], candidate: Sequence[Detections], spec: ModelSpec
) -> dict[str, float]:
    """Agreement of embeddings, landmarks and other further heads at the objects that both found.

    It is 1 minus a relative error: the root mean square of the differences over all objects, weighted by score, divided
    by that of the reference's values, or for points by the sides of the boxes. Objects as in `weighted_loss`; those below
    a score of 0.05 count where the reference has no others.

    Args:
        reference: detections of the reference, one entry per image.
        candidate: those of the candidate, in the same order.
        spec: names the heads.

    Returns:
        By name of the head, 1 for equal values, negative for errors above the values themselves.
    """
    faintest = _FAINTEST if any((right.score >= _FAINTEST).any() for right in reference) else 0.0
    noise = {head.name: 0.0 for head in spec.heads.extra}
    signal = dict(noise)
    for right, found in zip(reference, candidate, strict=True) if noise else ():
        right = right[right.score >= faintest]
        pairs = match(right, found, _SAME_OBJECT)
        right, found = right[pairs.reference], found[pairs.candidate]
        weight = right.score.astype(np.float64)
        sides = (right.xyxy[:, 2:] - right.xyxy[:, :2]).astype(np.float64)
        for head in spec.heads.extra:
            values = right.extra[head.name].astype(np.float64)
            squares = (values - found.extra[head.name]) ** 2
            if isinstance(head, PointsExtra):  # each point has two coordinates
                scale = sides.prod(axis=1) * head.points
            else:
                scale = (values**2).sum(axis=1)
            noise[head.name] += float(weight @ squares.sum(axis=1))
            signal[head.name] += float(weight @ scale)
    return {
        name: 1 - float(np.sqrt(noise[name] / signal[name])) if signal[name] else 1.0 - bool(noise[name])
        for name in noise
    }
