"""Flip augmentation: average the heads of an image with those of its mirror image."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.backend import Heads
from centernet_trt.runtime.host.decode import FloatArray, to_score
from centernet_trt.runtime.spec import BoxHead, ModelSpec, PointsExtra

FlipIndex = Mapping[str, Sequence[int] | None]


def check_flip(spec: ModelSpec, flip_index: FlipIndex) -> None:
    """Check that the heads of a spec can be mirrored.

    Args:
        spec: what the heads mean.
        flip_index: for each points head, the point that each point becomes in a mirror (left eye <-> right eye);
            None uses the points of the image alone.

    Raises:
        InputError: a points head has no entry, an entry is not such a pairing, or units that cannot be mirrored.
    """
    points = {head.name: head for head in spec.heads.extra if isinstance(head, PointsExtra)}
    if unknown := sorted(set(flip_index) - set(points)):
        raise InputError(
            f"expected the spec's points heads ({', '.join(points) or 'none'}) in flip_index, got {', '.join(unknown)}"
        )
    for name, head in points.items():
        if name not in flip_index:
            raise InputError(
                f"a mirror swaps left and right points of the head {name!r}, and flip_index has no pairs for it",
                f"give TestTimeAugmentation(flip_index={{{name!r}: (...)}}), for each of the {head.points} points the "
                f"one it becomes, or {{{name!r}: None}} for the points of the image alone",
            )
        pairs = flip_index[name]
        if pairs is None:
            continue
        if sorted(pairs) != list(range(head.points)) or any(pairs[pairs[p]] != p for p in pairs):
            raise InputError(
                f"expected pairs of the points 0..{head.points - 1} as flip_index of {name!r}, got {tuple(pairs)}",
                "a point in the middle becomes itself; if 0 becomes 1, then 1 becomes 0",
            )
        if (head.units == "box") != (head.origin == "top_left"):
            raise InputError(
                f"points in units {head.units!r} from the {head.origin!r} cannot be averaged with their mirror",
                f"use those of the image alone: flip_index={{{name!r}: None}}",
            )


def as_probabilities(heads: Mapping[str, FloatArray], spec: ModelSpec) -> Heads:
    """Convert the heads of a spec to float32, the heatmap to scores 0..1."""
    found = {name: heads[name].astype(np.float32, copy=False) for name in spec.heads.tensors}
    heatmap = spec.heads.heatmap
    found[heatmap.tensor] = to_score(heads[heatmap.tensor], heatmap.activation)
    return found


def average_with_mirror(
    heads: Mapping[str, FloatArray],
    mirrored: Mapping[str, FloatArray],
    spec: ModelSpec,
    flip_index: FlipIndex,
) -> Heads:
    """Average the heads of an image with those of its mirrored network input.

    Args:
        heads: (C, H, W) arrays by name.
        mirrored: the same for the input flipped left to right.
        spec: what they mean; `check_flip` must have passed.
        flip_index: see `check_flip`.

    Returns:
        float32 heads whose heatmap holds probabilities.
    """
    direct, other = as_probabilities(heads, spec), as_probabilities(mirrored, spec)
    other = {name: head[:, :, ::-1] for name, head in other.items()}
    step = _centre_step(direct, other, spec)
    box = spec.heads.box
    if box.encoding == "ltrb":
        other[box.tensor] = _swapped_edges(other[box.tensor], box, step * _unit(box.units, spec))
    found = dict(direct)
    for name in (spec.heads.heatmap.tensor, box.tensor):
        found[name] = (direct[name] + other[name]) * np.float32(0.5)
    for head in spec.heads.extra:
        pairs = flip_index.get(head.name) if isinstance(head, PointsExtra) else None
        if isinstance(head, PointsExtra) and pairs is not None:
            vectors = _swapped_points(other[head.tensor], head, pairs, spec, step)
            found[head.tensor] = (direct[head.tensor] + vectors) * np.float32(0.5)
    return found


def _centre_step(direct: Heads, other: Heads, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Compute the step (x, y), in cells, from an object's centre in the mirror to its centre in the image.

    (2, 1, 1), or (2, H, W) with an offset head. Without one it is not 0 either: a centre in its cell's corner is
    mirrored to the opposite corner.
    """
    step: npt.NDArray[np.float32]
    step = np.array([2 * spec.cell_offset - 1, 0], dtype=np.float32).reshape(2, 1, 1)
    head = spec.heads.offset
    if head is None:
        return step
    (x, y), (other_x, other_y) = (
        heads[head.tensor] if head.order == "xy" else heads[head.tensor][::-1] for heads in (direct, other)
    )
    step = step + np.stack([x + other_x, y - other_y])
    return step


def _unit(units: str, spec: ModelSpec) -> int:
    """Return the size of a cell in a head's units."""
    return spec.stride if units == "input" else 1


def _swapped_edges(
    edges: npt.NDArray[np.float32], head: BoxHead, step: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Convert mirrored distances (4, H, W) to the image's own centre: left and right are swapped."""
    left, top, right, bottom = (0, 1, 2, 3) if head.order == "xy" else (1, 0, 3, 2)
    swapped = np.empty_like(edges)
    swapped[left], swapped[right] = edges[right] + step[0], edges[left] - step[0]
    swapped[top], swapped[bottom] = edges[top] + step[1], edges[bottom] - step[1]
    return swapped


def _swapped_points(
    values: npt.NDArray[np.float32],
    head: PointsExtra,
    pairs: Sequence[int],
    spec: ModelSpec,
    step: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Convert mirrored points (2P, H, W) to vectors from the image's own origin, each in its partner's place."""
    vectors = values.reshape(head.points, 2, *values.shape[1:])[list(pairs)]
    x, y = (0, 1) if head.order == "xy" else (1, 0)
    if head.units == "box":  # fractions of the box from its left edge
        vectors[:, x] = 1 - vectors[:, x]
        return vectors.reshape(values.shape)
    unit = _unit(head.units, spec)
    if head.origin == "cell":  # the mirrored corner is one cell further
        vectors[:, x] = unit - vectors[:, x]
    else:
        vectors[:, x] = -step[0] * unit - vectors[:, x]
        vectors[:, y] -= step[1] * unit
    return vectors.reshape(values.shape)
