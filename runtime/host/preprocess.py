"""Pre-process images on the host into the network's input tensor; the oracle of the CUDA kernel."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.spec import InputSpec, Triple


def resample(image: BgrImage, placement: Placement) -> BgrImage:
    """Resample an image into the network input.

    Bilinear, by OpenCV 5 (exact sampling positions; OpenCV 4 rounds them to 1/32 pixel). A translation by whole
    pixels is an exact copy.

    Args:
        image: (H, W, 3) uint8, blue first.
        placement: of an image of this size, from `geometry.place`.

    Returns:
        (height, width, 3) uint8, blue first, of the network input's size.
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
    """Copy the image moved by whole pixels; black outside of it."""
    canvas = np.zeros((p.height, p.width, 3), dtype=np.uint8)
    dx, dy = int(p.shift_x), int(p.shift_y)
    x0, y0 = max(dx, 0), max(dy, 0)
    x1, y1 = min(dx + p.source_width, p.width), min(dy + p.source_height, p.height)
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = image[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
    return canvas


def level_table(spec: InputSpec) -> npt.NDArray[np.float32]:
    """Return the tensor value of each grey level, in the tensor's channel order: (3, 256) float32, read-only.

    Computed in float64 and rounded once. Host and GPU look values up in the same table, which makes them bit-equal.
    """
    return _level_table(spec.scale, spec.mean, spec.std)


@lru_cache(maxsize=64)
def _level_table(scale: float, mean: Triple, std: Triple) -> npt.NDArray[np.float32]:
    levels = np.arange(256, dtype=np.float64) * scale
    table = (levels - np.array(mean)[:, None]) / np.array(std)[:, None]
    rounded: npt.NDArray[np.float32] = table.astype(np.float32)
    rounded.flags.writeable = False  # one array serves every caller
    return rounded


def normalise(images: Sequence[BgrImage], spec: InputSpec, out: npt.NDArray[np.floating]) -> None:
    """Convert images to tensor values: (pixel * scale - mean) / std, channels in the spec's order.

    Args:
        images: N images (H, W, 3) uint8, blue first.
        spec: channel order and normalisation.
        out: (N, 3, H, W) float32 or float16; it is filled.
    """
    table = level_table(spec).astype(out.dtype, copy=False)
    for image, planes in zip(images, out, strict=True):
        channels: Sequence[npt.NDArray[Any]] = cv2.split(image)
        if spec.channel_order == "rgb":
            channels = channels[::-1]
        for channel, plane, levels in zip(channels, planes, table, strict=True):
            # "clip" skips the bounds check: uint8 cannot exceed the table.
            np.take(levels, channel, out=plane, mode="clip")


def preprocess(
    images: Sequence[BgrImage],
    placements: Sequence[Placement],
    spec: InputSpec,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[np.floating]:
    """Make the input tensor of a batch whose placements share one network size.

    Args:
        images: N images (h, w, 3) uint8, blue first, of any sizes.
        placements: of each image in the network input, from `geometry.place`.
        spec: channel order and normalisation.
        dtype: float32 or float16.

    Returns:
        (N, 3, H, W) of that dtype.
    """
    height, width = placements[0].height, placements[0].width
    out = np.empty((len(images), 3, height, width), dtype=dtype)
    normalise([resample(i, p) for i, p in zip(images, placements, strict=True)], spec, out)
    return out
