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
    """Validated options of one call.

    Attributes:
        threshold: lowest score to return; None for the spec's.
        classes: classes to return, by index or name; None for all.
        top_k: maximum number of detections; None for the spec's.
        tta: test-time augmentation; None for none.
    """

    threshold: float | None = None
    classes: tuple[int | str, ...] | None = None
    top_k: int | None = None
    tta: TestTimeAugmentation | None = None

    def filter_classes(self, found: Detections) -> Detections:
        """Keep the detections of `classes`; threshold and top_k are applied by the decoder."""
        return found if self.classes is None else found.of_classes(self.classes)


PLAIN = DetectOptions()


def validate_options(
    spec: ModelSpec,
    threshold: float | None,
    classes: Sequence[int | str] | None,
    top_k: int | None,
    tta: Augmentation | None,
) -> DetectOptions:
    """Check the options of a call.

    Args:
        spec: of the bundle; it has the classes.
        threshold: see `Detector.detect`, as the others.
        classes: by index or name.
        top_k: 1..1024.
        tta: a name or a `TestTimeAugmentation`.

    Returns:
        The same options.

    Raises:
        InputError: a threshold or top_k out of range, an unknown class, or an unknown augmentation.
    """
    if threshold is None and classes is None and top_k is None and tta is None:
        return PLAIN
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"expected a threshold of 0 to 1, got {threshold}")
    if top_k is not None and not 1 <= top_k <= MAX_TOP_K:
        raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {top_k}")
    if classes is not None:
        none = np.zeros(0, dtype=np.float32)
        Detections(none.reshape(0, 4), none, none.astype(np.int32), {}, spec.class_names).of_classes(classes)
        classes = tuple(classes)
    return DetectOptions(threshold, classes, top_k, None if tta is None else parse_augmentation(tta))


Placed = tuple[LoadedImage, Placement]
Source = TypeVar("Source")
Result = TypeVar("Result")


class BatchError(InputError):
    """Some images of a batch are invalid.

    Attributes:
        results: one entry per image, in order: its detections, or its error.
    """

    def __init__(self, results: "list[Detections | CenterNetError]") -> None:
        """Describe the errors among the results.

        Args:
            results: see the class.
        """
        self.results = results
        failed = {row: result for row, result in enumerate(results) if isinstance(result, CenterNetError)}
        lines = [f"  image {row}: {error.message}" for row, error in failed.items()]
        super().__init__(
            f"{len(failed)} of {len(results)} images failed:\n" + "\n".join(lines),
            "pass errors='return' to get each error in its image's place in the list",
        )

    def __reduce__(self) -> tuple[type["BatchError"], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.results,)


def network_batches(images: Mapping[int, Placed], largest: int) -> list[dict[int, Placed]]:
    """Group images into batches of one network size and at most `largest` images.

    Args:
        images: by index in the caller's list.
        largest: maximum number of images in a batch.
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
    """Run placed images in batches.

    Args:
        images: by index in the caller's list.
        options: threshold, classes and top_k for all of them.
        backend: runs the batches.

    Returns:
        The detections, by the same index.

    Raises:
        BackendError: the network failed.
    """
    batches = network_batches(images, backend.max_batch)
    requests = [
        [InferenceRequest(*placed, options.threshold, options.top_k) for placed in batch.values()]
        for batch in batches
    ]
    results: dict[int, Detections] = {}
    for batch, found in zip(batches, backend.run(requests), strict=True):
        results.update(zip(batch, map(options.filter_classes, found), strict=True))
    return results


def map_collecting_errors(
    images: Sequence[Source], work: Callable[[Source], Result]
) -> tuple[dict[int, Result], dict[int, CenterNetError]]:
    """Apply a function to every image, collecting the InputErrors; any other error is raised.

    Returns:
        The results and the errors, each by the image's index.
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
_MAX_CACHED_SIZES = 256  # beyond it the cache is cleared


class InputPreparer:
    """Reads, checks and places images for one bundle. Safe to use from many threads."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        # A camera's images are all of one size, and computing a placement costs as much Python as a launch.
        self._placements: dict[tuple[int, int], Placement] = {}

    def prepare(
        self, source: ImageSource, check: Callable[[LoadedImage], None]
    ) -> tuple[LoadedImage, Placement]:
        """Load an image and place it in the network input.

        Args:
            source: see `Detector.detect`.
            check: raises InputError for an image that the backend does not accept.

        Raises:
            InputError: the image is invalid.
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
        """Compute where an image of this size, in pixels, goes in the network input.

        Raises:
            InputError: the bundle was not built for the input size that this needs.
        """
        placement = place(self._manifest.spec.input, width, height)
        check_size(
            self._manifest.profiles,
            placement.height,
            placement.width,
            lambda: f"an image of {width}x{height} pixels",
            "scale the image down, or rebuild the bundle with wider --width and --height",
        )
        if len(self._placements) >= _MAX_CACHED_SIZES:
            self._placements.clear()
        self._placements[width, height] = placement
        return placement

    def blank_batches(
        self, sizes: Sequence[tuple[int, int]] | None, batches: Sequence[int] | None, largest: int
    ) -> list[list[InferenceRequest]]:
        """Make batches of black images for a warm-up.

        Args:
            sizes: (width, height) in pixels; None for the size that each profile is tuned for.
            batches: batch sizes; None for 1 and the largest.
            largest: maximum number of images that run at once.

        Raises:
            InputError: the bundle was not built for a size or batch.
        """
        profiles = self._manifest.profiles
        runs: list[list[InferenceRequest]] = []
        for width, height in sizes or sorted({(p.width.opt - 1, p.height.opt - 1) for p in profiles}):
            placement = self.place(width, height)
            most = min(largest, largest_batch(profiles, placement.height, placement.width))
            counts = sorted({1, most}) if batches is None else batches
            if any(not 1 <= count <= most for count in counts):
                raise InputError(f"expected batches of 1 to {most} images, got {list(counts)}")
            image = np.zeros((height, width, 3), np.uint8)
            runs += [[InferenceRequest(image, placement)] * count for count in counts]
        return runs


def _is_ready(array: npt.NDArray[Any]) -> bool:
    """Whether `as_bgr` would return the array itself, as for most."""
    shape = array.shape
    return (
        len(shape) == 3
        and shape[2] == 3
        and array.dtype == _BYTE
        and array.flags.c_contiguous
        and array.size > 0
    )


def host_image(source: ImageSource) -> BgrImage:
    """Load an image on the host, for test-time augmentation.

    Raises:
        InputError: the image is invalid, or in GPU memory.
    """
    if is_device_array(source):
        raise InputError(
            "expected an image on the host with tta=, got one in GPU memory",
            "copy it to the host first",
        )
    return as_bgr(source)
