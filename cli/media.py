"""Images and videos in and out: `read_frames`, `AnnotatedWriter`, `write_image`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from centernet_trt.cli.console import write_bytes
from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.images import IMAGE_SUFFIXES, BgrImage, read_image

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True)
class Frame:
    """An image file that is not read yet, or a frame of a video.

    Attributes:
        path: the image or the video.
        number: of the frame, from 0; None for an image.
        pixels: of the frame, (H, W, 3) uint8 in BGR order; None for an image.
        rate: frames per second of the video.
    """

    path: Path
    number: int | None = None
    pixels: BgrImage | None = None
    rate: float = 0.0

    def image(self) -> BgrImage:
        """Get the pixels, (H, W, 3) uint8 in BGR order.

        Raises:
            InputError: the image cannot be read.
        """
        return read_image(self.path) if self.pixels is None else self.pixels

    def where(self) -> dict[str, Any]:
        """Keys that identify it in a JSON row."""
        row: dict[str, Any] = {"image": str(self.path)}
        return row if self.number is None else row | {"frame": self.number}


def expand_sources(sources: Sequence[str]) -> list[Path]:
    """Find the files that the arguments name.

    Args:
        sources: files and folders; a folder stands for the images and videos in it, sorted.

    Returns:
        The files.

    Raises:
        InputError: a source does not exist, or a folder has no images or videos.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
            inside = sorted(p for p in source.iterdir() if p.suffix.lower() in known and p.is_file())
            if not inside:
                raise InputError(
                    f"the folder {source} has no images or videos", "expected " + ", ".join(sorted(known))
                )
            paths += inside
        elif source.exists():
            paths.append(source)
        else:
            raise InputError(f"there is no file or folder {source}")
    return paths


def read_frames(paths: Sequence[Path]) -> Iterator[Frame]:
    """Yield every image and every frame of every video, in order."""
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield from _video_frames(path)
        else:
            yield Frame(path)


def _video_frames(path: Path) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            ok, pixels = capture.read()
            if not ok:
                break
            image = np.ascontiguousarray(pixels, dtype=np.uint8)
            yield Frame(path, number, image, capture.get(cv2.CAP_PROP_FPS) or 25.0)
            number += 1
    finally:
        capture.release()
    if number == 0:
        # As an image it fails with a message of its own, and the other files are still read.
        yield Frame(path)


def write_image(target: Path, image: BgrImage) -> None:
    """Write an image file, making its folder.

    Args:
        target: its suffix names the format; without one it is PNG.
        image: (H, W, 3) uint8 in BGR order.

    Raises:
        InputError: it cannot be encoded or written.
    """
    ok, data = cv2.imencode(target.suffix or ".png", image)
    if not ok:
        raise InputError(f"OpenCV cannot encode {target} ({image.shape[1]}x{image.shape[0]} pixels)")
    write_bytes(target, data.tobytes())


class AnnotatedWriter:
    """Writes annotated copies into a folder: images as `NAME-detections.jpg` (.png for .png), videos as .mp4.

    Attributes:
        written: the files written so far; always empty without a folder.
    """

    def __init__(self, folder: Path | None, sources: Sequence[Path]) -> None:
        """Make the folder.

        Args:
            folder: of the copies; None to write nothing.
            sources: files that a copy must not overwrite.

        Raises:
            InputError: the folder cannot be made.
        """
        self._folder = folder
        self._sources = {path.resolve() for path in sources}
        self._targets: dict[Path, Path] = {}
        self._video: tuple[Path, cv2.VideoWriter] | None = None
        self.written: list[Path] = []
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_video()

    def write(self, frame: Frame, image: BgrImage, found: Detections) -> None:
        """Write the annotated copy of an image, or the next frame of a video.

        Args:
            frame: the image or the frame.
            image: its pixels, (H, W, 3) uint8 in BGR order.
            found: detections to draw.

        Raises:
            InputError: the copy cannot be written.
        """
        if self._folder is None:
            return
        drawn = found.draw(image)
        if frame.number is not None:
            self._write_frame(frame, drawn)
            return
        target = self._target(frame.path, ".png" if frame.path.suffix.lower() == ".png" else ".jpg")
        write_image(target, drawn)
        self.written.append(target)

    def _target(self, source: Path, suffix: str) -> Path:
        """Choose a file name that no other copy and no source has."""
        if source not in self._targets:
            assert self._folder is not None
            taken = {path.resolve() for path in self._targets.values()} | self._sources
            target = self._folder / f"{source.stem}-detections{suffix}"
            count = 2
            while target.resolve() in taken:
                target = self._folder / f"{source.stem}-detections-{count}{suffix}"
                count += 1
            self._targets[source] = target
        return self._targets[source]

    def _write_frame(self, frame: Frame, drawn: BgrImage) -> None:
        if self._video is None or self._video[0] != frame.path:
            self._end_video()
            target = self._target(frame.path, ".mp4")
            size = (drawn.shape[1], drawn.shape[0])
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), frame.rate, size)
            if not writer.isOpened():
                raise InputError(f"OpenCV cannot write the video {target}")
            self._video = (frame.path, writer)
            self.written.append(target)
        self._video[1].write(drawn)

    def _end_video(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None
