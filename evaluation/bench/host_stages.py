"""The host's road from an image to boxes, stage by stage, for the benchmark; and the images that it rotates over."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError, InputError
from centernet_trt.evaluation.bench.timing import StageClock
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.detector import Detector
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.host.decode import decode
from centernet_trt.runtime.host.onnxruntime import Mode, OnnxRuntimeExecutor, allocate_heads
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.images import IMAGE_SUFFIXES, BgrImage, read_image

Heads = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Picture:
    """An image in memory and its file: (H, W, 3) uint8, blue first."""

    path: Path
    pixels: BgrImage


def pick_images(folder: Path, most: int) -> list[Path]:
    """At most so many image files of a folder, evenly spread over the sorted names.

    Raises:
        InputError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", "give a folder of images")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise InputError(
            f"the folder {folder} holds no images", "expected " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    count = min(most, len(paths))
    return [paths[row * len(paths) // count] for row in range(count)]


def load_pictures(paths: Sequence[Path]) -> list[Picture]:
    """The images in memory; InputError for one that cannot be read."""
    return [Picture(path, read_image(path)) for path in paths]


class Pipeline(Protocol):
    """What the benchmark times: one image in, its detections out, every stage marked on a clock."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order."""

    @property
    def note(self) -> str:
        """What must be known about how the network is run."""

    def run(self, picture: Picture, clock: StageClock) -> Detections:
        """Detect in one image, with the spec's threshold and top K."""

    def close(self) -> None:
        """Free what the pipeline holds."""


class HostPipeline:
    """Pre-processing, ONNX Runtime and decode on the host: what `Detector` does, with a mark after each stage.

    `stages`: `read` (only when asked for: the file from the page cache, and its JPEG or PNG decoding), `preprocess`,
    `network`, `decode`. That it finds what `Detector` finds is checked by `check_against`.
    """

    def __init__(
        self, bundle: EngineBundle, mode: Mode = "fast", threads: int | None = None, *, read: bool = False
    ) -> None:
        """Load the network.

        Args:
            bundle: a checked bundle.
            mode: of ONNX Runtime.
            threads: of ONNX Runtime; None for its own choice.
            read: read the image's file in every call, instead of using the pixels in memory.
        """
        self.bundle = bundle
        self.executor = OnnxRuntimeExecutor(bundle.model_path, bundle.manifest, mode, threads)
        self._read = read

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order."""
        return ("read",) * self._read + ("preprocess", "network", "decode")

    @property
    def note(self) -> str:
        """Says that TensorRT was not run."""
        return self.executor.note

    def run(self, picture: Picture, clock: StageClock) -> Detections:
        """Detect in one image, with the spec's threshold and top K."""
        manifest = self.bundle.manifest
        clock.start()
        pixels = picture.pixels
        if self._read:
            pixels = read_image(picture.path)
            clock.mark("read")
        tensor, placement = self._input(pixels)
        clock.mark("preprocess")
        heads: Heads = allocate_heads(manifest, 1, *tensor.shape[2:])
        self.executor.run({manifest.input.name: tensor}, heads)
        clock.mark("network")
        (found,) = decode(heads, manifest.spec, [placement])
        clock.mark("decode")
        return found

    def network_buffers(self, picture: Picture) -> tuple[Heads, Heads]:
        """The input tensor of an image and room for the heads, by name: to run the network alone."""
        manifest = self.bundle.manifest
        tensor, _ = self._input(picture.pixels)
        return {manifest.input.name: tensor}, allocate_heads(manifest, 1, *tensor.shape[2:])

    def close(self) -> None:
        """Drop the session."""
        self.executor.close()

    def _input(self, pixels: BgrImage) -> tuple[npt.NDArray[Any], Placement]:
        manifest = self.bundle.manifest
        placement = place(manifest.spec.input, pixels.shape[1], pixels.shape[0])
        dtype = np.dtype(manifest.input.dtype)
        return preprocess([pixels], [placement], manifest.spec.input, dtype), placement


def check_against(
    pipeline: Pipeline, detector: Detector, pictures: Sequence[Picture], clock: StageClock
) -> None:
    """Make sure that what is timed is what the product answers, image by image.

    Raises:
        BackendError: the pipeline's detections are not the detector's.
        InputError: an image cannot be used with this bundle.
    """
    for picture in pictures:
        # The detector first: it refuses an image that the bundle was not built for.
        wanted, found = detector.detect(picture.pixels), pipeline.run(picture, clock)
        same = np.array_equal(wanted.xyxy, found.xyxy, equal_nan=True)
        if not (
            same and np.array_equal(wanted.label, found.label) and np.array_equal(wanted.score, found.score)
        ):
            raise BackendError(
                f"the timed pipeline does not find in {picture.path.name} what Detector finds "
                f"({len(found)} boxes, {len(wanted)} expected): its times would mean nothing",
                "please report this with the bundle",
            )


def make_batches(pictures: Sequence[Picture], bundle: EngineBundle, size: int) -> list[list[BgrImage]]:
    """Batches of `size` images each, whose network inputs are equally large, so that they do run together.

    Every image is the first of one batch; the others follow it among those of its input size, again from the start
    where there are too few.
    """
    spec = bundle.manifest.spec.input
    groups: dict[tuple[int, int], list[BgrImage]] = {}
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        groups.setdefault(spec.size.network_size(width, height), []).append(picture.pixels)
    return [
        list(islice(cycle(group), row, row + size)) for group in groups.values() for row in range(len(group))
    ]
