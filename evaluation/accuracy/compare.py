"""Compare two networks stage by stage, to find the first stage that differs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.agreement import Agreement, agreement
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.onnxruntime import Mode, OnnxRuntimeExecutor, allocate_heads, open_session
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import BgrImage, read_image
from centernet_trt.runtime.manifest import Manifest, Precision
from centernet_trt.runtime.spec import ModelSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorError:
    """The error of a candidate against a reference, over all values that are finite in both.

    Attributes:
        count: how many values.
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        magnitude: largest magnitude of the reference.
        sqnr_db: signal to quantisation noise, 10 * log10(sum(reference^2) / sum(difference^2)); None where no
            value differs.
        cosine: of the angle between both as vectors; 1 where both are zero.
        unequal: values that are infinite or NaN in one of them and not the same in the other.
    """

    count: int
    max_abs: float
    mean_abs: float
    magnitude: float
    sqnr_db: float | None
    cosine: float
    unequal: int

    @property
    def identical(self) -> bool:
        """Whether no value differs."""
        return self.max_abs == 0 and self.unequal == 0

    @property
    def max_rel(self) -> float:
        """`max_abs` over `magnitude`; 0 where both are 0."""
        return self.max_abs / self.magnitude if self.magnitude else (math.inf if self.max_abs else 0.0)

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


class ErrorSum:
    """Adds up the error over images; `result` gives it so far. All sums in float64."""

    def __init__(self) -> None:
        self._count = self._unequal = 0
        self._max = self._magnitude = 0.0
        # Sums of |a - b|, (a - b)^2, a^2, b^2 and a * b.
        self._sums = np.zeros(5)

    def add(self, reference: Array, candidate: Array) -> float:
        """Add one pair of equal shape; its own mean absolute difference.

        Raises:
            InputError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise InputError(f"tensors of shapes {reference.shape} and {candidate.shape} cannot be compared")
        a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self._unequal += int(np.count_nonzero(~finite & ~same))
            a, b = a[finite], b[finite]
        apart = np.abs(a - b)
        self._count += len(a)
        self._max = max(self._max, float(apart.max(initial=0.0)))
        self._magnitude = max(self._magnitude, float(np.abs(a).max(initial=0.0)))
        self._sums += (apart.sum(), apart @ apart, a @ a, b @ b, a @ b)
        return float(apart.mean()) if len(a) else 0.0

    def result(self) -> TensorError:
        """The error over everything added."""
        absolute, noise, signal, other, product = (float(value) for value in self._sums)
        sqnr = None if noise == 0 else (10 * math.log10(signal / noise) if signal else -math.inf)
        norm = math.sqrt(signal * other)
        return TensorError(
            count=self._count,
            max_abs=self._max,
            mean_abs=absolute / self._count if self._count else 0.0,
            magnitude=self._magnitude,
            sqnr_db=None if sqnr is None else max(sqnr, -999.0),
            cosine=product / norm if norm else (1.0 if signal == other else 0.0),
            unequal=self._unequal,
        )


Heads = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Side:
    """One of the two: a name to call it, what its tensors mean, its precision, and how to run its network.

    `run`: the input tensor (N, 3, H, W) in `dtype` -> heads by name.
    """

    name: str
    spec: ModelSpec
    precision: Precision
    dtype: npt.DTypeLike
    run: Callable[[npt.NDArray[Any]], Heads]


def bundle_side(bundle: EngineBundle, mode: Mode) -> Side:
    """A bundle as it runs on the host, in a mode of ONNX Runtime."""
    manifest = bundle.manifest
    executor = OnnxRuntimeExecutor(bundle.model_path, manifest, mode)

    def run(tensor: npt.NDArray[Any]) -> Heads:
        heads = allocate_heads(manifest, tensor.shape[0], tensor.shape[2], tensor.shape[3])
        executor.run({manifest.input.name: np.ascontiguousarray(tensor)}, heads)
        return heads

    name = f"{manifest.name} ({manifest.precision}, ONNX Runtime {mode})"
    return Side(name, manifest.spec, manifest.precision, manifest.input.dtype, run)


def graph_side(name: str, model: bytes, manifest: Manifest) -> Side:
    """An fp32 ONNX graph in ONNX Runtime, its tensors read as a bundle's spec says.

    Args:
        name: what to call it.
        model: the graph, serialised, with the heads of the spec as outputs.
        manifest: of the bundle whose spec and input name it shares.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    session = open_session(model)
    heads = list(manifest.spec.heads.tensors)

    def run(tensor: npt.NDArray[Any]) -> Heads:
        return dict(zip(heads, session.run(heads, {manifest.input.name: tensor}), strict=True))

    return Side(f"{name} (ONNX Runtime)", manifest.spec, "fp32", np.float32, run)


@dataclass(frozen=True)
class DecodeDifference:
    """Two decodes of the same heads, row by row, all rows: they must give the same boxes in the same order.

    `images`: how many have another number of rows or other labels. `box`: largest difference of an edge in pixels of
    the source image, `score`: of a score, both over the other images.
    """

    images: int
    box: float
    score: float


@dataclass(frozen=True)
class Compared:
    """What was found.

    Attributes:
        reference: name of what is taken for right.
        candidate: name of what is judged.
        images: file names.
        preprocess: error of the input tensors; None where an image gives inputs of different sizes.
        resized: images whose input sizes differ.
        heads: error of each head, both networks fed with the reference's input.
        decode: difference of both decodes of the reference's heads.
        whole: agreement from the image to the boxes, at the candidate's threshold.
        worst: row of the image on which they agree least.
        found: detections of both for each image, with no threshold: (reference, candidate).
    """

    reference: str
    candidate: str
    images: tuple[str, ...]
    preprocess: TensorError | None
    resized: tuple[str, ...]
    heads: dict[str, TensorError]
    decode: DecodeDifference
    whole: Agreement
    worst: int
    found: list[tuple[Detections, Detections]] = field(repr=False)


def verify(
    reference: Side,
    candidate: Side,
    images: Sequence[Path],
    *,
    threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Run both on every image and compare them stage by stage.

    Args:
        reference: taken for right.
        candidate: judged.
        images: files; read one by one.
        threshold: lowest score of the detections that must agree; None for the candidate spec's.
        progress: called with (images done, images in all).

    Raises:
        InputError: no images, one that cannot be read, or different class lists.
    """
    if not images:
        raise InputError("no images were given to compare on", "give a folder of images")
    check_classes(reference.spec, candidate.spec, reference.name, candidate.name)
    tensors, heads = ErrorSum(), {name: ErrorSum() for name in candidate.spec.heads.tensors}
    resized: list[str] = []
    pairs: list[tuple[Detections, Detections]] = []
    decoded: list[tuple[Detections, Detections]] = []
    for done, path in enumerate(images):
        if progress is not None:
            progress(done, len(images))
        step = _one_image(reference, candidate, read_image(path))
        if step.tensors is None:
            resized.append(path.name)
        else:
            tensors.add(*step.tensors)
        for theirs, ours in _same_heads(reference.spec, candidate.spec):
            heads[ours].add(step.reference_heads[theirs], step.candidate_heads[ours])
        decoded.append(step.decoded)
        pairs.append(step.whole)
    limit = candidate.spec.threshold if threshold is None else threshold
    scores = [_disagreement(pair, limit) for pair in pairs]
    return Compared(
        reference=reference.name,
        candidate=candidate.name,
        images=tuple(path.name for path in images),
        preprocess=None if resized else tensors.result(),
        resized=tuple(resized),
        heads={name: total.result() for name, total in heads.items()},
        decode=_decode_difference(decoded),
        whole=_agreement(pairs, limit),
        worst=max(range(len(scores)), key=lambda row: scores[row]),
        found=pairs,
    )


def check_classes(a: ModelSpec, b: ModelSpec, a_name: str, b_name: str) -> None:
    """Make sure that two specs speak of the same classes.

    Raises:
        InputError: they do not; the message names the first that differs.
    """
    for what in ("class_names", "category_ids"):
        first, second = getattr(a, what), getattr(b, what)
        if first == second:
            continue
        row = next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
        where = (
            f"{len(first)} and {len(second)} of them"
            if row is None
            else f"number {row} is {first[row]!r} in the one, {second[row]!r} in the other"
        )
        raise InputError(
            f"{a_name} and {b_name} have different {what.replace('_', ' ')}: {where}",
            "compare models that detect the same classes, in the same order",
        )


@dataclass(frozen=True)
class _Step:
    """The results of one image."""

    tensors: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None
    reference_heads: Heads
    candidate_heads: Heads
    decoded: tuple[Detections, Detections]
    whole: tuple[Detections, Detections]


def _one_image(reference: Side, candidate: Side, pixels: BgrImage) -> _Step:
    """Both sides, stage by stage."""
    height, width = pixels.shape[:2]
    sides = (reference, candidate)
    left, right = (place(side.spec.input, width, height) for side in sides)
    # In float32, whatever the networks take: what must be equal is the pre-processing, not its rounding to a type.
    first, second = (
        preprocess([pixels], [placement], side.spec.input, np.float32)
        for side, placement in zip(sides, (left, right), strict=True)
    )
    heads = reference.run(first.astype(reference.dtype, copy=False))
    same_input = candidate.run(first.astype(candidate.dtype, copy=False))
    tensors = (first, second) if first.shape == second.shape else None
    equal = tensors is not None and np.array_equal(first, second)
    own = same_input if equal else candidate.run(second.astype(candidate.dtype, copy=False))
    renamed = {ours: heads[theirs] for theirs, ours in _same_heads(reference.spec, candidate.spec)}
    (right_answer,) = decode(heads, reference.spec, [left], 0.0)
    (decoded,) = decode(renamed, candidate.spec, [left], 0.0)
    (found,) = decode(own, candidate.spec, [right], 0.0)
    return _Step(tensors, heads, same_input, (right_answer, decoded), (right_answer, found))


def _same_heads(a: ModelSpec, b: ModelSpec) -> Iterator[tuple[str, str]]:
    """Names of the heads that mean the same in both: by role, since two graphs may call them differently.

    Raises:
        InputError: one has a head that the other lacks.
    """
    roles = [
        {
            "heatmap": spec.heads.heatmap.tensor,
            "box": spec.heads.box.tensor,
            **({} if spec.heads.offset is None else {"offset": spec.heads.offset.tensor}),
            **{extra.name: extra.tensor for extra in spec.heads.extra},
        }
        for spec in (a, b)
    ]
    if roles[0].keys() != roles[1].keys():
        raise InputError(
            f"the models have different heads: {', '.join(roles[0])} and {', '.join(roles[1])}",
            "compare models whose specs name the same heads",
        )
    for role, name in roles[0].items():
        yield name, roles[1][role]


def _decode_difference(pairs: Sequence[tuple[Detections, Detections]]) -> DecodeDifference:
    images, box, score = 0, 0.0, 0.0
    for a, b in pairs:
        if not np.array_equal(a.label, b.label):
            images += 1
            continue
        with np.errstate(invalid="ignore"):
            edges = np.where(a.xyxy == b.xyxy, 0.0, np.abs(a.xyxy.astype(np.float64) - b.xyxy))
        box = max(box, float(np.nanmax(edges, initial=0.0)))
        score = max(score, float(np.abs(a.score - b.score).max(initial=0.0)))
    return DecodeDifference(images, box, score)


def _agreement(pairs: Sequence[tuple[Detections, Detections]], threshold: float) -> Agreement:
    return agreement([pair[0] for pair in pairs], [pair[1] for pair in pairs], threshold=threshold)


def _disagreement(pair: tuple[Detections, Detections], threshold: float) -> tuple[float, float, float]:
    """Larger is worse: boxes that have no partner first, then the largest difference of scores, then of boxes."""
    found = _agreement([pair], threshold)
    return 1 - found.f1, found.score_max, 1 - found.iou_min
