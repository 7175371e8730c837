"""A batch of images of many sizes: cut into network batches, and the error that keeps the good results."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.runtime.backend import Backend, Picture, Request
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.wish import Wish

Placed = tuple[Picture, Placement]
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


def run_in_batches(images: Mapping[int, Placed], wish: Wish, backend: Backend) -> dict[int, Detections]:
    """Detections of placed images, both by their row in the caller's list.

    Raises:
        BackendError: the network failed.
    """
    batches = network_batches(images, backend.max_batch)
    asked = [[Request(*placed, wish.threshold, wish.top_k) for placed in batch.values()] for batch in batches]
    results: dict[int, Detections] = {}
    for batch, found in zip(batches, backend.run(asked), strict=True):
        results.update(zip(batch, map(wish.chosen, found), strict=True))
    return results


def one_by_one(
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
