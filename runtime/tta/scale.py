"""ScaledInput: the network input of a scaled image, for multi-scale augmentation."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.host.preprocess import resample
from centernet_trt.runtime.images import BgrImage
from centernet_trt.runtime.spec import FixedSize, FixRes, InputSpec, KeepRes, Letterbox


@dataclass(frozen=True)
class ScaledInput:
    """An image in the network input.

    Attributes:
        canvas: (height, width, 3) uint8 pixels of the network input, blue first.
        placement: of the source in it; it maps boxes, and is not for sampling.
        drops_cut: whether to drop boxes at a side where the image continues beyond the input, see `is_whole`.
    """

    canvas: BgrImage
    placement: Placement
    drops_cut: bool = False

    def is_whole(self, xyxy: npt.NDArray[np.float32], margin: float) -> npt.NDArray[np.bool_]:
        """Return which boxes are of objects that no side of the network input cuts.

        Args:
            xyxy: (N, 4) boxes in source pixels.
            margin: in pixels of the network input; a box this close to a cutting side counts as cut.

        Returns:
            (N,) bool.
        """
        p = self.placement
        scale, shift = np.array([p.scale_x, p.scale_y]), np.array([p.shift_x, p.shift_y])
        low, high = xyxy[:, :2] * scale + shift, xyxy[:, 2:] * scale + shift
        limit, end = (
            np.array([p.width, p.height]),
            np.array([p.source_width, p.source_height]) * scale + shift,
        )
        cut = ((shift < 0) & (low < margin)) | ((end > limit) & (high > limit - margin))
        whole: npt.NDArray[np.bool_] = np.logical_not(cut.any(axis=1))
        return whole


def scaled_input(image: BgrImage, spec: InputSpec, scale: float) -> ScaledInput:
    """Place an image, scaled by a factor, in the network input.

    - `keep_res` and `fix_res` as the official `BaseDetector.pre_process`: cv2.resize to (int(w * scale),
      int(h * scale)), then the policy. The network size grows with keep_res; with fix_res the image shrinks inside the
      input, or its outer part is cut off.
    - `letterbox` and `stretch` into a fixed size, which the official code does not have: as fix_res, in one resampling;
      boxes of objects that a side of the input cuts are dropped, since they are whole at another scale.
    - `stretch` to a free size: the network size of the scaled image.

    Args:
        image: (H, W, 3) uint8, blue first.
        spec: input part of the model spec.
        scale: factor for the image's size, positive.

    Raises:
        InputError: the scale is not positive.
    """
    if not 0 < scale < float("inf"):
        raise InputError(f"expected a positive scale of the multi-scale test, got {scale}")
    if scale == 1:
        placement = place(spec, image.shape[1], image.shape[0])
        return ScaledInput(resample(image, placement), placement)
    if isinstance(spec.resize, (KeepRes, FixRes)):
        return _official(image, spec, scale)
    return _resampled_once(image, spec, scale)


def _official(image: BgrImage, spec: InputSpec, scale: float) -> ScaledInput:
    height, width = image.shape[:2]
    new_width, new_height = max(int(width * scale), 1), max(int(height * scale), 1)
    resized = np.asarray(cv2.resize(image, (new_width, new_height)), dtype=np.uint8)
    placement = place(spec, new_width, new_height)
    if isinstance(spec.resize, FixRes):
        # The scale of the original image: an enlarged one must not be shrunk back to fit.
        fitted = placement.width / max(width, height)
        placement = replace(
            placement,
            scale_x=fitted,
            scale_y=fitted,
            shift_x=placement.width / 2 - fitted * (new_width / 2),
            shift_y=placement.height / 2 - fitted * (new_height / 2),
        )
    # Boxes are divided by the given scale, not by the ratio of the rounded sides.
    to_source = replace(
        placement,
        source_width=width,
        source_height=height,
        scale_x=placement.scale_x * scale,
        scale_y=placement.scale_y * scale,
    )
    return ScaledInput(resample(resized, placement), to_source)


def _resampled_once(image: BgrImage, spec: InputSpec, scale: float) -> ScaledInput:
    height, width = image.shape[:2]
    fixed = isinstance(spec.size, FixedSize)
    placement = place(spec, width, height)
    scale_x, scale_y = placement.scale_x * scale, placement.scale_y * scale
    if not fixed:
        net_width, net_height = spec.size.network_size(
            max(int(width * scale), 1), max(int(height * scale), 1)
        )
        placement = replace(placement, width=net_width, height=net_height)
        scale_x, scale_y = net_width / width, net_height / height
    # A sliver keeps one pixel; as in `geometry.place`, the scales sample and map back alike.
    scale_x = scale_x if round(width * scale_x) >= 1 else 1 / width
    scale_y = scale_y if round(height * scale_y) >= 1 else 1 / height
    resized = cv2.resize(image, None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)
    inner = np.asarray(resized, dtype=np.uint8)
    top_left = isinstance(spec.resize, Letterbox) and spec.resize.align == "top_left"
    left = 0 if top_left else (placement.width - inner.shape[1]) // 2
    top = 0 if top_left else (placement.height - inner.shape[0]) // 2
    placement = replace(placement, scale_x=scale_x, scale_y=scale_y, shift_x=float(left), shift_y=float(top))
    return ScaledInput(_pasted(inner, placement, left, top), placement, drops_cut=fixed)


def _pasted(inner: BgrImage, placement: Placement, left: int, top: int) -> BgrImage:
    """Paste the image on a canvas with its corner at (left, top); the part outside the canvas is cut off."""
    canvas = np.full((placement.height, placement.width, 3), placement.pad_value, dtype=np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + inner.shape[1], placement.width), min(top + inner.shape[0], placement.height)
    canvas[y0:y1, x0:x1] = inner[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas
