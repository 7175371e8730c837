"""Validate per-call options, and read, check and place the images of a call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.runtime.backend import Backend, InferenceRequest, LoadedImage
from centernet_trt.runtime.cuda.interop import device_image, is_device_array
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.images import BgrImage, ImageSource, as_bgr
from centernet_trt.runtime.manifest import Manifest
from centernet_trt.runtime.profiles import check_size, largest_batch
from centernet_trt.runtime.spec import MAX_TOP_K, ModelSpec
from centernet_trt.runtime.tta.augment import Augmentation, TestTimeAugmentation, parse_augmentation


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """The lowest score, the classes, the most detections, None for the spec's; the augmentation, None for none."""

    threshold: float | None = None
    classes: tuple[int | str, ...] | None = None
    top_k: int | None = None
    tta: TestTimeAugmentation | None = None

    def chosen(self, found: Detections) -> Detections:
        """The detections of the classes asked for; threshold and top_k have been seen to by the decode."""
        return found if self.classes is None else found.of_classes(self.classes)


PLAIN = DetectOptions()


def validate_options(
    spec: ModelSpec,
    threshold: float | None,
    classes: Sequence[int | str] | None,
    top_k: int | None,
    tta: Augmentation | None,
) -> DetectOptions:
    """The arguments of a call, checked.

    Raises:
        InputError: a threshold that is no score, a class that the spec does not have, a top_k out of range, or no such
            augmentation.
    """
    if threshold is None and classes is None and top_k is None and tta is None:
        return PLAIN
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, a score from 0 to 1 was expected")
    if top_k is not None and not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"top_k is {top_k}, 1 to {MAX_TOP_K} was expected")
    if classes is not None:
        none = np.zeros(0, dtype=np.float32)
        Detections(none.reshape(0, 4), none, none.astype(np.int32), {}, spec.class_names).of_classes(classes)
        classes = tuple(classes)
    return DetectOptions(threshold, classes, top_k, None if tta is None else parse_augmentation(tta))


Placed = tuple[LoadedImage, Placement]
Source = TypeVar("Source")
Result = TypeVar("Result")


class BatchError(InputError):
    """Some images of a batch failed; `results` has the detections of the others, and the errors in their places."""

    def __init__(self, results: "list[Detections | CenterNetError]") -> None:
        self.results = results
        failed = {row: result for row, result in enumerate(results) if isinstance(result, CenterNetError)}
        lines = [f"  image {row}: {error.message}" for row, error in failed.items()]
        super().__init__(
            f"{len(failed)} of {len(results)} images failed:\n" + "\n".join(lines),
            "pass errors='return' to get the errors in the list, beside the other images' detections",
        )

    def __reduce__(self) -> tuple[type["BatchError"], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.results,)


def network_batches(images: Mapping[int, Placed], largest: int) -> list[dict[int, Placed]]:
    """Cut images into batches of one network size and at most `largest` images.

    Args:
        images: by their row in the caller's list.
        largest: images in a batch.
    """
    sizes: dict[tuple[int, int], dict[int, Placed]] = {}
    for row, (image, placement) in images.items():
        sizes.setdefault((placement.height, placement.width), {})[row] = (image, placement)
    batches = []
    for group in sizes.values():
        entries = iter(group.items())
        while batch := dict(islice(entries, largest)):
            batches.append(batch)
    return batches


def run_in_batches(
    images: Mapping[int, Placed], options: DetectOptions, backend: Backend
) -> dict[int, Detections]:
    """Detections of placed images, both by their row in the caller's list.

    Raises:
        BackendError: the network failed.
    """
    batches = network_batches(images, backend.max_batch)
    asked = [
        [InferenceRequest(*placed, options.threshold, options.top_k) for placed in batch.values()]
        for batch in batches
    ]
    results: dict[int, Detections] = {}
    for batch, found in zip(batches, backend.run(asked), strict=True):
        results.update(zip(batch, map(options.chosen, found), strict=True))
    return results


def map_collecting_errors(
    images: Sequence[Source], work: Callable[[Source], Result]
) -> tuple[dict[int, Result], dict[int, CenterNetError]]:
    """Do something to every image -> the results and the errors, each by the image's row.

    What raises an InputError is the matter of that image; any other error is raised.
    """
    done: dict[int, Result] = {}
    failed: dict[int, CenterNetError] = {}
    for row, image in enumerate(images):
        try:
            done[row] = work(image)
        except InputError as error:
            failed[row] = error
    return done, failed


_BYTE = np.dtype(np.uint8)
_REMEMBERED = 256  # sizes; beyond it all are forgotten


class InputPreparer:
    """What one bundle does with an image before any backend sees it. Safe to use from many threads."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        # A camera's pictures are all of one size, and a placement costs as much Python as a launch.
        self._placements: dict[tuple[int, int], Placement] = {}

    def prepare(
        self, source: ImageSource, check: Callable[[LoadedImage], None]
    ) -> tuple[LoadedImage, Placement]:
        """The image and where it lies in the network's input.

        Args:
            source: see `Detector.detect`.
            check: raises InputError for an image that the backend does not take.

        Raises:
            InputError: it cannot be used.
        """
        image: LoadedImage
        if isinstance(source, np.ndarray):  # which has DLPack as well
            image = source if _is_ready(source) else as_bgr(source)
        else:
            image = device_image(source) if is_device_array(source) else as_bgr(source)
        check(image)
        height, width, _ = image.shape
        return image, self._placements.get((width, height)) or self.place(width, height)

    def place(self, width: int, height: int) -> Placement:
        """Where an image of this size, in pixels, lies in the network's input.

        Raises:
            InputError: it needs an input that the bundle was not built for.
        """
        placement = place(self._manifest.spec.input, width, height)
        check_size(
            self._manifest.profiles,
            placement.height,
            placement.width,
            lambda: f"an image of {width}x{height} pixels",
            "scale the image down, or rebuild the bundle with wider --width and --height",
        )
        if len(self._placements) >= _REMEMBERED:
            self._placements.clear()
        self._placements[width, height] = placement
        return placement

    def blank_batches(
        self, sizes: Sequence[tuple[int, int]] | None, batches: Sequence[int] | None, largest: int
    ) -> list[list[InferenceRequest]]:
        """Batches of black images, to warm up with.

        Args:
            sizes: (width, height) in pixels; None for the size that each profile is tuned for.
            batches: how many images each; None for 1 and the largest batch.
            largest: most images that run at once.

        Raises:
            InputError: a size or a batch that the bundle was not built for.
        """
        profiles = self._manifest.profiles
        runs: list[list[InferenceRequest]] = []
        for width, height in sizes or sorted({(p.width.opt - 1, p.height.opt - 1) for p in profiles}):
            placement = self.place(width, height)
            most = min(largest, largest_batch(profiles, placement.height, placement.width))
            counts = sorted({1, most}) if batches is None else batches
            if any(not 1 <= count <= most for count in counts):
                raise InputError(f"batches are {list(counts)}, 1 to {most} images were expected")
            image = np.zeros((height, width, 3), np.uint8)
            runs += [[InferenceRequest(image, placement)] * count for count in counts]
        return runs


def _is_ready(array: npt.NDArray[Any]) -> bool:
    """Whether an array is what `as_bgr` would return for it, as most are."""
    shape = array.shape
    return (
        len(shape) == 3
        and shape[2] == 3
        and array.dtype == _BYTE
        and array.flags.c_contiguous
        and array.size > 0
    )


def host_image(source: ImageSource) -> BgrImage:
    """The image on the host, for test-time augmentation.

    Raises:
        InputError: it cannot be used, or lies in GPU memory.
    """
    if is_device_array(source):
        raise InputError(
            "an image in GPU memory was given with tta=, which prepares images on the host",
            "copy it to the host first",
        )
    return as_bgr(source)
