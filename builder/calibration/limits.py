"""Check a typed graph against its source on images and a black frame: compare_on_images, check_limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from centernet_trt.builder.calibration.images import CalibrationImage
from centernet_trt.builder.calibration.statistics import Batch, batches
from centernet_trt.builder.graph.shapes import open_session
from centernet_trt.errors import BackendError, ToleranceError
from centernet_trt.evaluation.accuracy.agreement import match
from centernet_trt.evaluation.environment import available_cores
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.manifest import Precision
from centernet_trt.runtime.spec import MAX_TOP_K, ModelSpec

__all__ = [
    "FEWEST_BOXES",
    "LEAST_F1",
    "LIMITS",
    "BoxAgreement",
    "ImageComparison",
    "check_limits",
    "compare_on_images",
]

LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.06, "int8": 0.5}
"""Largest difference of a head by precision: root mean square, relative to that of the source's head."""
LEAST_F1 = 0.9
"""Lowest F1 of the boxes at the spec's threshold."""
FEWEST_BOXES = 20
"""With fewer boxes of the source above the threshold, F1 says little, and the heads alone decide."""
_BLACK = "a black frame"
# A box may cross the threshold, or the limit of a decode, by rounding: it may have so much less score in the other graph.
_SCORE_MARGIN = 0.01


@dataclass(frozen=True)
class BoxAgreement:
    """Agreement of the boxes of two graphs.

    A box counts if its score reaches the threshold and it is not empty; it is found if the other graph has a box of its
    class with an IoU of 0.5 or more, above the threshold or just below it.

    Attributes:
        threshold: lowest score.
        source: number of boxes of the source.
        typed: number of boxes of the typed graph.
        found: number of boxes of both that are found in the other.
    """

    threshold: float
    source: int = 0
    typed: int = 0
    found: int = 0

    @property
    def f1(self) -> float:
        """Share of the boxes of both graphs that are found in the other; 1 without boxes."""
        return self.found / (self.source + self.typed) if self.source + self.typed else 1.0

    def add(self, source: Detections, typed: Detections) -> "BoxAgreement":
        """This agreement and that of one more image."""
        counts = []
        # Of more boxes than a decode returns, which of the last are returned is chance.
        cut = [float(one.score[-1]) + _SCORE_MARGIN for one in (source, typed) if len(one) == MAX_TOP_K]
        floor = max(self.threshold, *cut) if cut else self.threshold
        for judged, other in ((source, typed), (typed, source)):
            full = (judged.xyxy[:, 2] > judged.xyxy[:, 0]) & (judged.xyxy[:, 3] > judged.xyxy[:, 1])
            boxes = judged[(judged.score >= floor) & full]
            counts.append((len(boxes), len(match(boxes, other).iou)))
        (right, kept), (ours, true) = counts
        return BoxAgreement(self.threshold, self.source + right, self.typed + ours, self.found + kept + true)


@dataclass(frozen=True)
class ImageComparison:
    """The differences of a typed graph from its source on images.

    Attributes:
        heads: by head, the largest difference of an image and the name of that image. It is the root mean square of
            the difference, relative to that of the source's head where it is largest; inf if a value is NaN or
            infinite in one graph and not the same in the other.
        boxes: agreement of the boxes at the spec's threshold; None if a head is not finite.
        images: number of images, without the black frame.
        half_source: whether the source itself computes in fp16.
    """

    heads: Mapping[str, tuple[float, str]]
    boxes: BoxAgreement | None
    images: int
    half_source: bool


def compare_on_images(
    source: ModelProto,
    typed: ModelProto,
    spec: ModelSpec,
    shape: tuple[int, int],
    images: Sequence[CalibrationImage],
    progress: Callable[[int, int], None] | None = None,
) -> ImageComparison:
    """Run the source and the typed graph, rounded to its types, on images and on a black frame.

    Args:
        source: cut at the heads.
        typed: made of it; every tensor's type known.
        spec: pre-processing, decode and threshold.
        shape: (height, width) of the network input for the black frame.
        images: to run on; may be empty.
        progress: called with (images done, total).

    Raises:
        BackendError: ONNX Runtime refuses a graph.
        ModelError: the heads do not fit the spec.
    """
    run_source, run_typed = _runner(source), _runner(typed)
    noise: dict[str, dict[str, float]] = {name: {} for name in spec.heads.tensors}
    signal = dict.fromkeys(noise, 0.0)
    boxes: BoxAgreement | None = BoxAgreement(spec.threshold)
    every = [*images, _black_frame(spec, shape)]
    for done, batch in enumerate(batches(every, spec.input)):
        if progress is not None:
            progress(done, len(every))
        right, ours = run_source(batch), run_typed(batch)
        for name, by_image in noise.items():
            by_image[batch.names[0]], rms = _difference(right[name], ours[name])
            signal[name] = max(signal[name], rms)
        if boxes is None or not all(np.isfinite(each[batch.names[0]]) for each in noise.values()):
            boxes = None
            continue
        floor = max(spec.threshold - _SCORE_MARGIN, 0.0)
        detections = [decode(heads, spec, batch.placements, floor, MAX_TOP_K)[0] for heads in (right, ours)]
        boxes = boxes.add(*detections)
    differences = {}
    for name, by_image in noise.items():
        worst = max(by_image, key=by_image.__getitem__)
        differences[name] = _ratio(by_image[worst], signal[name]), worst
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in source.graph.initializer)
    return ImageComparison(differences, boxes, len(images), half)


def check_limits(
    found: ImageComparison,
    precision: Precision,
    max_difference: float | None = None,
    least_f1: float = LEAST_F1,
) -> list[str]:
    """Check a comparison against the limits of a precision.

    Args:
        found: the differences.
        precision: of the typed graph.
        max_difference: replaces the limit of the heads; above the default one, the boxes no longer decide either.
        least_f1: lowest F1 of the boxes.

    Returns:
        Notes for the user: what did not decide, and why.

    Raises:
        ToleranceError: a head differs by more than the limit, or the boxes agree too little.
    """
    usual = LIMITS["fp16" if precision == "fp32" and found.half_source else precision]
    limit = usual if max_difference is None else max_difference
    where = f"{found.images} images and {_BLACK}" if found.images else _BLACK
    start = f"the {precision} graph differs from its source: expected at most"
    if beyond := _beyond(found, limit):
        raise ToleranceError(
            f"{start} {limit:.2g} of each head's root mean square on {where}, got {beyond}",
            _hint(precision, "the nodes of these heads"),
        )
    notes = []
    if beyond := _beyond(found, usual):  # the caller accepts it
        notes.append(f"{start} {usual:.2g} of each head's root mean square on {where}, got {beyond}")
    boxes = found.boxes
    if boxes is None:
        return notes
    at = f"score {boxes.threshold:g} on {where}"
    if boxes.source < FEWEST_BOXES:
        text = (
            f"{boxes.source} boxes of the source stand above {at}, fewer than {FEWEST_BOXES}: the differences of the "
            "heads alone decided about this build"
        )
        return [*notes, text]
    if boxes.f1 >= least_f1:
        return notes
    worst = max(found.heads, key=lambda name: found.heads[name][0])
    text = (
        f"the boxes of the {precision} graph agree with its source's in an F1 of {boxes.f1:.3f}, expected at least "
        f"{least_f1:g} ({boxes.typed} boxes above {at}, {boxes.source} of the source); head "
        f"{worst!r} differs most, {_words(found.heads[worst][0])}"
    )
    if limit > usual:
        return [*notes, text]
    raise ToleranceError(text, _hint(precision, f"the nodes of head {worst!r}"))


def _beyond(found: ImageComparison, limit: float) -> str:
    """The heads that differ by more than a limit, or not by a finite number; empty if there are none."""
    rows = [
        f"head {name!r} {_words(value)} on {image}"
        for name, (value, image) in found.heads.items()
        if not (np.isfinite(value) and value <= limit)
    ]
    return "; ".join(rows)


def _hint(precision: Precision, what: str) -> str:
    if precision == "fp32":
        return "this is a defect of a pass: please report it with the model; --max-difference moves the limit"
    return (
        f"keep {what} in fp32 (--keep-fp32 NODE,...), build with --precision fp32, or move the limit with "
        "--max-difference"
    )


def _words(value: float) -> str:
    return f"by {value:.2g}" if np.isfinite(value) else "by NaN or infinite values"


def _black_frame(spec: ModelSpec, shape: tuple[int, int]) -> CalibrationImage:
    """An image of zeros whose network input has this (height, width): the rule `pad` enlarges every side."""
    fixed = spec.input.size.rule == "fixed"
    height, width = shape if fixed else (max(side - 1, 1) for side in shape)
    return CalibrationImage(_BLACK, "", lambda: np.zeros((height, width, 3), np.uint8))


def _runner(model: ModelProto) -> Callable[[Batch], dict[str, NDArray[Any]]]:
    session = open_session(model, "faithful", available_cores())
    given = model.graph.input[0]
    dtype = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    names = [value.name for value in model.graph.output]

    def run(batch: Batch) -> dict[str, NDArray[Any]]:
        try:
            values = session.run(names, {given.name: batch.tensor.astype(dtype)})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BackendError(f"ONNX Runtime cannot run the model on {batch.names[0]}: {error}") from error
        return dict(zip(names, map(np.asarray, values), strict=True))

    return run


def _difference(right: NDArray[Any], ours: NDArray[Any]) -> tuple[float, float]:
    """Root mean squares of the difference (inf where one is not finite and the other is not the same) and of `right`."""
    a, b = right.astype(np.float64).ravel(), ours.astype(np.float64).ravel()
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    signal = float(np.sqrt(np.mean(a[finite] ** 2))) if finite.any() else 0.0
    if not (finite | same).all():
        return float("inf"), signal
    return (float(np.sqrt(np.mean((a - b)[finite] ** 2))) if finite.any() else 0.0), signal


def _ratio(noise: float, signal: float) -> float:
    return noise / signal if signal else (float("inf") if noise else 0.0)
