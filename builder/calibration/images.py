"""Calibration images (`CalibrationImages`): of a folder, a COCO file or any iterable, one in memory at a time."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from centernet_trt.errors import CalibrationError, InputError
from centernet_trt.evaluation.accuracy.coco_file import read_coco
from centernet_trt.evaluation.accuracy.coco_images import first_names, has_content, image_path
from centernet_trt.runtime.images import IMAGE_SUFFIXES, BgrImage, ImageSource, as_bgr

__all__ = ["ADVISED", "FEWEST", "CalibrationImage", "CalibrationImages", "find_images", "images_from"]

FEWEST = 4
"""Fewer images than this are refused: their ranges would be those of single images."""
ADVISED = 100
"""Fewer images than this cause a note."""

_MORE = "give 100 to 500 images of your training set, never of the validation set"


@dataclass(frozen=True)
class CalibrationImage:
    """One image.

    Attributes:
        name: relative path, or its number in an iterable.
        sha256: of its file, or of its pixels if it has none.
        read: returns its pixels.
    """

    name: str
    sha256: str
    read: Callable[[], BgrImage]


@dataclass(frozen=True)
class CalibrationImages:
    """The images of a calibration, read again for each pass.

    Attributes:
        images: in the order of their names, or of the iterable.
        source: origin, for messages and records.
        notes: for the user.
        annotations: the COCO file, if the images came from one.
        folder: of their files, if they have files.
    """

    images: tuple[CalibrationImage, ...]
    source: str
    notes: tuple[str, ...] = ()
    annotations: Path | None = None
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[CalibrationImage]:
        return iter(self.images)

    def subset(self, rows: Sequence[int]) -> "CalibrationImages":
        """The images at these indices, in this order."""
        chosen = tuple(self.images[row] for row in rows)
        return CalibrationImages(chosen, self.source, (), self.annotations, self.folder)


class _Spool:
    """A temporary folder with the lifetime of this object."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="centernet-trt-images-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def find_images(source: Path) -> CalibrationImages:
    """Find the images of a folder (not of its subfolders), or those that a COCO file lists.

    Every image is read once, so that a damaged one is reported before minutes of work.

    Args:
        source: folder, or COCO file (.json).

    Raises:
        CalibrationError: no such file or folder, too few images, unreadable ones (all are named), or all equal.
    """
    notes: tuple[str, ...] = ()
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        annotations, folder = None, source
    elif source.suffix.lower() == ".json" and source.is_file():
        (folder, paths, notes), annotations = _listed(source), source
    else:
        raise CalibrationError(
            f"expected a folder of images or a COCO file (.json), got {source}", f"--calibration: {_MORE}"
        )
    if len(paths) < FEWEST:
        raise CalibrationError(
            f"{source}: expected at least {FEWEST} images, got {len(paths)}", f"--calibration: {_MORE}"
        )
    kept, pixels, broken = [], [], []
    for path in paths:
        try:
            pixels.append(_pixel_hash(as_bgr(path)))
        except InputError as error:
            broken.append(error.message)
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # A COCO file may name images by absolute paths.
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        kept.append(CalibrationImage(str(name), digest, _reader(path)))
    if broken:
        lines = "".join(f"\n  {line}" for line in broken[:10]) + ("\n  ..." if len(broken) > 10 else "")
        raise CalibrationError(
            f"{len(broken)} of the {len(paths)} images of {source} cannot be read:{lines}",
            "remove or replace these files",
        )
    return CalibrationImages(
        tuple(kept), str(source), (*notes, *_check_pixels(pixels, str(source))), annotations, folder
    )


def images_from(source: Iterable[ImageSource]) -> CalibrationImages:
    """Take the images of any iterable; it is consumed once, the pixels are stored in a temporary folder on disk.

    Args:
        source: anything that `runtime.images.as_bgr` accepts, such as paths and BGR arrays.

    Raises:
        CalibrationError: too few images, unreadable ones, or all of them equal.
    """
    spool = _Spool()
    kept, pixels = [], []
    for number, item in enumerate(source):
        try:
            image = as_bgr(item)
        except InputError as error:
            raise CalibrationError(
                f"image {number} of the iterable cannot be used: {error.message}", error.hint
            ) from None
        path = spool.folder / f"{number:08}.npy"
        np.save(path, image, allow_pickle=False)
        pixels.append(_pixel_hash(image))
        kept.append(CalibrationImage(f"image {number}", pixels[-1], _array_reader(path, spool)))
    if len(kept) < FEWEST:
        raise CalibrationError(f"the iterable: expected at least {FEWEST} images, got {len(kept)}", _MORE)
    return CalibrationImages(tuple(kept), "an iterable", _check_pixels(pixels, "the iterable"))


def _reader(path: Path) -> Callable[[], BgrImage]:
    return lambda: as_bgr(path)


def _array_reader(path: Path, spool: _Spool) -> Callable[[], BgrImage]:
    def read(keeps_alive: _Spool = spool) -> BgrImage:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.uint8)

    return read


def _pixel_hash(image: BgrImage) -> str:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _check_pixels(pixels: Sequence[str], source: str) -> tuple[str, ...]:
    """Notes about the images, by the hashes of their pixels; CalibrationError if all are the same."""
    different = len(set(pixels))
    if different == 1:
        raise CalibrationError(f"the {len(pixels)} images of {source} are all the same", _MORE)
    notes = []
    if different < len(pixels):
        notes.append(f"{len(pixels) - different} of the {len(pixels)} calibration images are repeats")
    if different < ADVISED:
        notes.append(f"calibrated on {different} different images; {ADVISED} to 500 are advised")
    return tuple(notes)


def _listed(annotations: Path) -> tuple[Path, list[Path], tuple[str, ...]]:
    """Folder and files of the images that a COCO file lists, and notes on what was repaired.

    The folder is the one of the file, its `images/`, or one of the file's name.
    """
    try:
        file = read_coco(annotations, labels=False)
    except InputError as error:
        raise CalibrationError(
            f"{annotations} is not a COCO file that lists images: {error.message}",
            "expected JSON with images: [{file_name: ...}, ...]",
        ) from None
    names = sorted(file.names.values())
    folders = (annotations.parent, annotations.parent / "images", annotations.with_suffix(""))
    for folder in folders:
        paths = [image_path(folder, name) for name in names]
        missing = [path for path in paths if not has_content(path)]
        if not missing:
            return folder, paths, file.notes
        if len(missing) < len(paths):
            raise CalibrationError(
                f"{len(missing)} of the {len(paths)} images that {annotations} lists are not in {folder}, or are "
                f"empty: {first_names(missing)}",
                "add the missing files, or remove their rows from the COCO file",
            )
    looked = ", ".join(map(str, folders))
    raise CalibrationError(
        f"none of the {len(names)} images that {annotations} lists was found in {looked}",
        "put the COCO file beside the folder `images`",
    )
