"""Decode heads with NumPy: peaks, top-K and boxes; the oracle of the decode kernel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import ModelError
from centernet_trt.runtime.detections import Detections, greedy_nms
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.spec import BoxHead, ModelSpec, PointsExtra

Activation = Literal["logits", "probability"]
Plateau = Literal["all", "first"]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Peaks:
    """The K best peaks of one image, best first.

    Attributes:
        index: (n,) int64, flat (class, y, x) indices.
        value: (n,) float32, the stored values there.
    """

    index: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


def to_score(stored: FloatArray, activation: Activation) -> npt.NDArray[np.float32]:
    """Convert stored heatmap values to float32 scores; a logit's sigmoid is computed in float64 and rounded once."""
    if activation == "probability":
        return stored.astype(np.float32)
    wide = stored.astype(np.float64)
    with np.errstate(over="ignore"):
        return (1.0 / (1.0 + np.exp(-wide))).astype(np.float32)


@lru_cache(maxsize=256)
def stored_threshold(threshold: float, activation: Activation) -> float:
    """Return the smallest float32 stored value whose score is at least the threshold.

    Comparing stored values with it keeps exactly the cells whose float32 score is >= float32(threshold);
    0 keeps every cell, -inf among them.
    """
    wanted = np.float32(threshold)
    if wanted <= 0:
        return float("-inf")
    if activation == "probability":
        return float(wanted)
    low, high = _ordinal(np.float32(-np.inf)), _ordinal(np.float32(np.inf))
    while low < high:  # bisection over the float32 values in their order: at most 32 steps
        middle = (low + high) // 2
        if to_score(np.array([_from_ordinal(middle)]), "logits")[0] >= wanted:
            high = middle
        else:
            low = middle + 1
    return float(_from_ordinal(low))


def find_peaks(heatmap: FloatArray, k: int, threshold: float = -np.inf, plateau: Plateau = "all") -> Peaks:
    """Find the `k` best peaks of one image's heatmap at or above a stored threshold.

    Args:
        heatmap: (classes, H, W) float32 or float16, stored values (logits or probabilities).
        k: maximum number of peaks.
        threshold: in stored values, see `stored_threshold`.
        plateau: of equal neighbouring cells, `all` keeps every one; `first` only those with no equal neighbour before
            them.
    """
    flat = np.ascontiguousarray(heatmap, dtype=np.float32).reshape(-1)
    shape = heatmap.shape
    lowest = np.float32(threshold)
    rank = 12 * k  # on real heatmaps about one cell in ten of the highest is a peak
    while True:
        level = max(_level_reached_by(flat, rank), lowest)
        candidates = np.flatnonzero(flat >= level)  # a NaN compares false
        if len(candidates) > flat.size // 8:
            # A flat map: gathering the neighbours of most cells costs more than the maximum of all windows.
            peaks = _all_peaks(flat.reshape(shape), lowest, plateau)
            break
        peaks = candidates[_is_peak(flat, candidates, shape, plateau)]
        # All peaks above the level are among the candidates, so k of them are the best k.
        if len(peaks) >= k or level <= lowest:
            break
        rank *= 8
    return _best(flat, peaks, k)


def _level_reached_by(flat: npt.NDArray[np.float32], rank: int) -> np.float32:
    """Return a level that about `rank` separate cells reach: the rank-th largest of the maxima of strided groups."""
    group = 32
    columns = flat.size // group
    if columns <= rank:
        return np.float32(-np.inf)
    maxima = np.fmax.reduce(flat[: columns * group].reshape(group, columns), axis=0)
    maxima = maxima[~np.isnan(maxima)]
    if len(maxima) <= rank:
        return np.float32(-np.inf)
    return np.float32(np.partition(maxima, len(maxima) - rank)[len(maxima) - rank])


def _is_peak(
    flat: npt.NDArray[np.float32], index: npt.NDArray[np.int64], shape: tuple[int, ...], plateau: Plateau
) -> npt.NDArray[np.bool_]:
    """Return which of these cells, none of them NaN, are peaks."""
    _, height, width = shape
    row, x = np.divmod(index, width)
    y = row % height
    value = flat[index]
    peak = np.ones(len(index), dtype=np.bool_)
    # Clamping a step at the border leads to another cell of the same window, or to the cell itself: no mask needed.
    steps_y = (np.where(y > 0, -width, 0), 0, np.where(y < height - 1, width, 0))
    steps_x = (np.where(x > 0, -1, 0), 0, np.where(x < width - 1, 1, 0))
    for step_y in steps_y:
        for step_x in steps_x:
            other = index + step_y + step_x
            neighbour = flat[other]
            peak &= ~(neighbour > value)
            if plateau == "first":
                peak &= ~((neighbour == value) & (other < index))
    return peak


def _all_peaks(maps: npt.NDArray[np.float32], lowest: np.float32, plateau: Plateau) -> npt.NDArray[np.int64]:
    """Find the flat indices of all peaks of at least `lowest`, by the maximum of every window."""
    window = maps.copy()
    np.fmax(window[:, :, 1:], maps[:, :, :-1], out=window[:, :, 1:])
    np.fmax(window[:, :, :-1], maps[:, :, 1:], out=window[:, :, :-1])
    rows = window.copy()
    np.fmax(window[:, 1:], rows[:, :-1], out=window[:, 1:])
    np.fmax(window[:, :-1], rows[:, 1:], out=window[:, :-1])
    index = np.flatnonzero((maps == window) & (maps >= lowest))
    if plateau == "first":
        index = index[_is_peak(maps.reshape(-1), index, maps.shape, plateau)]
    return index


def _best(flat: npt.NDArray[np.float32], peaks: npt.NDArray[np.int64], k: int) -> Peaks:
    """Select the k best of these peaks, whose indices ascend."""
    value = flat[peaks]
    if len(peaks) > k:
        cut = np.partition(value, len(value) - k)[len(value) - k]
        above = value > cut
        # Of the cells that share the k-th value, those with the smallest index stay.
        equal = np.flatnonzero(value == cut)[: k - int(above.sum())]
        chosen = np.sort(np.concatenate([np.flatnonzero(above), equal]))
        peaks, value = peaks[chosen], value[chosen]
    order = np.argsort(-value, kind="stable")
    return Peaks(peaks[order], value[order])


def _ordinal(value: np.float32) -> int:
    """Map a float32 to an integer in the same order."""
    bits = int(value.view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _from_ordinal(ordinal: int) -> np.float32:
    bits = ordinal if ordinal >= 0 else (-ordinal) | 0x80000000
    return np.float32(np.uint32(bits).view(np.float32))


Points = npt.NDArray[np.float64]


def decode(
    heads: Mapping[str, FloatArray],
    spec: ModelSpec,
    placements: Sequence[Placement],
    threshold: float | None = None,
    top_k: int | None = None,
) -> list[Detections]:
    """Decode the heads of a batch.

    Args:
        heads: head tensors (N, C, H, W) by name, float32 or float16.
        spec: what the tensors mean.
        placements: of each of the N images in the network input.
        threshold: lowest score to return, 0..1; None for the spec's.
        top_k: maximum number of detections per image; None for the spec's.

    Returns:
        The detections of each image, best first; equal ones in the order of their (class, y, x) index.

    Raises:
        ModelError: a head is missing, or its shape does not fit the spec.
    """
    check_heads({name: head.shape for name, head in heads.items()}, spec)
    return [
        decode_image(
            {name: heads[name][row] for name in spec.heads.tensors}, spec, placement, threshold, top_k
        )
        for row, placement in enumerate(placements)
    ]


def check_heads(shapes: Mapping[str, Sequence[int]], spec: ModelSpec) -> None:
    """Check the shapes (N, C, H, W) of the head tensors, by name, against the spec.

    Raises:
        ModelError: a head is missing, has the wrong number of channels, or a grid other than the heatmap's.
    """
    grid: Sequence[int] | None = None
    for name, channels in spec.heads.channels().items():
        if name not in shapes:
            raise ModelError(
                f"the head tensor {name!r} is missing", f"the tensors are: {', '.join(map(repr, shapes))}"
            )
        shape = shapes[name]
        wanted = channels if channels is not None else (len(spec.class_names) or None)
        if len(shape) != 4 or (wanted is not None and shape[1] != wanted):
            raise ModelError(
                f"head {name!r} has shape {tuple(shape)}, expected (N, {wanted or 'classes'}, H, W)",
                "correct the spec: the tensor's name, its encoding, or class_names",
            )
        grid = grid or shape[2:]
        if tuple(shape[2:]) != tuple(grid):
            raise ModelError(
                f"expected the heatmap's grid of {tuple(grid)} cells in head {name!r}, got {tuple(shape[2:])}",
                "all heads of a spec must have the same grid",
            )


def decode_image(
    heads: Mapping[str, FloatArray],
    spec: ModelSpec,
    placement: Placement,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Detections:
    """Decode the heads (C, H, W) of one image; otherwise like `decode`, without `check_heads`."""
    activation = spec.heads.heatmap.activation
    heatmap = heads[spec.heads.heatmap.tensor]
    stored = stored_threshold(spec.threshold if threshold is None else threshold, activation)
    peaks = find_peaks(heatmap, spec.top_k if top_k is None else top_k, stored, spec.plateau)
    label, y, x = np.unravel_index(peaks.index, heatmap.shape)
    cell = np.stack([x, y], axis=1).astype(np.float64)
    centre = cell + spec.cell_offset
    if spec.heads.offset is not None:
        centre += _xy(_gather(heads[spec.heads.offset.tensor], y, x), spec.heads.offset.order)
    box = _boxes(_gather(heads[spec.heads.box.tensor], y, x), spec.heads.box, centre, spec.stride)
    extra = {}
    for head in spec.heads.extra:
        values = _gather(heads[head.tensor], y, x)
        if isinstance(head, PointsExtra):
            points = _points(values, head, cell, centre, box, spec.stride)
            extra[head.name] = placement.to_source(points).reshape(len(points), head.channels)
        else:
            extra[head.name] = values.astype(np.float32)
    xyxy = placement.to_source(box.reshape(-1, 2, 2)).reshape(-1, 4)
    if spec.clip:
        limit = [placement.source_width, placement.source_height] * 2
        xyxy = np.clip(xyxy, 0, np.array(limit, dtype=np.float32))
    found = Detections(
        xyxy,
        to_score(peaks.value, activation),
        label.astype(np.int32),
        extra,
        spec.class_names,
        spec.category_ids,
    )
    return found if spec.nms_iou is None else found[greedy_nms(found.xyxy, found.label, spec.nms_iou)]


def _gather(head: FloatArray, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]) -> Points:
    """Read the values (n, C) of a head (C, H, W) at n cells."""
    return head[:, y, x].T.astype(np.float64)


def _xy(pairs: Points, order: str) -> Points:
    return pairs if order == "xy" else pairs[:, ::-1]


def _boxes(values: Points, head: BoxHead, centre: Points, stride: int) -> Points:
    """Compute corners (n, 4) in network-input pixels."""
    unit = stride if head.units == "cells" else 1
    middle = centre * stride
    if head.encoding == "ltrb":
        if head.order == "yx":
            values = values[:, [1, 0, 3, 2]]
        return np.concatenate([middle - values[:, :2] * unit, middle + values[:, 2:] * unit], axis=1)
    with np.errstate(over="ignore"):
        side = np.exp(values) if head.encoding == "log_wh" else values
    half = _xy(side, head.order) * (unit / 2)
    return np.concatenate([middle - half, middle + half], axis=1)


def _points(
    values: Points, head: PointsExtra, cell: Points, centre: Points, box: Points, stride: int
) -> Points:
    """Compute points (n, P, 2) in network-input pixels."""
    vectors = values.reshape(len(values), head.points, 2)
    if head.order == "yx":
        vectors = vectors[:, :, ::-1]
    if head.units == "box":
        vectors = vectors * (box[:, None, 2:] - box[:, None, :2])
    elif head.units == "cells":
        vectors = vectors * stride
    origin = {"cell": cell * stride, "centre": centre * stride, "top_left": box[:, :2]}[head.origin]
    return origin[:, None, :] + vectors
