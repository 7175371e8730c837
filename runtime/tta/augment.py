"""TestTimeAugmentation: run variants of an image and merge their detections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.host.decode import FloatArray, decode_image
from centernet_trt.runtime.host.preprocess import normalise
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.profiles import check_size, largest_batch
from centernet_trt.runtime.spec import ModelSpec
from centernet_trt.runtime.tta.flip import average_with_mirror, check_flip
from centernet_trt.runtime.tta.scale import ScaledInput, scaled_input


class SoftNmsResult(NamedTuple):
    """The boxes that soft-NMS keeps, best first.

    Attributes:
        rows: (N,) int64, their indices.
        score: (N,) float32, their decayed scores.
    """

    rows: npt.NDArray[np.int64]
    score: npt.NDArray[np.float32]


def soft_nms(
    xyxy: npt.NDArray[np.float32],
    score: npt.NDArray[np.float32],
    label: npt.NDArray[np.int32],
    sigma: float = 0.5,
    lowest: float = 0.001,
) -> SoftNmsResult:
    """Soft non-maximum suppression: decay the scores of boxes that a better box overlaps, score *= exp(-iou**2 / sigma).

    Within a class the best box is selected, the others decay by their overlap with it, then the best of the rest, and
    so on; of equal scores the lower row is first. Computed in float64 and rounded once.

    Args:
        xyxy: (N, 4) boxes in pixels, in any order.
        score: (N,) float32, 0..1.
        label: (N,) class indices.
        sigma: width of the decay, positive.
        lowest: a box whose score decays below this is dropped. One without overlap is kept, however low its score.

    Raises:
        InputError: sigma is not positive.
    """
    if not sigma > 0:
        raise InputError(f"expected a positive sigma of the soft-NMS, got {sigma}")
    decayed = score.astype(np.float64)
    alive = np.ones(len(score), dtype=np.bool_)
    for kind in np.unique(label):
        rows = np.flatnonzero(label == kind)
        decayed[rows], alive[rows] = _decay(xyxy[rows].astype(np.float64), decayed[rows], sigma, lowest)
    rows = np.flatnonzero(alive)
    final = decayed[rows].astype(np.float32)
    order = np.argsort(-final, kind="stable")
    return SoftNmsResult(rows[order], final[order])


def _decay(
    boxes: npt.NDArray[np.float64], score: npt.NDArray[np.float64], sigma: float, lowest: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Compute the decayed scores of boxes of one class, and which boxes are kept."""
    score = score.copy()
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    alive = np.ones(len(score), dtype=np.bool_)
    waiting = np.arange(len(score))
    while len(waiting) > 1:
        best = waiting[np.argmax(score[waiting])]  # the first of equals
        waiting = waiting[waiting != best]
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        side = np.minimum(boxes[waiting, 2:], boxes[best, 2:]) - low + 1
        touching = (side > 0).all(axis=1)
        hit = waiting[touching]
        common = side[touching].prod(axis=1)
        iou = common / (area[best] + area[hit] - common)
        score[hit] *= np.exp(-(iou**2) / sigma)
        alive[hit] = score[hit] >= lowest
        waiting = waiting[alive[waiting]]
    return score, alive


OFFICIAL_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
RunHeads = Callable[[npt.NDArray[np.floating]], Mapping[str, FloatArray]]


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Settings of test-time augmentation; the defaults are the official flip test.

    Attributes:
        flip: average the heads with those of the mirror image.
        scales: factors for the image's size, positive; with more than one, soft-NMS merges the boxes, instead of the
            spec's own NMS.
        sigma: width of the decay of soft-NMS, positive.
        lowest: score below which a box decayed by soft-NMS is dropped, 0..1.
        flip_index: for each points head, by name: the point that each point becomes in a mirror, or None to use the
            points of the image alone. Raw heads are always those of the image alone.

    Raises:
        InputError: no scales, or a scale or sigma that is not positive.
    """

    __test__ = False  # the name looks like a test to pytest

    flip: bool = True
    scales: tuple[float, ...] = (1.0,)
    sigma: float = 0.5
    lowest: float = 0.001
    flip_index: Mapping[str, Sequence[int] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise InputError(f"expected scales of at least one positive number, got {self.scales}")
        if not self.sigma > 0:
            raise InputError(f"expected a positive sigma, got {self.sigma}")


_NAMED = {
    "flip": TestTimeAugmentation(),
    "multiscale": TestTimeAugmentation(flip=False, scales=OFFICIAL_SCALES),
    "flip+multiscale": TestTimeAugmentation(scales=OFFICIAL_SCALES),
}
Augmentation = Literal["flip", "multiscale", "flip+multiscale"] | TestTimeAugmentation


def parse_augmentation(tta: Augmentation) -> TestTimeAugmentation:
    """Return the settings of a named augmentation; settings are returned as they are.

    Args:
        tta: "flip", "multiscale", "flip+multiscale" or settings.

    Raises:
        InputError: there is no such name.
    """
    if isinstance(tta, TestTimeAugmentation):
        return tta
    if tta not in _NAMED:
        raise InputError(
            f"there is no augmentation {tta!r}",
            f"expected tta={', '.join(map(repr, _NAMED))} or a TestTimeAugmentation",
        )
    return _NAMED[tta]


def detect_augmented(
    image: BgrImage,
    manifest: Manifest,
    run_heads: RunHeads,
    tta: TestTimeAugmentation,
    threshold: float | None = None,
    top_k: int | None = None,
    max_batch: int | None = None,
) -> Detections:
    """Detect the objects in one image with test-time augmentation.

    Every scale contributes its best `top_k` (the larger of the spec's and the call's); of the merged boxes the best
    `top_k` at or above the threshold are kept. Unlike in the official code, rows that soft-NMS drops are removed (there,
    copies of others replace them), and equal scores at the end of the list do not lengthen it.

    Args:
        image: (H, W, 3) uint8, blue first.
        manifest: of the bundle.
        run_heads: runs the network: input tensor (N, 3, H, W) -> head tensors (N, C, H', W') by name, on the host.
        tta: the settings.
        threshold: lowest score to return, 0..1; None for the spec's.
        top_k: maximum number of detections; None for the spec's.
        max_batch: maximum number of images per call of `run_heads`; None for the bundle's. With 1, the image and its
            mirror run one by one.

    Returns:
        The detections, best first; boxes in pixels of the image.

    Raises:
        InputError: the bundle was not built for the input size of a scale, or a head cannot be mirrored.
    """
    spec = manifest.spec
    if tta.flip:
        check_flip(spec, tta.flip_index)
    threshold = spec.threshold if threshold is None else threshold
    top_k = spec.top_k if top_k is None else top_k
    # Checked before the first run, so that a scale that does not fit costs nothing.
    inputs = [scaled_input(image, spec.input, scale) for scale in tta.scales]
    for scale, scaled in zip(tta.scales, inputs, strict=True):
        _check_size(scaled, manifest, scale)
    if len(inputs) == 1:
        heads, decoded_as = _heads(inputs[0], manifest, run_heads, tta, max_batch)
        return _decoded(inputs[0], heads, decoded_as, threshold, top_k)
    found = []
    for scaled in inputs:
        heads, decoded_as = _heads(scaled, manifest, run_heads, tta, max_batch)
        decoded_as = decoded_as.model_copy(update={"nms_iou": None})
        # Merging only lowers scores, and lower boxes do not affect higher ones: the threshold can be applied first.
        found.append(_decoded(scaled, heads, decoded_as, threshold, max(spec.top_k, top_k)))
    return _merged(found, tta, threshold, top_k)


def _check_size(scaled: ScaledInput, manifest: Manifest, scale: float) -> None:
    placement = scaled.placement
    check_size(
        manifest.profiles,
        placement.height,
        placement.width,
        lambda: f"an image of {placement.source_width}x{placement.source_height} pixels at scale {scale:g}",
        "rebuild the bundle with wider --height and --width, or give other scales",
    )


def _heads(
    scaled: ScaledInput,
    manifest: Manifest,
    run_heads: RunHeads,
    tta: TestTimeAugmentation,
    max_batch: int | None,
) -> tuple[Mapping[str, FloatArray], ModelSpec]:
    """Compute the heads (C, H, W) of one scale, and the spec to decode them with."""
    spec, side = manifest.spec, scaled.placement
    copies = 2 if tta.flip else 1
    tensor = np.empty((copies, 3, side.height, side.width), dtype=np.dtype(manifest.input.dtype))
    normalise([scaled.canvas], spec.input, tensor[:1])
    if not tta.flip:
        return {name: head[0] for name, head in run_heads(tensor).items()}, spec
    tensor[1] = tensor[0, :, :, ::-1]
    most = largest_batch(manifest.profiles, side.height, side.width)
    if min(most, max_batch or most) >= 2:
        both = run_heads(tensor)
        direct, mirrored = ({name: head[row] for name, head in both.items()} for row in (0, 1))
    else:
        direct, mirrored = (
            {name: head[0] for name, head in run_heads(tensor[row : row + 1]).items()} for row in (0, 1)
        )
    return average_with_mirror(direct, mirrored, spec, tta.flip_index), _with_probabilities(spec)


def _decoded(
    scaled: ScaledInput, heads: Mapping[str, FloatArray], spec: ModelSpec, threshold: float, top_k: int
) -> Detections:
    """Decode one scale."""
    found = decode_image(heads, spec, scaled.placement, threshold, top_k)
    # The box of a cut object ends about a cell from the side that cuts it.
    return found[scaled.is_whole(found.xyxy, spec.stride)] if scaled.drops_cut else found


def _with_probabilities(spec: ModelSpec) -> ModelSpec:
    heatmap = spec.heads.heatmap.model_copy(update={"activation": "probability"})
    return spec.model_copy(update={"heads": spec.heads.model_copy(update={"heatmap": heatmap})})


def _merged(
    found: Sequence[Detections], tta: TestTimeAugmentation, threshold: float, top_k: int
) -> Detections:
    """Merge the boxes of all scales by soft-NMS."""
    first = found[0]
    score = np.concatenate([part.score for part in found])
    everything = Detections(
        np.concatenate([part.xyxy for part in found]),
        score,
        np.concatenate([part.label for part in found]),
        {name: np.concatenate([part.extra[name] for part in found]) for name in first.extra},
        first.class_names,
        first.category_ids,
    )
    kept = soft_nms(everything.xyxy, score, everything.label, tta.sigma, tta.lowest)
    rows, final = kept.rows[:top_k], kept.score[:top_k]
    good = final >= np.float32(threshold)
    chosen = everything[rows[good]]
    return Detections(
        chosen.xyxy, final[good], chosen.label, chosen.extra, chosen.class_names, chosen.category_ids
    )
