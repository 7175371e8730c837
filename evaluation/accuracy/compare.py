"""Compare two networks stage by stage, to find the first stage that differs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.evaluation.accuracy.agreement import Agreement, agreement
from centernet_trt.evaluation.accuracy.tensor_error import ErrorSum, TensorError
from centernet_trt.runtime.backend import Heads
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.onnxruntime import Mode, OnnxRuntimeExecutor, allocate_heads, open_session
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import BgrImage, read_image
from centernet_trt.runtime.manifest import Manifest, Precision
from centernet_trt.runtime.spec import ModelSpec

__all__ = ["Comparison", "DecodeDifference", "Side", "bundle_side", "check_classes", "graph_side", "verify"]


@dataclass(frozen=True)
class Side:
    """One of the two networks of a comparison.

    Attributes:
        name: for messages and reports.
        spec: what its tensors mean.
        precision: of its weights and activations.
        dtype: of its input tensor.
        run: input tensor (N, 3, H, W) in `dtype` -> heads by name.
    """

    name: str
    spec: ModelSpec
    precision: Precision
    dtype: npt.DTypeLike
    run: Callable[[npt.NDArray[Any]], Heads]


def bundle_side(bundle: EngineBundle, mode: Mode) -> Side:
    """Run a bundle's graph in ONNX Runtime.

    Args:
        bundle: whose graph and spec to use.
        mode: `fast`, or `faithful`, which rounds every operation to its declared type.

    Returns:
        The bundle as a side of a comparison.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    manifest = bundle.manifest
    executor = OnnxRuntimeExecutor(bundle.model_path, manifest, mode)

    def run(tensor: npt.NDArray[Any]) -> Heads:
        heads = allocate_heads(manifest, tensor.shape[0], tensor.shape[2], tensor.shape[3])
        executor.run({manifest.input.name: np.ascontiguousarray(tensor)}, heads)
        return heads

    name = f"{manifest.name} ({manifest.precision}, ONNX Runtime {mode})"
    return Side(name, manifest.spec, manifest.precision, manifest.input.dtype, run)


def graph_side(name: str, model: bytes, manifest: Manifest) -> Side:
    """Run an fp32 ONNX graph in ONNX Runtime, its tensors interpreted by a bundle's spec.

    Args:
        name: for messages and reports.
        model: the serialised graph, with the heads of the spec as outputs.
        manifest: of the bundle whose spec and input name it shares.

    Returns:
        The graph as a side of a comparison.

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
    """Difference of two decodes of the same heads, which must give the same boxes in the same order.

    Attributes:
        images: number of images with another number of rows or other labels.
        box: largest difference of an edge over the other images, in pixels of the source image.
        score: largest difference of a score over the other images.
    """

    images: int
    box: float
    score: float


@dataclass(frozen=True)
class Comparison:
    """Differences between a reference and a candidate, by stage.

    Attributes:
        reference: name of the reference.
        candidate: name of the candidate.
        images: file names.
        preprocess: error of the input tensors; None if an image gives inputs of different sizes.
        resized: names of the images whose input sizes differ.
        heads: error of each head, both networks fed with the reference's input.
        decode: difference of both decodes of the reference's heads.
        whole: agreement from the image to the boxes, at the threshold.
        worst: row of the image on which they agree least.
        found: for each image the detections of (reference, candidate), with no threshold.
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
) -> Comparison:
    """Run both networks on every image and compare them stage by stage.

    Args:
        reference: assumed to be right.
        candidate: compared with it.
        images: files; read one at a time.
        threshold: lowest score of the detections that must agree; None for the candidate spec's.
        progress: called with (images done, images in total).

    Returns:
        The differences, to be checked by `tolerances.check_tolerances`.

    Raises:
        InputError: no images, one that cannot be read, different class lists, or different heads.
    """
    if not images:
        raise InputError("expected at least one image, got none", "give a folder of images")
    check_classes(reference.spec, candidate.spec, reference.name, candidate.name)
    tensors, heads = ErrorSum(), {name: ErrorSum() for name in candidate.spec.heads.tensors}
    resized: list[str] = []
    pairs: list[tuple[Detections, Detections]] = []
    decoded: list[tuple[Detections, Detections]] = []
    for done, path in enumerate(images):
        if progress is not None:
            progress(done, len(images))
        result = _one_image(reference, candidate, read_image(path))
        if result.tensors is None:
            resized.append(path.name)
        else:
            tensors.add(*result.tensors)
        for theirs, ours in _same_heads(reference.spec, candidate.spec):
            heads[ours].add(result.reference_heads[theirs], result.candidate_heads[ours])
        decoded.append(result.decoded)
        pairs.append(result.whole)
    limit = candidate.spec.threshold if threshold is None else threshold
    scores = [_disagreement(pair, limit) for pair in pairs]
    return Comparison(
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
    """Check that two specs have the same classes in the same order.

    Args:
        a: one spec.
        b: the other.
        a_name: name of the first, for the message.
        b_name: name of the second.

    Raises:
        InputError: they differ; the message names the first class that does.
    """
    for what in ("class_names", "category_ids"):
        first, second = getattr(a, what), getattr(b, what)
        if first == second:
            continue
        row = next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
        where = (
            f"{len(first)} and {len(second)} of them"
            if row is None
            else f"number {row} is {first[row]!r} in one and {second[row]!r} in the other"
        )
        raise InputError(
            f"{a_name} and {b_name} have different {what.replace('_', ' ')}: {where}",
            "compare models that detect the same classes, in the same order",
        )


@dataclass(frozen=True)
class _ImageResult:
    """Results of both sides for one image; pairs are (reference, candidate)."""

    tensors: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None
    reference_heads: Heads
    candidate_heads: Heads
    decoded: tuple[Detections, Detections]
    whole: tuple[Detections, Detections]


def _one_image(reference: Side, candidate: Side, pixels: BgrImage) -> _ImageResult:
    """Run both sides on one image."""
    height, width = pixels.shape[:2]
    sides = (reference, candidate)
    first_placement, second_placement = (place(side.spec.input, width, height) for side in sides)
    # In float32, whatever the networks take: this compares the pre-processing, not its rounding to a type.
    first, second = (
        preprocess([pixels], [placement], side.spec.input, np.float32)
        for side, placement in zip(sides, (first_placement, second_placement), strict=True)
    )
    heads = reference.run(first.astype(reference.dtype, copy=False))
    same_input = candidate.run(first.astype(candidate.dtype, copy=False))
    tensors = (first, second) if first.shape == second.shape else None
    equal = tensors is not None and np.array_equal(first, second)
    own = same_input if equal else candidate.run(second.astype(candidate.dtype, copy=False))
    renamed = {ours: heads[theirs] for theirs, ours in _same_heads(reference.spec, candidate.spec)}
    (expected,) = decode(heads, reference.spec, [first_placement], 0.0)
    (decoded,) = decode(renamed, candidate.spec, [first_placement], 0.0)
    (found,) = decode(own, candidate.spec, [second_placement], 0.0)
    return _ImageResult(tensors, heads, same_input, (expected, decoded), (expected, found))


def _same_heads(a: ModelSpec, b: ModelSpec) -> Iterator[tuple[str, str]]:
    """Pair the head names of two specs by role, since two graphs may name the same head differently.

    Yields:
        (name in a, name in b).

    Raises:
        InputError: one spec has a head that the other lacks.
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
            f"expected the same heads in both models, got {', '.join(roles[0])} and {', '.join(roles[1])}",
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
    """Sort key of an image, larger is worse: unmatched boxes, then the largest difference of scores, then of boxes."""
    found = _agreement([pair], threshold)
    return 1 - found.f1, found.score_max, 1 - found.iou_min
