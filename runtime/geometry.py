"""Placement: where a source image goes in the network input, for every resize policy.

The host and the CUDA kernels use the same one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.runtime.spec import InputSpec, KeepRes, Letterbox, Stretch


@dataclass(frozen=True)
class Placement:
    """The map from source-image coordinates to network-input coordinates: net = scale * source + shift.

    Boxes are mapped by its inverse. Pixels are sampled at source = (net + h - shift) / scale - h, where h is 0.5 with
    `half_pixel` (cv2.resize) and 0 without (cv2.warpAffine).

    The image covers the network pixels [left, right) x [top, bottom); the rest holds `pad_value`. Inside,
    a sample beyond the image's edge repeats the edge pixel when `replicate`, and is `pad_value` when not.

    Attributes:
        source_width: width of the image, in pixels.
        source_height: height of the image, in pixels.
        width: width of the network input, in pixels.
        height: height of the network input, in pixels.
        scale_x: horizontal scale, network pixels per source pixel.
        scale_y: vertical scale, likewise.
        shift_x: horizontal shift, in network pixels.
        shift_y: vertical shift, in network pixels.
        half_pixel: whether pixel centres are at half-integers.
        replicate: whether samples beyond the image's edge repeat the edge pixel.
        left: first column that the image covers.
        top: first row that the image covers.
        right: column after the last that it covers.
        bottom: row after the last that it covers.
        pad_value: grey level of the rest, 0..255.
    """

    source_width: int
    source_height: int
    width: int
    height: int
    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float
    half_pixel: bool
    replicate: bool
    left: int
    top: int
    right: int
    bottom: int
    pad_value: int

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the (2, 3) affine matrix from source to network coordinates, as for cv2.warpAffine."""
        return np.array([[self.scale_x, 0.0, self.shift_x], [0.0, self.scale_y, self.shift_y]])

    def to_source(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map points from the network input to the source image.

        Args:
            points: (..., 2) as (x, y), in network-input pixels.

        Returns:
            (..., 2) float32 in source-image pixels, computed in float64.
        """
        scale = np.array([self.scale_x, self.scale_y])
        shift = np.array([self.shift_x, self.shift_y])
        source: npt.NDArray[np.float64] = (points.astype(np.float64) - shift) / scale
        return source.astype(np.float32)


def place(spec: InputSpec, source_width: int, source_height: int) -> Placement:
    """Compute where an image goes in the network input, by the spec's size rule and resize policy.

    Source of `fix_res` and `keep_res`: the official `BaseDetector.pre_process` and `get_affine_transform`.

    Args:
        spec: input part of the model spec.
        source_width: width of the image, in pixels.
        source_height: height of the image, in pixels.
    """
    width, height = spec.size.network_size(source_width, source_height)
    policy = spec.resize
    if isinstance(policy, Letterbox):
        return _letterbox(policy, source_width, source_height, width, height)
    if isinstance(policy, Stretch):
        scales = (width / source_width, height / source_height)
        return _resized(source_width, source_height, width, height, scales, (0, 0, width, height), 0)
    if isinstance(policy, KeepRes):
        # Official centre (w // 2, h // 2) and s = network size: a translation by whole pixels.
        scale = 1.0
        shift_x, shift_y = float(width // 2 - source_width // 2), float(height // 2 - source_height // 2)
    else:
        scale = width / max(source_width, source_height)
        shift_x = width / 2 - scale * (source_width / 2)
        shift_y = height / 2 - scale * (source_height / 2)
    return Placement(
        source_width=source_width,
        source_height=source_height,
        width=width,
        height=height,
        scale_x=scale,
        scale_y=scale,
        shift_x=shift_x,
        shift_y=shift_y,
        half_pixel=False,
        replicate=False,
        left=0,
        top=0,
        right=width,
        bottom=height,
        pad_value=0,
    )


def _letterbox(policy: Letterbox, w: int, h: int, width: int, height: int) -> Placement:
    scale = min(width / w, height / h)
    if not policy.upscale:
        scale = min(scale, 1.0)
    # One scale samples and maps back both axes, as cv2.resize does when it is given fx = fy = scale; a scale of
    # (rounded side) / side would bend the aspect. Python's round is half-to-even, as OpenCV's own.
    inner_w, inner_h = round(w * scale), round(h * scale)
    scale_x, scale_y = scale, scale
    if inner_w < 1:  # a sliver keeps one pixel
        inner_w, scale_x = 1, 1 / w
    if inner_h < 1:
        inner_h, scale_y = 1, 1 / h
    left, top = (0, 0) if policy.align == "top_left" else ((width - inner_w) // 2, (height - inner_h) // 2)
    content = (left, top, left + inner_w, top + inner_h)
    return _resized(w, h, width, height, (scale_x, scale_y), content, policy.pad_value)


def _resized(
    w: int,
    h: int,
    width: int,
    height: int,
    scale: tuple[float, float],
    content: tuple[int, int, int, int],
    pad_value: int,
) -> Placement:
    left, top, right, bottom = content
    return Placement(
        source_width=w,
        source_height=h,
        width=width,
        height=height,
        scale_x=scale[0],
        scale_y=scale[1],
        shift_x=float(left),
        shift_y=float(top),
        half_pixel=True,
        replicate=True,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        pad_value=pad_value,
    )
