"""Images and videos, in and out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.images import IMAGE_SUFFIXES, BgrImage, read_image

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


@dataclass(frozen=True)
class Frame:
    """A picture that is still to be read, or a frame of a video (`number`, `pixels`, frames a second)."""

    path: Path
    number: int | None = None
    pixels: BgrImage | None = None
    rate: float = 0.0

    def image(self) -> BgrImage:
        """The pixels, (H, W, 3) uint8, blue first; InputError when the picture cannot be read."""
        return read_image(self.path) if self.pixels is None else self.pixels

    def where(self) -> dict[str, Any]:
        """The keys that name it in a JSON row."""
        row: dict[str, Any] = {"image": str(self.path)}
        return row if self.number is None else row | {"frame": self.number}


def expand_sources(sources: Sequence[str]) -> list[Path]:
    """The files that the arguments name; a folder stands for the pictures and videos in it, sorted.

    Raises:
        InputError: something is not there, or a folder holds no pictures.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
            inside = sorted(p for p in source.iterdir() if p.suffix.lower() in known and p.is_file())
            if not inside:
                raise InputError(
                    f"the folder {source} holds no pictures", "expected " + ", ".join(sorted(known))
                )
            paths += inside
        elif source.exists():
            paths.append(source)
        else:
            raise InputError(f"there is no file or folder {source}")
    return paths


def frames(paths: Sequence[Path]) -> Iterator[Frame]:
    """Every picture, and every frame of every video, in order."""
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
        # Read as a picture, it fails alone and says so.
        yield Frame(path)


class AnnotatedWriter:
    """Writes annotated copies into a folder: pictures as `NAME-detections.jpg` (.png for .png), videos as .mp4.

    With no folder it writes nothing. `written` lists the files.
    """

    def __init__(self, folder: Path | None, sources: Sequence[Path]) -> None:
        """Make the folder; InputError when that fails."""
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
        """Write the annotated copy of a picture, or the next frame of a video."""
        if self._folder is None:
            return
        drawn = found.draw(image)
        if frame.number is not None:
            self._write_frame(frame, drawn)
            return
        target = self._target(frame.path, ".png" if frame.path.suffix.lower() == ".png" else ".jpg")
        ok, data = cv2.imencode(target.suffix, drawn)
        if not ok:
            raise InputError(f"OpenCV cannot encode {target} ({drawn.shape[1]}x{drawn.shape[0]} pixels)")
        try:
            target.write_bytes(data.tobytes())
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}") from None
        self.written.append(target)

    def _target(self, source: Path, suffix: str) -> Path:
        """A name of its own for each source, which is never a source itself."""
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
