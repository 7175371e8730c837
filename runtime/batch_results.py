"""A batch of images of many sizes: cut into network batches, and the error that keeps the good results."""

from collections.abc import Mapping
from itertools import islice

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.runtime.backend import Picture
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement

Placed = tuple[Picture, Placement]


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
