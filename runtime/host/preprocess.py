"""Pre-processing on the host: images -> the network's input tensor. The oracle of the CUDA kernel."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.spec import InputSpec


def resample(image: BgrImage, placement: Placement) -> BgrImage:
    """The image laid into the network input: (height, width, 3) uint8, blue first.

    Bilinear, by OpenCV 5 (exact sampling positions; OpenCV 4 rounds them to 1/32 pixel). A translation by whole
    pixels is an exact copy.
    """
    p = placement
    if not p.half_pixel:
        if p.scale_x == p.scale_y == 1.0 and p.shift_x.is_integer() and p.shift_y.is_integer():
            return _translated(image, p)
        warped = cv2.warpAffine(image, p.matrix(), (p.width, p.height), flags=cv2.INTER_LINEAR)
        return np.asarray(warped, dtype=np.uint8)
    size = (p.right - p.left, p.bottom - p.top)
    # Given the scales and no size, OpenCV samples by exactly these scales and rounds the size as `place` does.
    resized = cv2.resize(image, None, fx=p.scale_x, fy=p.scale_y, interpolation=cv2.INTER_LINEAR)
    inner = np.asarray(resized, dtype=np.uint8)
    if size == (p.width, p.height):
        return inner
    canvas = np.full((p.height, p.width, 3), p.pad_value, dtype=np.uint8)
    canvas[p.top : p.bottom, p.left : p.right] = inner
    return canvas


def _translated(image: BgrImage, p: Placement) -> BgrImage:
    """A copy moved by whole pixels, black where the image does not reach."""
    canvas = np.zeros((p.height, p.width, 3), dtype=np.uint8)
    dx, dy = int(p.shift_x), int(p.shift_y)
    x0, y0 = max(dx, 0), max(dy, 0)
    x1, y1 = min(dx + p.source_width, p.width), min(dy + p.source_height, p.height)
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = image[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return canvas


@lru_cache(maxsize=64)
def level_table(spec: InputSpec) -> npt.NDArray[np.float32]:
    """(3, 256) float32: the tensor value of each grey level, in the tensor's channel order; read-only.

    Computed in float64 and rounded once. Host and GPU look values up in the same table, which makes them bit-equal.
    """
    levels = np.arange(256, dtype=np.float64) * spec.scale
    table = (levels - np.array(spec.mean)[:, None]) / np.array(spec.std)[:, None]
    rounded: npt.NDArray[np.float32] = table.astype(np.float32)
    rounded.flags.writeable = False  # one array serves every caller
    return rounded


def normalise(images: Sequence[BgrImage], spec: InputSpec, out: npt.NDArray[np.floating]) -> None:
    """Fill `out` (N, 3, H, W), float32 or float16, from N images (H, W, 3) uint8 with blue first.

    value = (pixel * scale - mean) / std, channels in the spec's order.
    """
    table = level_table(spec).astype(out.dtype, copy=False)
    for image, planes in zip(images, out, strict=True):
        channels: Sequence[npt.NDArray[Any]] = cv2.split(image)
        if spec.channel_order == "rgb":
            channels = channels[::-1]
        for channel, plane, levels in zip(channels, planes, table, strict=True):
            np.take(
                levels, channel, out=plane, mode="clip"
            )  # "clip" skips the bounds check: uint8 cannot exceed


def preprocess(
    images: Sequence[BgrImage],
    placements: Sequence[Placement],
    spec: InputSpec,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[np.floating]:
    """The input tensor (N, 3, H, W) of a batch whose placements share one network size.

    Args:
        images: N images (h, w, 3) uint8, blue first, of any sizes.
        placements: where each lies in the network input, from `geometry.place`.
        spec: channel order and normalisation.
        dtype: float32 or float16.
    """
    height, width = placements[0].height, placements[0].width
    out = np.empty((len(images), 3, height, width), dtype=dtype)
    normalise([resample(i, p) for i, p in zip(images, placements, strict=True)], spec, out)
    return out
