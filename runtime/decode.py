"""Head tensors -> detections on the host: the second half of the decode contract, and the oracle of the kernel.

centre = cell + cell_offset + offset head (if any), in cells; corners by the box encoding; times the stride into
network-input pixels; through the inverse placement into source-image pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import ModelError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.nms import greedy_nms
from centernet_trt.runtime.peaks import FloatArray, find_peaks, score_of, stored_threshold
from centernet_trt.runtime.spec import BoxHead, ModelSpec, PointsExtra

Points = npt.NDArray[np.float64]


def decode(
    heads: Mapping[str, FloatArray],
    spec: ModelSpec,
    placements: Sequence[Placement],
    threshold: float | None = None,
    top_k: int | None = None,
) -> list[Detections]:
    """Detections of every image of a batch, in decode order.

    Args:
        heads: head tensors (N, C, H, W) by name, float32 or float16.
        spec: what the tensors mean.
        placements: where each of the N images lies in the network input.
        threshold: lowest score wanted, 0..1; None for the spec's.
        top_k: at most so many detections an image; None for the spec's.

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
    """Hold the shapes (N, C, H, W) of the head tensors to the spec.

    Raises:
        ModelError: a head is missing, has the wrong number of channels, or another grid than the heatmap.
    """
    grid: Sequence[int] | None = None
    for name, channels in spec.heads.channels().items():
        if name not in shapes:
            raise ModelError(
                f"the head tensor {name!r} is missing", f"there are: {', '.join(map(repr, shapes))}"
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
                f"head {name!r} has a grid of {tuple(shape[2:])} cells, the heatmap has {tuple(grid)}",
                "all heads of a spec must lie on one grid",
            )


def decode_image(
    heads: Mapping[str, FloatArray],
    spec: ModelSpec,
    placement: Placement,
    threshold: float | None = None,
    top_k: int | None = None,
) -> Detections:
    """Detections of one image; its heads are (C, H, W), otherwise as `decode`."""
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
        score_of(peaks.value, activation),
        label.astype(np.int32),
        extra,
        spec.class_names,
        spec.category_ids,
    )
    return found if spec.nms_iou is None else found[greedy_nms(found.xyxy, found.label, spec.nms_iou)]


def _gather(head: FloatArray, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp]) -> Points:
    """Values (n, C) of a head (C, H, W) at n cells."""
    return head[:, y, x].T.astype(np.float64)


def _xy(pairs: Points, order: str) -> Points:
    return pairs if order == "xy" else pairs[:, ::-1]


def _boxes(values: Points, head: BoxHead, centre: Points, stride: int) -> Points:
    """Corners (n, 4) in network-input pixels."""
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
    """Points (n, P, 2) in network-input pixels."""
    vectors = values.reshape(len(values), head.points, 2)
    if head.order == "yx":
        vectors = vectors[:, :, ::-1]
    if head.units == "box":
        vectors = vectors * (box[:, None, 2:] - box[:, None, :2])
    elif head.units == "cells":
        vectors = vectors * stride
    origin = {"cell": cell * stride, "centre": centre * stride, "top_left": box[:, :2]}[head.origin]
    return origin[:, None, :] + vectors
