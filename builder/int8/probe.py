"""Measure what single layers cost in int8: the order in which the search takes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from centernet_trt.builder.calibration.thresholds import Method
from centernet_trt.builder.int8.detection_loss import DetectionLoss, LossEvaluator
from centernet_trt.builder.int8.layers import Unit
from centernet_trt.builder.int8.placement import place
from centernet_trt.progress import Progress

__all__ = ["Means", "Probe", "Thresholds", "predicted_loss", "probe_units"]

Thresholds = Mapping[str, Mapping[Method, float]]
"""By tensor and method."""
Means = Mapping[str, Sequence[float]]
"""Mean of each channel, by tensor."""

# A unit with a smaller loss by the first method is not tried with another.
_CHEAP = 0.03
# Another method is taken if its loss is below this fraction of the first's. Not merely if it is smaller: that would fit
# every threshold to the few images that units are probed on. The COCO MobileNetV3 with 33 layers in int8 lost the
# same on its calibration images with the best method of each tensor and with squared error for all (0.140, 0.144), on
# other images it agreed with fp32 in 0.946 and 0.959 of the boxes.
_FAR_BETTER = 0.5


@dataclass(frozen=True)
class Probe:
    """A unit alone in int8.

    Attributes:
        unit: its layers.
        method: how the threshold was chosen.
        loss: of the graph with this unit alone in int8.
        tried: weighted loss by each method that was tried.
    """

    unit: Unit
    method: Method
    loss: DetectionLoss
    tried: dict[Method, float]


def predicted_loss(probes: Sequence[Probe]) -> float:
    """The weighted loss of a graph with all these units in int8, as if their losses were independent."""
    return math.sqrt(sum(probe.loss.weighted**2 for probe in probes))


def probe_units(
    model: ModelProto,
    units: Sequence[Unit],
    thresholds: Thresholds,
    evaluator: LossEvaluator,
    methods: Sequence[Method],
    means: Means,
    progress: Progress | None = None,
) -> list[Probe]:
    """Measure each unit alone in int8, by the first method, and by the others where that costs much.

    Another method is taken if it costs less than half.

    Args:
        model: fp32.
        units: to measure.
        thresholds: by tensor and method.
        evaluator: measures the graphs.
        methods: in the order to try them.
        means: of the channels of tensors, for the correction of biases.
        progress: called with (what, done, total).

    Returns:
        By squared loss per multiply-add, smallest first: the order in which units are worth being int8.
    """
    probes = []
    for done, unit in enumerate(units):
        if progress is not None:
            progress("loss of single layers", done, len(units))
        names = {layer.name for layer in unit.layers}
        found: dict[Method, DetectionLoss] = {}
        for method in methods:
            value = thresholds[unit.tensor][method]
            if any(thresholds[unit.tensor][other] == value for other in found):
                continue  # the same graph again
            found[method] = evaluator.evaluate(place(model, {unit.tensor: value}, names, means=means))
            if found[method].weighted < _CHEAP:
                break
        first = next(iter(found))
        best = min(found, key=lambda method: found[method].weighted)
        if found[best].weighted >= _FAR_BETTER * found[first].weighted:
            best = first
        tried: dict[Method, float] = {method: loss.weighted for method, loss in found.items()}
        probes.append(Probe(unit, best, found[best], tried))
    return sorted(probes, key=lambda p: (p.loss.weighted**2 / p.unit.multiply_adds, p.unit.tensor))
