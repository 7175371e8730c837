"""Convert every kind of image source to an (H, W, 3) uint8 array, blue first, as cv2.imread returns it."""

import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

BgrImage = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@runtime_checkable
class PilImage(Protocol):
    """The part of PIL.Image.Image that is used; PIL itself is not needed."""

    mode: str
    size: tuple[int, int]

    def convert(self, mode: str) -> Any:
        """Return a copy in another mode."""


ImageSource = str | os.PathLike[str] | npt.NDArray[Any] | PilImage


def as_bgr(source: ImageSource) -> BgrImage:
    """Convert an image source to an array.

    Args:
        source: one of

            - a path: read as by cv2.imread (EXIF rotation applied, alpha dropped, 16 bits cut to the upper 8);
            - an array: (H, W) or (H, W, 1) grey, (H, W, 3) blue first, (H, W, 4) blue first with alpha, which is
              dropped; uint8, or uint16, of which the upper 8 bits are taken;
            - a PIL image of any mode: its RGB conversion ("I;16": the upper 8 bits).

    Returns:
        (H, W, 3) uint8, blue first, C-contiguous; the source itself if it is that already.

    Raises:
        InputError: the file is missing or not an image, the image is empty, or it has another type, shape or dtype.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image(Path(source))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, PilImage):
        return _from_pil(source)
    raise InputError(
        f"expected a path, an array or a PIL image, got {type(source).__name__}",
        "give a path, a NumPy array (H, W, 3) uint8 with blue first, or a PIL image",
    )


def read_image(path: Path) -> BgrImage:
    """Read an image file as cv2.imread does.

    Args:
        path: the file.

    Returns:
        (H, W, 3) uint8, blue first, C-contiguous.

    Raises:
        InputError: the file is missing, unreadable, empty, or not an image that OpenCV can decode.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from None
    if not data.size:
        raise InputError(f"expected an image in {path}, got an empty file")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # a declared size beyond OpenCV's limits, for one
        raise InputError(f"OpenCV cannot decode {path}: {str(error).strip()}") from None
    if image is None:
        raise InputError(
            f"{path} is not an image that OpenCV can decode ({data.size} bytes)",
            "expected one of " + ", ".join(sorted(IMAGE_SUFFIXES)) + "; the file may be truncated",
        )
    return np.ascontiguousarray(image, dtype=np.uint8)


def _from_array(array: npt.NDArray[Any]) -> BgrImage:
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(
            f"expected an image array of dtype uint8 or uint16, got {array.dtype}",
            "scale it to 0..255 and convert: (image * 255).round().astype(numpy.uint8) for values 0..1",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = "move the channels to the end: image.transpose(1, 2, 0)" if array.shape[:1] == (3,) else ""
        raise InputError(
            f"expected an image array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}",
            hint,
        )
    if 0 in array.shape:
        raise InputError(f"expected an image, got an empty array of shape {array.shape}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3], dtype=np.uint8)


def _from_pil(image: PilImage) -> BgrImage:
    if 0 in image.size:
        raise InputError(f"expected an image, got an empty PIL image of size {image.size}")
    try:
        if image.mode.startswith("I;16"):
            return _from_array(np.asarray(image, dtype=np.uint16))
        rgb = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads lazily: a truncated file shows only here
        raise InputError(f"the PIL image cannot be read: {error}") from None
    return np.ascontiguousarray(rgb[:, :, ::-1])
