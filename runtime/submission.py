"""What stands between `Detector.submit` and the batcher: requests checked, placed and grouped, their answers filtered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.runtime.backend import Request
from centernet_trt.runtime.batch_results import Placed
from centernet_trt.runtime.batching import DynamicBatcher
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.images import ImageSource
from centernet_trt.runtime.request_stats import RequestStatistics
from centernet_trt.runtime.request_types import Batching, RequestFuture
from centernet_trt.runtime.spec import ModelSpec


@dataclass(frozen=True)
class Wish:
    """What a call asks for: the lowest score, the classes, the most detections; None for the spec's."""

    threshold: float | None = None
    classes: tuple[int | str, ...] | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class _Job:
    request: Request
    classes: tuple[int | str, ...] | None


class Submissions:
    """The submitted images of one detector. Those of one network size share batches, whatever else they ask for."""

    def __init__(
        self,
        spec: ModelSpec,
        place: Callable[[ImageSource], Placed],
        run: Callable[[list[Request]], list[Detections]],
        max_batch: int,
        settings: Batching | None = None,
        workers: int = 1,
    ) -> None:
        """Start nothing yet.

        Args:
            spec: of the bundle.
            place: reads an image and lays it into the network input.
            run: detections of images that share a network size; called from several threads.
            max_batch: most images in a batch.
            settings: None for the defaults.
            workers: threads, where the settings do not say.
        """
        self._spec = spec
        self._place = place
        self._run = run
        settings = settings or Batching()
        self._batcher: DynamicBatcher[_Job, Detections] = DynamicBatcher(
            self._run_batch, max_batch, replace(settings, workers=settings.workers or workers)
        )

    def submit(
        self, image: ImageSource, wish: Wish, timeout: float | None = None
    ) -> RequestFuture[Detections]:
        """Queue an image; see `Detector.submit`."""
        self._batcher.check_open()
        if wish.classes is not None:
            self._check_classes(wish.classes)
        try:
            picture, placement = self._place(image)
        except InputError as error:
            failed: RequestFuture[Detections] = RequestFuture()
            failed.set_exception(error)
            return failed
        job = _Job(Request(picture, placement, wish.threshold, wish.top_k), wish.classes)
        return self._batcher.submit(job, (placement.height, placement.width), timeout)

    def close(self, drain: bool = True) -> None:
        """End the threads; see `DynamicBatcher.close`."""
        self._batcher.close(drain)

    @property
    def statistics(self) -> RequestStatistics:
        """What became of the requests so far."""
        return self._batcher.statistics

    def _check_classes(self, classes: Sequence[int | str]) -> None:
        """Raise InputError here, in the caller's own thread, for a class that does not exist."""
        none = np.zeros(0, dtype=np.float32)
        empty = Detections(none.reshape(0, 4), none, none.astype(np.int32), {}, self._spec.class_names)
        empty.of_classes(classes)

    def _run_batch(self, jobs: list[_Job]) -> list[Detections | Exception]:
        found = self._run([job.request for job in jobs])
        return [
            detections if job.classes is None else detections.of_classes(job.classes)
            for detections, job in zip(found, jobs, strict=True)
        ]
